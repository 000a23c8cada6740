"""The layout that the vendor's compiler reads: writer and checker."""

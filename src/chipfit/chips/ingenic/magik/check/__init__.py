"""The rules of the vendor's training file, and what breaks them."""

"""The vendor's subpackage name."""

"""Configuration by the vendor's names."""

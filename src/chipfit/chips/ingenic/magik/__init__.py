"""The vendor's node conventions for Ingenic networks: written, checked and read back."""

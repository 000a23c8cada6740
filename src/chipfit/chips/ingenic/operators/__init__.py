"""The vendor's operators, by kind."""

"""Integers of compiled layers on Txx, decoded from vendor files: predicted, not proven."""

"""What each chip computes: one folder a vendor."""

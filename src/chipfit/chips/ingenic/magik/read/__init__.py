"""From the vendor's training file back to a network."""

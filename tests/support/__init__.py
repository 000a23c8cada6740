"""What several tests use: networks, random networks and programs, comparisons. Import it as `support`."""

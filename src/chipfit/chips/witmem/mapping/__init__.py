"""Where a program's weights would lie in the array."""

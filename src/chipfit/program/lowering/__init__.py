"""From a network of chip layers to its integer program."""

"""From a network of Ingenic operators to its integer program."""

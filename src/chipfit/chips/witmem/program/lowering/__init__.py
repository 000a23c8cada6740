"""From a network of Witmem layers to its integer program."""

"""From a network of Ingenic operators to the training file that the vendor's converter reads."""

"""How each operator is read, by families."""

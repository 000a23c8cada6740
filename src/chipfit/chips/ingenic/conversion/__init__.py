"""What a plain network's operations become on an Ingenic chip."""

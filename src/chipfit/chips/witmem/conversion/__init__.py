"""What a plain network's operations become on the WTM2101."""

"""The analog array: its numbers, its rule, its fast kernel, its layers."""

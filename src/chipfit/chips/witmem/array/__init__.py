"""The analog array: its rule, its fast kernel, its layers."""

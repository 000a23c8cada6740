"""The one place that holds chipfit's version."""

__version__ = "0.1.0"

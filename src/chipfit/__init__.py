"""chipfit fits PyTorch networks to edge-AI chips, with the chip's own arithmetic."""

from chipfit.version import __version__

__all__ = ["__version__"]

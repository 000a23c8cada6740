"""From an integer program to files that other tools read.

Functions that belong to one vendor's files, such as their checkers, are that vendor's own and found here by name.
"""

from __future__ import annotations

from typing import Any

from chipfit.export.formats import Format, Request
from chipfit.export.golden import export_golden, verify_golden
from chipfit.export.onnx.writer import export_onnx
from chipfit.export.writing import export, known_formats
from chipfit.vendor import vendor_function

__all__ = ["Format", "Request", "export", "export_golden", "export_onnx", "known_formats", "verify_golden"]


def __getattr__(name: str) -> Any:
    """A vendor's function."""
    found = None if name.startswith("_") else vendor_function(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found

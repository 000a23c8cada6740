"""What a vendor says about comparing a network with its program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparing:
    """How a layer's output is read as codes.

    Args:
        tolerance: Distance from a code, in codes, that float32 can put a value; anything farther is no code.
    """

    tolerance: float = 0.0

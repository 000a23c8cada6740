"""Scales and ranges of Witmem layers, computed anew from what the layers keep: spec/witmem-array.md, sections 4 and 7.

Nothing here comes from the arithmetic that trains: a scale is a formula of the largest magnitude that was observed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.program.lowering.builder import log2_of

if TYPE_CHECKING:
    from chipfit.chips.witmem.array.numbers import ArraySpec


def scale_of(largest: float, bits: int) -> float:
    """`2^(bits-1) / 2^ceil(log2(largest))`, the logarithm in float32 (manual, section 2.6).

    Args:
        largest: Largest magnitude observed.
        bits: Width of the signed grid; one more for an unsigned tensor.

    Raises:
        UnsupportedError: nothing but zeros was observed.

    Example:
        >>> scale_of(1.7309, 8), scale_of(2.0, 8)
        (64.0, 64.0)
    """
    if not 0 < largest < math.inf:
        raise UnsupportedError(
            "no scale covers what was observed", given=largest, allowed="a finite number above 0", hint="Calibrate."
        )
    return float(2.0 ** (bits - 1 - math.ceil(np.float32(np.log2(float(np.float32(largest)))))))


def scales_of(layer: Any) -> dict[str, float]:
    """Scales in force in evaluation by tensor: with auto-scale those that follow from what was observed."""
    if not layer.use_auto_scale:
        return {name: observer.scale for name, observer in layer.observers.items()}
    return {name: scale_of(float(observer.io_max), observer.q_bit_in) for name, observer in layer.observers.items()}


def shifting_scales(layer: Any) -> dict[str, float]:
    """As `scales_of`, for a layer whose scales must all be powers of two.

    Raises:
        UnsupportedError: one is none.
    """
    scales = scales_of(layer)
    for name, scale in scales.items():
        log2_of(scale, f"scale of {name}")
    return scales


def with_scales(spec: ArraySpec, x: float, weight: float, y: float) -> ArraySpec:
    """The numbers of an array operation with the scales that were computed here."""
    return dataclasses.replace(spec, scale_x=x, scale_weight=weight, scale_y=y)


def clipped_range(limit: float | None, scale: float, lo: int, hi: int, rounding: str = "witin_nn") -> tuple[int, int]:
    """Range of codes that a clip to ±`limit` in real units leaves; None and 0 clip nothing.

    A negative limit gives the constant `limit`, as `torch.clamp` does with crossed bounds.

    A clip before a rounding is a clip to its rounded bounds after it, because rounding is monotone.

    Args:
        limit: The clip.
        scale: Codes per unit.
        lo: Lowest code without it.
        hi: Highest code without it.
        rounding: Rule by which the clipped value is rounded, 'witin_nn' or 'wtm2101'.

    Example:
        >>> clipped_range(1.53125, 16, -128, 127), clipped_range(1.53125, 16, -128, 127, "wtm2101")
        ((-24, 24), (-24, 25))
        >>> clipped_range(None, 16, -128, 127)
        (-128, 127)
    """
    if not limit:
        return lo, hi
    bound = float(np.float32(limit)) * scale
    ends = (-bound, bound) if bound > 0 else (bound, bound)
    if rounding == "witin_nn":
        codes = [round(end) for end in ends]
    else:
        codes = [math.floor(end + 0.5) if end >= 0 else math.trunc(end - 0.25) for end in ends]
    low, high = (min(max(code, lo), hi) for code in codes)
    return low, high

"""Weights to codes, computed anew from the float parameters: spec/ingenic.md, sections 1.1 and 1.3.

float32 throughout, each operation rounded once, in the order of the text; the arithmetic that trains is another room,
so that comparing a network with its program compares two readings of the specification.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from chipfit.chips.ingenic.devices import device
from chipfit.chips.ingenic.program.reference import tround


def statistics(w: Any, sequential: bool) -> tuple[float, float]:
    """Mean and population deviation of a whole weight, two float32 numbers.

    Args:
        w: float32, rows of channels.
        sequential: Added up one element after the other in float32, as the vendor's kit does; else in torch's order.

    Example:
        >>> statistics(np.float32([[1.0, 3.0]]), True)
        (2.0, 1.0)
    """
    count = w.size
    if sequential:
        flat = w.reshape(-1)
        mean = np.cumsum(flat, dtype=np.float32)[-1] / np.float32(count)
        square = np.cumsum(np.square(flat - mean), dtype=np.float32)[-1]
        return float(mean), float(np.sqrt(square / np.float32(count)))
    rows = torch.from_numpy(w)
    middle, norm = float(torch.mean(rows)), float(torch.linalg.vector_norm(rows))
    variance = norm**2 / count - middle**2
    if middle**2 < variance:
        return middle, math.sqrt(variance)
    return middle, float(torch.std(rows, correction=0))  # the difference of the two would have lost digits


def weight_codes(weight: Any, bits: int, factor: float, target: str, sequential: bool) -> tuple[Any, Any]:
    """Codes of a weight, and the size of a code a channel.

    Args:
        weight: float32, output channels first; two axes share one peak, more have one a channel.
        bits: 2 to 8.
        factor: Half-width of the clip in deviations.
        target: Whose codes: odd numbers on T40 and T02, all of two's complement on Txx.
        sequential: See `statistics`.

    Returns:
        int64 in the shape of the weight; float32, one value a channel.

    Example:
        >>> codes, size = weight_codes(np.float32([[1.0, -0.4, 0.1, 0.0]]), 2, 3.0, "T40", True)
        >>> codes.tolist(), size
        ([[3, -1, 1, 1]], array([0.33333334], dtype=float32))
        >>> weight_codes(np.float32([[1.0, -0.4, 0.1, 0.0]]), 2, 3.0, "Txx", True)[0].tolist()
        [[1, -1, 0, 0]]
    """
    has_zero = device(target, "weight_codes").has_zero
    n, one = np.float32((1 << bits) - 1), np.float32(1)
    rows = np.ascontiguousarray(weight).reshape(1 if weight.ndim == 2 else weight.shape[0], -1)
    mean, deviation = statistics(rows, sequential)
    low, high = (np.float32(mean + side * factor * deviation) for side in (-1, 1))
    peak = np.abs(rows).max(1, keepdims=True)
    smallest = np.float32(0.05 if has_zero else 1e-4)  # a peak below it is added to it
    peak = np.where(peak < smallest, peak + smallest, peak)
    clipped = np.minimum(np.maximum(rows, low), high)
    reach = np.abs(clipped).max(1, keepdims=True)
    share = np.divide(clipped, reach, out=np.full_like(clipped, -one), where=reach > 0)  # all zero: the lowest code
    steps = tround(torch.from_numpy((share + one) / np.float32(2) * n)).numpy()
    if has_zero:
        half = 1 << (bits - 1)
        return (steps - half).reshape(weight.shape), (peak / np.float32(half)).reshape(-1)
    return (2 * steps - int(n)).reshape(weight.shape), (peak / n).reshape(-1)

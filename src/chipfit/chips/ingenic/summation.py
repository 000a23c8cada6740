"""Sums of float32 numbers one after the other, as the vendor's kit adds them, and the statistics made of them.

Pure arithmetic on weights, without anything of a layer.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 1 << 16
"""Squares that are made and added at a time; they stay in the core's cache."""

_MOST = 1 << 30
"""Numbers that the kernel of a pooling window can count."""


@cache
def _window_is_sequential() -> bool:
    """Whether this build of torch adds up a pooling window one number after the other.

    It does on every CPU that we know of, in a register: a quarter of the time of `np.add.accumulate`, which writes each
    partial sum to memory and reads it again.
    """
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(5003) * 2.0 ** rng.integers(-12, 12, 5003)).astype(np.float32)
    return _window_sum(torch.from_numpy(values)) == _accumulated(values)


def _accumulated(values: np.ndarray) -> float:
    return float(np.add.accumulate(values, dtype=np.float32)[-1])


def _window_sum(values: Tensor) -> float:
    return F.avg_pool2d(values.view(1, 1, 1, -1), (1, values.numel()), divisor_override=1).item()


def sequential_sum(values: Tensor) -> float:
    """Sum of float32 numbers from first to last, rounded to float32 after each addition.

    Args:
        values: At least one number, any shape, dtype float32, on the CPU; added in the order of `reshape(-1)`.

    Returns:
        The sum, a number that float32 holds.

    Example:
        >>> sequential_sum(torch.tensor([2.0**24, 1.0, 1.0]))  # the exact sum is 16777218
        16777216.0
    """
    flat = values.detach().reshape(-1)
    if flat.numel() <= _MOST and _window_is_sequential():
        return _window_sum(flat)
    return _accumulated(flat.numpy())


def vendor_statistics(w: Tensor) -> tuple[float, float]:
    """Mean and population deviation of all numbers of a weight, summed as the vendor's kit sums them.

    Args:
        w: Any shape and device.

    Returns:
        `mean = sum(w) / N` and `sqrt(sum((w - mean)^2) / N)`, every operation rounded to float32.

    Source:
        spec/ingenic.md, section 1.3.

    Example:
        >>> vendor_statistics(torch.tensor([[1.0, 3.0], [5.0, 7.0]]))
        (4.0, 2.2360680103302)
    """
    flat = w.detach().to("cpu", torch.float32).reshape(-1)
    count = np.float32(flat.numel())
    mean = np.float32(sequential_sum(flat)) / count
    variance = np.float32(_sum_of_squares(flat, torch.tensor(float(mean)))) / count
    return float(mean), float(np.sqrt(variance))


def _sum_of_squares(flat: Tensor, mean: Tensor) -> float:
    """Sequential sum of `(flat - mean)^2`, in pieces; each begins with the sum so far."""
    total, room = 0.0, torch.empty(min(_CHUNK, flat.numel()) + 1)
    for part in torch.split(flat, _CHUNK):
        row = room[: part.numel() + 1]
        row[0] = total
        torch.sub(part, mean, out=row[1:]).square_()
        total = sequential_sum(row)
    return total

"""Exact integer arithmetic on int64 tensors: quotients by each rounding rule, shifts, roots."""

from __future__ import annotations

import torch
from torch import Tensor


def half_even_quotient(a: Tensor, b: Tensor | int) -> Tensor:
    """`a / b` rounded to the nearest integer, half-way cases to the even one; int64 throughout.

    Args:
        a: Dividend, int64.
        b: Divisor, above 0.

    Example:
        >>> half_even_quotient(torch.tensor([5, 7, -5, -7, 8]), 2)
        tensor([ 2,  4, -2, -4,  4])
    """
    down = torch.div(a, b, rounding_mode="floor")
    twice_rest = 2 * (a - down * b)
    up = (twice_rest > b) | ((twice_rest == b) & (down % 2 == 1))
    return down + up.to(torch.int64)


def shifted(v: Tensor, bits: int) -> Tensor:
    """`v * 2^bits`, rounded half to even where `bits` is negative.

    Example:
        >>> shifted(torch.tensor([5, 6, 7, -6]), -2), shifted(torch.tensor([3]), 2)
        (tensor([ 1,  2,  2, -2]), tensor([12]))
    """
    if bits >= 0:
        return v << bits
    if bits < -62:
        return torch.zeros_like(v)  # no int64 reaches half of 2^63 that is not clipped to 0 by rounding
    return half_even_quotient(v, 1 << -bits)


def integer_root(v: Tensor) -> Tensor:
    """`floor(sqrt(v))` of integers below 2^52.

    Example:
        >>> integer_root(torch.tensor([0, 15, 16, 17]))
        tensor([0, 3, 4, 4])
    """
    root = torch.sqrt(v.to(torch.float64)).to(torch.int64)
    root = torch.where(root * root > v, root - 1, root)
    return torch.where((root + 1) * (root + 1) <= v, root + 1, root)

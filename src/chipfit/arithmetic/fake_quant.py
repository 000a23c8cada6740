"""Fused fake quantisation: the one hand-tuned file.

Quantising costs four element-wise passes, and on a CPU the memory that each pass allocates costs more than its
arithmetic. So every chain here allocates once and goes on in place, the input is kept by reference, no mask is stored,
and the backward is one `hardtanh_backward`: the clip's gradient test is moved from the codes to the input (where
`clip_window` says exactly which inputs pass) because the input is what autograd holds anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.arithmetic.grid import Grid
from chipfit.arithmetic.rounding import Rounding, half_even

_FLOATS: dict[torch.dtype, tuple[type[np.floating[Any]], type[np.signedinteger[Any]]]] = {
    torch.float16: (np.float16, np.int16),
    torch.float32: (np.float32, np.int32),
    torch.float64: (np.float64, np.int64),
}
_CACHE = 1 << 18
"""Elements handled at a time: 1 MiB of float32, half of a core's second-level cache."""
masked_gradient = torch.ops.aten.hardtanh_backward
"""`masked_gradient(grad, x, below, above)`: `grad` where `below < x < above`, 0 elsewhere, in one pass."""


def clip_window(
    scale: float,
    lo: float,
    hi: float,
    offset: float = 0.0,
    round_first: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[float, float]:
    """Which inputs pass the gradient of `clamp(x * scale + offset, lo, hi)`, as an open interval in x.

    The bounds of a clip are inclusive and floating-point multiplication rounds, so the ends are found by bisection over
    the floating-point numbers themselves rather than by dividing.

    Args:
        scale: Codes per unit, above zero.
        lo: Lowest code.
        hi: Highest code.
        offset: Added to the scaled value before it is clipped.
        round_first: The value is rounded to even before it is clipped (digital unit), not after (array).
        dtype: Floating dtype in which the product is computed; bfloat16 is treated as float32.

    Returns:
        `(below, above)`: x passes if and only if `below < x < above`.

    Example:
        >>> below, above = clip_window(64.0, -128, 127)
        >>> below < -2.0 <= 127 / 64 < above
        True
        >>> below == float(np.nextafter(np.float32(-2.0), np.float32(-3.0)))
        True
    """
    return _window(scale, lo, hi, offset, round_first, dtype)


# Compiled code takes the window as a constant, where tracing the bisection would break its graph. This is what
# torch.compiler.assume_constant_result sets, without the two seconds that importing the compiler takes.
setattr(clip_window, "_dynamo_marked_constant", True)  # noqa: B010  # mypy knows no attributes of functions


@lru_cache(maxsize=4096)
def _window(
    scale: float, lo: float, hi: float, offset: float, round_first: bool, dtype: torch.dtype
) -> tuple[float, float]:
    number, _ = _FLOATS.get(dtype, _FLOATS[torch.float32])

    def code(x: float) -> float:
        with np.errstate(over="ignore"):
            v = number(number(x) * number(scale)) + number(offset)
        return float(np.rint(v)) if round_first else float(v)

    above = _first_float(lambda x: code(x) > hi, number)
    below = -_first_float(lambda x: code(-x) < lo, number)
    return below, above


def _first_float(holds: Callable[[float], bool], number: type[np.floating[Any]]) -> float:
    """Smallest finite-or-infinite float for which a monotone predicate holds, by bisection over the ordered floats."""
    integer = next(i for f, i in _FLOATS.values() if f is number)
    top = int(np.array(np.inf, dtype=number).view(integer))

    def value(rank: int) -> float:  # rank orders all floats: negative ranks mirror the positive ones
        magnitude = np.array(abs(rank), dtype=integer).view(number)
        return math.copysign(float(magnitude), rank)

    low, high = -top, top
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(value(middle)) else (middle + 1, high)
    return value(low)


def _cache_pieces(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Matching flat pieces of two tensors of one layout, sized for a CPU core's cache; whole elsewhere."""
    if x.device.type != "cpu" or x.numel() <= _CACHE or not x.is_contiguous() or torch.compiler.is_compiling():
        yield x, y
    else:
        yield from zip(torch.split(x.view(-1), _CACHE), torch.split(y.view(-1), _CACHE), strict=True)


class _FakeQuantise(torch.autograd.Function):
    """Codes or values of a tensor on a grid, with the straight-through gradient inside the clip."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: float, lo: float, hi: float, round_first: bool, rule: Rounding, divide: bool
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.divide = scale, divide
        ctx.window = clip_window(scale, lo, hi, 0.0, round_first, x.dtype)
        out = torch.empty_like(x)
        for source, piece in _cache_pieces(x, out):
            torch.mul(source, scale, out=piece)
            if round_first:
                piece.round_().clamp_(lo, hi)
            elif rule is half_even:
                piece.clamp_(lo, hi).round_()
            else:
                piece.copy_(rule(piece.clamp_(lo, hi)))
            if divide:
                # multiplying by the reciprocal is faster, and exact for a power of two
                piece.mul_(1.0 / scale) if math.frexp(scale)[0] == 0.5 else piece.div_(scale)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        passed = masked_gradient(grad, x, *ctx.window)
        return (passed if ctx.divide else passed.mul_(ctx.scale), *[None] * 6)


def fake_quantise(x: Tensor, grid: Grid, rule: Rounding = half_even, round_first: bool = False) -> Tensor:
    """Move values to the nearest point of a grid, in one autograd node.

    Args:
        x: Real values, any shape, floating dtype.
        grid: Bits, sign and scale.
        rule: Rounding rule; ignored with `round_first`, which rounds half to even.
        round_first: Round before clipping (digital unit) instead of after (array). The codes are the same; the
            gradient then also passes the half code beyond each end that still rounds into range.

    Returns:
        Values on the grid, in the dtype of `x`.

    Example:
        >>> x = torch.tensor([0.49, 3.0], requires_grad=True)
        >>> fake_quantise(x, Grid(bits=8, scale=64)).tolist()
        [0.484375, 1.984375]
        >>> fake_quantise(x, Grid(bits=8, scale=64)).sum().backward(); x.grad
        tensor([1., 0.])
    """
    out: Tensor = _FakeQuantise.apply(x, float(grid.scale), grid.lo, grid.hi, round_first, rule, True)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


def fake_codes(x: Tensor, grid: Grid, rule: Rounding = half_even, round_first: bool = False) -> Tensor:
    """As `fake_quantise`, but returns the integer codes themselves (gradient: times the scale inside the clip).

    Example:
        >>> fake_codes(torch.tensor([0.49, 3.0]), Grid(bits=8, scale=64))
        tensor([ 31., 127.])
    """
    out: Tensor = _FakeQuantise.apply(x, float(grid.scale), grid.lo, grid.hi, round_first, rule, False)  # type: ignore[no-untyped-call]  # torch types no apply
    return out

"""The fast path of the core operations: sums that float32 counts exactly, max pooling, what moves codes.

A sum of products that may pass 2^24 is taken in pieces, a few input channels each, that may not: a convolution of
float32 a piece, which together do the work of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.program.core import ops
from chipfit.program.core.reference import per_channel, quantised, summed_products
from chipfit.program.dialect import Context, Step, meaning_of
from chipfit.program.grid import value

FLOAT32_BITS = 24
_MOST_PIECES = 8
_NARROWEST = {"conv": 8, "linear": 64}
"""Inputs that a piece has at least; with fewer, or with more pieces, one float64 product takes less time."""


def extremes(weight: Tensor, lo: int, hi: int) -> Tensor:
    """Largest magnitude that any part of a sum of products can have, by output channel and input channel.

    Args:
        weight: Integer weight codes, (out, in, ...).
        lo: Lowest input code.
        hi: Highest input code.

    Returns:
        Highest and lowest value, int64, shape (2, out, in): the terms that can be positive, and those that can be
        negative. No order of summation leaves the range between the sums of the two.

    Example:
        >>> extremes(torch.tensor([[3, -1]]), 0, 10)
        tensor([[[ 30,   0]],
        <BLANKLINE>
                [[  0, -10]]])
    """
    weight = weight.to(torch.int64).reshape(*weight.shape[:2], -1)
    positive, negative = weight.clamp(min=0).sum(2), weight.clamp(max=0).sum(2)
    lo, hi = min(lo, 0), max(hi, 0)
    return torch.stack([positive * hi + negative * lo, positive * lo + negative * hi])


def pieces(weight: Tensor, lo: int, hi: int, narrowest: int) -> list[slice] | None:
    """Ranges of input channels whose sums of products float32 counts exactly, or None where float64 is the better way.

    Args:
        weight: Integer weight codes, (out, in, ...).
        lo: Lowest input code.
        hi: Highest input code.
        narrowest: Channels that one of several pieces has at least.

    Example:
        >>> pieces(torch.full((1, 600), 127), 0, 255, 64)
        [slice(0, 300, None), slice(300, 600, None)]
        >>> pieces(torch.full((1, 600), 127), 0, 4095, 64) is None
        True
    """
    limits = extremes(weight, lo, hi)
    inputs = weight.shape[1]
    for count in range(1, _MOST_PIECES + 1):
        size = -(-inputs // count)
        if count > 1 and size < narrowest:
            break
        cuts = [slice(start, min(start + size, inputs)) for start in range(0, inputs, size)]
        if all(int(limits[:, :, cut].sum(2).abs().max()) <= FLOAT32_EXACT for cut in cuts):
            return cuts
    return None


def float32_sums(op: ops.Accumulate, weight: Tensor, lo: int, padding: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """What computes `float32(sum)` of a sum of products, rounded once.

    Args:
        op: The operation.
        weight: Its integer weight codes.
        lo: Lowest input code; the highest is `op.largest`.
        padding: Border of code 0 that a convolution adds on both sides of each spatial axis.

    Returns:
        Takes integral float32 codes, and returns float32.
    """
    cuts = pieces(weight, lo, op.largest, _NARROWEST[op.kind])
    if cuts is None:
        wide = weight.to(torch.float64)
        return lambda x: _product(op, x.to(torch.float64), wide, padding).to(torch.float32)
    parts = [(cut, weight[:, cut].to(torch.float32).contiguous()) for cut in cuts]
    if len(parts) == 1:
        return lambda x: _product(op, x, parts[0][1], padding)

    def total(x: Tensor) -> Tensor:
        sums = (_product(op, _narrowed(op, x, cut), part, padding) for cut, part in parts)
        first = next(sums)
        if len(parts) > 2:  # one addition of two exact sums rounds once, several round several times
            first = first.to(torch.float64)
        for other in sums:
            first.add_(other)
        return first.to(torch.float32)

    return total


def _narrowed(op: ops.Accumulate, x: Tensor, cut: slice) -> Tensor:
    """Some of the input channels, of each group."""
    if op.kind == "linear":
        return x[..., cut]
    if op.groups == 1:
        return x[:, cut]
    return x.reshape(x.shape[0], op.groups, -1, *x.shape[2:])[:, :, cut].flatten(1, 2)


def _product(op: ops.Accumulate, x: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    if op.kind == "linear":
        return F.linear(x, weight)
    conv: Any = torch.conv1d if len(op.stride) == 1 else torch.conv2d
    total: Tensor = conv(x, weight, None, op.stride, padding, op.dilation, op.groups)
    return total


def max_pool(codes: Tensor, op: ops.MaxPool) -> Tensor:
    """`ops.MaxPool` of codes in floating point; torch's kernel, which also finds where the largest is, is slow.

    Example:
        >>> max_pool(torch.tensor([[[1.0, 3.0, 2.0, 0.0, 5.0]]]), ops.MaxPool((2,), (2,), (0,), (1,), False))
        tensor([[[3., 2.]]])
    """
    if any(op.padding) or op.ceil_mode or max(op.kernel) > 4:
        pool: Any = torch.max_pool1d if len(op.kernel) == 1 else torch.max_pool2d
        padded: Tensor = pool(codes, op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
        return padded
    pooled, first = codes, codes.dim() - len(op.kernel)
    for axis, (kernel, stride, dilation) in enumerate(zip(op.kernel, op.stride, op.dilation, strict=True), first):
        span = pooled.shape[axis] - dilation * (kernel - 1)
        rows = pooled.movedim(axis, 0)
        windows = [rows[i * dilation : i * dilation + span : stride].movedim(0, axis) for i in range(kernel)]
        pooled = windows[0] if kernel == 1 else torch.maximum(windows[0], windows[1])
        for window in windows[2:]:
            torch.maximum(pooled, window, out=pooled)
    return pooled


# --- steps


def dtype_of(bits: int | None) -> torch.dtype:
    """What holds the codes of an edge on the fast path."""
    return torch.float64 if bits is not None and bits > FLOAT32_BITS else torch.float32


def by_reference(op: ops.Op, context: Context) -> Step:
    """The reference's function on int64 codes."""
    reference, dtype = meaning_of(op).reference, _made(context)
    return lambda args: reference(op, [x.to(torch.int64) for x in args], context).to(dtype)


def as_given(op: ops.Op, context: Context) -> Step:
    """The reference's function on what comes in, of an operation that takes numbers in any dtype."""
    reference, dtype = meaning_of(op).reference, _made(context)
    return lambda args: reference(op, args, context).to(dtype)


def moving(op: ops.Op, context: Context) -> Step:
    """`as_given` where the inputs have the output's dtype, else `by_reference`."""
    same = all(dtype_of(source.bits) == _made(context) for source in context.sources)
    return as_given(op, context) if same else by_reference(op, context)


def _made(context: Context) -> torch.dtype:
    return dtype_of(None if context.output is None else context.output.bits)


def quantise(op: ops.Quantise, context: Context) -> Step:
    """`Quantise`."""
    return lambda args: quantised(args[0], op, context.name, torch.float32)


def dequantise(op: ops.Dequantise, context: Context) -> Step:
    """`Dequantise`."""
    grid = context.sources[0].grid
    return lambda args: value(args[0], grid)


def rescale(op: ops.Rescale, context: Context) -> Step:
    """`Rescale`, in floating point where no code, lifted by `zero`, has more bits than float32 counts."""
    if op.zero and not _narrow(context, -op.shift):
        return by_reference(op, context)
    dtype = _made(context)
    return lambda args: _rescaled(args[0], op).to(dtype)


def _narrow(context: Context, right_shift: int) -> bool:
    bits = context.sources[0].bits or 0
    made = 0 if context.output is None else context.output.bits or 0
    return max(bits, made) + 1 + max(right_shift, 0) <= FLOAT32_BITS


def _rescaled(codes: Tensor, op: ops.Rescale) -> Tensor:
    scaled = codes * 2.0**op.shift if op.shift else codes.clone()
    if op.zero:
        scaled.add_(op.zero)
    return scaled.round_().clamp_(op.lo, op.hi) if op.shift < 0 else scaled.clamp_(op.lo, op.hi)


def accumulate(op: ops.Accumulate, context: Context) -> Step:
    """`Accumulate`, in float64 where float32 may not count it."""
    wide = torch.float32 if context.exact_in_float32 else torch.float64
    weight = context.tensors[op.weight_tensor].to(wide)
    if op.bias_tensor is None:
        return lambda args: summed_products(args[0].to(wide), weight, op)
    bias = per_channel(context.tensors[op.bias_tensor].to(wide), op)
    return lambda args: summed_products(args[0].to(wide), weight, op).add_(bias)


def relu(op: ops.Relu, context: Context) -> Step:
    """`Relu`."""
    return lambda args: args[0].clamp(min=0)


def clamp(op: ops.Clamp, context: Context) -> Step:
    """`Clamp`."""
    return lambda args: args[0].clamp(op.lo, op.hi)


def pooled(op: ops.MaxPool, context: Context) -> Step:
    """`MaxPool`."""
    return lambda args: max_pool(args[0], op)

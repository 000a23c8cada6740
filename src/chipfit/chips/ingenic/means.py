"""The float means of pooling layers, in the order in which the vendor's kit adds: a float32 sum, then one division.

A mean of codes would be exact and land on ties that the float sum misses by its last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.exact import input_codes
from chipfit.chips.ingenic.operators.features import Feature

_LANES = 8
"""Numbers that are added side by side."""

_ROWS = 16
"""Rows of four times as many numbers after which a partial sum is put aside."""

_LEVELS = 4


def grid_values(x: Tensor, feature: Feature, dev: Device) -> Tensor:
    """The feature as the float32 numbers that its codes stand for; what is on no grid stays as it is.

    A quantised feature already is; an image may be a few last bits off.

    Args:
        x: The feature's tensor, possibly rearranged.
        feature: Its description.
        dev: Target of the layer that reads it.

    Example:
        >>> from chipfit.chips.ingenic.devices import device
        >>> x = torch.tensor([0.2000001, 1.0])
        >>> grid_values(x, Feature(x, 4, 0.0, True), device("T40", "grid_values")).equal(torch.tensor([0.2, 1.0]))
        True
    """
    found = input_codes(x, feature, dev)
    if found is None or (found.signed and not feature.signed):
        return x
    if feature.signed and not dev.has_zero:
        return (found.codes + found.n) / found.n - 1.0
    return found.codes / found.n


def window_mean(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Means over windows (N, C, H', W'); a window is added row by row, one number after the other."""
    return F.avg_pool2d(x, kernel, stride)


def whole_mean(x: Tensor, keepdim: bool) -> Tensor:
    """Means over height and width, (N, C, 1, 1) or (N, C), in the order of torch's sum on a CPU with AVX2.

    The H·W numbers of a channel, row by row, are taken in vectors of 8 (below 8 numbers, of 1). Vector i is added to
    partial sum i mod 4 while there are four more of them, the rest to the first; after 16 rows of four vectors the
    partial sums are put aside into a second sum, after 16 of these into a third, after 16 of those into a fourth. Then
    the sums put aside are added to the partial sums, these to the first of them, then what is left over of the vectors
    from 0 on, and to that the 8 numbers of the vector.

    Example:
        >>> whole_mean(torch.arange(6.0).view(1, 1, 2, 3), keepdim=False)
        tensor([[2.5000]])
    """
    mean: Tensor = _WholeMean.apply(x)  # type: ignore[no-untyped-call]  # torch types no apply
    return mean if keepdim else mean.flatten(1)


class _WholeMean(torch.autograd.Function):
    """Each number has the same share of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        count = x.shape[2] * x.shape[3]
        return (_ordered_sum(x.reshape(-1, count)) / count).view(*x.shape[:2], 1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        share: Tensor = grad / (ctx.shape[2] * ctx.shape[3])
        return share.expand(ctx.shape)


def _ordered_sum(rows: Tensor) -> Tensor:
    """Sums of the rows of a matrix, in the order of `whole_mean`."""
    channels, count = rows.shape
    lanes = _LANES if count >= _LANES else 1
    vectors = count // lanes
    body = rows[:, : vectors * lanes].view(channels, vectors, lanes)
    fours = vectors // 4
    partial = _cascade(body[:, : 4 * fours].view(channels, fours, 4, lanes))
    first = partial[:, 0]
    for vector in (*body[:, 4 * fours :].unbind(1), *partial[:, 1:].unbind(1)):
        first = first + vector
    total = rows.new_zeros(channels)
    for number in (*rows[:, vectors * lanes :].unbind(1), *first.unbind(1)):
        total = total + number
    return total


def _cascade(blocks: Tensor) -> Tensor:
    """Sum over dimension 1, with partial sums of 16 put aside on three levels."""
    zero = blocks.new_zeros(blocks.shape[0], *blocks.shape[2:])
    sums = [zero] * _LEVELS
    for done, block in enumerate(blocks.unbind(1), 1):
        sums[0] = sums[0] + block
        level, step = 1, _ROWS
        while level < _LEVELS and done % step == 0:
            sums[level], sums[level - 1] = sums[level] + sums[level - 1], zero
            level, step = level + 1, step * _ROWS
    return sums[0] + sums[1] + sums[2] + sums[3]

"""Evaluation on integer codes: sums of products of codes, which no order of summation can change.

A feature that lies on its grid is `code / n`, a quantised weight is `code * scale`. Evaluation convolves the codes and
multiplies once a channel by `scale / n`. Sums that may pass 2^24, which float32 could not count, are taken in pieces,
some input channels each, that may not; where that takes too many pieces, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.chips.ingenic.chunks import flat_chunks
from chipfit.chips.ingenic.devices import Device, device
from chipfit.chips.ingenic.operators.features import Feature
from chipfit.chips.ingenic.quantizers import quantise_rows

_CHUNK = 1 << 16
"""Numbers handled at a time on a CPU, which stay in its cache through all passes."""

_LARGEST_WEIGHT = 255
"""Largest magnitude of an 8-bit weight code, on the T40 family."""

_ROUNDING = 1.002
"""More than float32 can be off in the norm of as many codes as it can add up."""

_MOST_PIECES = 8
_NARROWEST = {2: 64, 4: 8}
"""Inputs that a piece of a sum has at least, by the weight's dimensions; below, one float64 product takes less time."""

_OFF_GRID = 2e-3
"""Distance in codes up to which a value counts as on its grid; float32 puts a 12-bit value at most 1e-3 off."""


class _Codes(torch.autograd.Function):
    """Codes of a feature, with the gradient of the feature times `n`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, n: float) -> Tensor:
        ctx.n = n
        return codes.view_as(codes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # The backward of a product made this gradient for nobody else; that of a sum only shows one number many times.
        own = grad.is_contiguous() and not torch.is_grad_enabled()
        return (grad.mul_(ctx.n) if own else grad * ctx.n), None, None


def _nearest(x: Tensor, n: float, low: int, high: int) -> Tensor | None:
    """Nearest integers to `x * n`, or `None` where one is too far away or outside `low` to `high`."""
    codes = torch.empty_like(x)
    for source, out, (off,) in flat_chunks(x, codes, _CHUNK, 1):
        torch.mul(source, n, out=off)
        torch.clamp(off, low, high, out=out).round_()
        if not float(off.sub_(out).abs_().amax()) <= _OFF_GRID:  # NaN is not
            return None
    return codes


class _WeightCodes(torch.autograd.Function):
    """Codes of a weight, with the gradient that `code * scale` passes on unchanged."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, bits: int, factor: float, has_zero: bool, sequential: bool
    ) -> tuple[Tensor, Tensor]:
        codes, scale = quantise_rows(w, bits, factor, has_zero, sequential, as_codes=True)
        ctx.save_for_backward(scale)
        ctx.mark_non_differentiable(scale)
        return codes, scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        scale = scale.view(-1, *[1] * (grad.dim() - 1))
        own = grad.is_contiguous() and not torch.is_grad_enabled()  # as for `_Codes`
        return (grad.div_(scale) if own else grad / scale), None, None, None, None


def weight_codes(w: Tensor, bits: int, factor: float, target: str, *, sequential: bool = True) -> tuple[Tensor, Tensor]:
    """Integer codes of a weight, and the size of a code a channel: `codes * scale` is what `quantize_weight` gives.

    Args:
        w: As for `quantize_weight`.
        bits: 2 to 8.
        factor: As for `quantize_weight`.
        target: As for `quantize_weight`.
        sequential: As for `quantize_weight`.

    Returns:
        Codes in the shape and dtype of `w`: `-2^(bits-1)` to `2^(bits-1) - 1` on Txx, Xs1, Xs2, elsewhere the odd
        numbers from `-(2^bits - 1)` to `2^bits - 1`; and the scale, one value a channel (2-D: one value).

    Raises:
        InvalidValueError: Unknown target.

    Source:
        spec/ingenic.md, section 1.3.

    Example:
        >>> weight_codes(torch.tensor([[1.0, -0.4, 0.1, 0.0]]), 2, 3.0, "T40")
        (tensor([[ 3., -1.,  1.,  1.]]), tensor([0.3333]))
    """
    has_zero = device(target, "weight_codes").has_zero
    out: tuple[Tensor, Tensor] = _WeightCodes.apply(w, bits, factor, has_zero, sequential)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


class InputCodes(NamedTuple):
    """A feature as integers.

    Args:
        codes: Integral values, floating dtype; `codes / n` is the feature.
        n: Codes a unit.
        largest: Largest magnitude that a code can have.
        signed: Whether a code can be negative.
    """

    codes: Tensor
    n: float
    largest: int
    signed: bool = True


def grids(feature: Feature, dev: Device) -> Iterator[tuple[float, int]]:
    """Grids that a feature may lie on, as codes a unit and largest magnitude.

    A signed feature of Txx, Xs1, Xs2 is a multiple of `1 / 2^(bits-1)`, or after a Shortcut of `1 / (2^(bits-1) - 1)`.
    An image is counted in steps of `1 / var`, if its mean is a whole number.

    Source:
        spec/ingenic.md, sections 1.2, 1.7 and 2.

    Example:
        >>> list(grids(Feature(torch.zeros(1), 8, -1.0, True), device("Txx", "grids")))
        [(128.0, 128), (127.0, 127)]
    """
    if feature.bits >= 32:
        return
    n = 2**feature.bits - 1
    if feature.prepared is not None:
        mean, var = feature.prepared
        if mean == int(mean) and var > 0:
            yield float(var), max(abs(int(mean)), abs(255 - int(mean)))
    elif feature.signed and dev.has_zero:
        half = 2 ** (feature.bits - 1)
        yield float(half), half
        yield float(half - 1), half - 1
    else:
        yield float(n), n


def input_codes(x: Tensor, feature: Feature, dev: Device) -> InputCodes | None:
    """Codes of a feature, or `None` where it is not on a grid that its description names.

    Args:
        x: The feature's tensor, possibly rearranged.
        feature: Its description.
        dev: Target of the layer that reads it.

    Example:
        >>> t40 = device("T40", "input_codes")
        >>> input_codes(torch.tensor([0.2, 1.0]), Feature(torch.zeros(1), 4, 0.0, True), t40).codes
        tensor([ 3., 15.])
        >>> input_codes(torch.tensor([0.21, 1.0]), Feature(torch.zeros(1), 4, 0.0, True), t40) is None
        True
    """
    if not x.numel() or x.dtype not in (torch.float32, torch.float64):
        return None
    for n, largest in grids(feature, dev):
        for signed in (True,) if feature.signed else (False, True):
            nearest = _nearest(x.detach(), n, -largest if signed else 0, largest)
            if nearest is not None:
                codes: Tensor = _Codes.apply(x, nearest, n)  # type: ignore[no-untyped-call]  # torch types no apply
                return InputCodes(codes, n, largest, signed)
    return None


def exact_sum(
    linear: Callable[[Tensor, Tensor], Tensor], x: InputCodes, weight: Tensor, scale: Tensor, bias: Tensor | None
) -> Tensor:
    """Sum of products on codes, then one affine map a channel: `float32(sum) * (scale / n) + bias`.

    Args:
        linear: The convolution or matrix product, of input codes and weight codes.
        x: The input.
        weight: Weight codes, output channels first.
        scale: Size of a weight code a channel, or one for all.
        bias: Float bias a channel, or `None`.

    Returns:
        The layer's sum in the dtype of `weight`; each of the three operations is rounded once.
    """
    total = _total(linear, x, weight)
    channels = (1, -1, *[1] * (total.dim() - 2)) if weight.dim() > 2 else (-1,)
    total = total.mul_((scale / x.n).view(channels))
    return total if bias is None else total.add_(bias.view(channels))


def _total(linear: Callable[[Tensor, Tensor], Tensor], x: InputCodes, weight: Tensor) -> Tensor:
    """The sum of products in the dtype of `weight`, rounded once."""
    codes, inputs = x.codes.to(weight.dtype), weight.shape[1]
    size = inputs if weight.dtype == torch.float64 else _piece(weight.detach(), x)
    if size == 0:
        wide = _widest(codes)
        return linear(codes.to(wide), weight.to(wide)).to(weight.dtype)
    if size == inputs:
        return linear(codes, weight).to(weight.dtype)
    if weight.dim() == 2 or codes.shape[1] == inputs:
        parts = torch.split(codes, size, -1 if weight.dim() == 2 else 1)
    else:  # the same channels of each group
        grouped = codes.reshape(codes.shape[0], -1, inputs, *codes.shape[2:])
        parts = tuple(part.flatten(1, 2) for part in torch.split(grouped, size, 2))
    sums = [linear(*pair) for pair in zip(parts, torch.split(weight, size, 1), strict=True)]
    if len(sums) == 2:  # one addition of two exact sums rounds once, several round several times
        return sums[0].add_(sums[1])
    total = sums[0].to(_widest(codes))
    for other in sums[1:]:
        total = total.add_(other)
    return total.to(weight.dtype)


def _piece(weight: Tensor, x: InputCodes) -> int:
    """Input channels whose sum of products stays within 2^24 in any order; 0 where that is too few of them.

    Any part of a sum lies between the sum of its negative products and that of its positive ones. The magnitudes of
    weight codes add up to at most their norm times the root of their count, which takes less time than adding them.
    """
    inputs, length = weight.shape[1], weight[0].numel()
    if length * x.largest <= FLOAT32_EXACT // _LARGEST_WEIGHT:
        return inputs
    if length > FLOAT32_EXACT // _LARGEST_WEIGHT:  # float32 could not even add up the weight codes
        return 0
    counts = [count for count in range(1, _MOST_PIECES + 1) if inputs % count == 0]
    while counts:
        count = counts[0]
        rows = weight.reshape(-1, length // count)
        reach = torch.linalg.vector_norm(rows, dim=1).mul_(math.sqrt(length / count) * _ROUNDING)
        if not x.signed:
            reach = reach.add_(rows.sum(1).abs_()).div_(2)
        excess = float(reach.max()) * x.largest / FLOAT32_EXACT
        if excess <= 1:
            return inputs // count
        narrowest = _NARROWEST[min(weight.dim(), 4)]
        counts = [more for more in counts[1:] if more >= count * excess and inputs // more >= narrowest]
    return 0


def _widest(x: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def normalise(x: Tensor, mean: Tensor, variance: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Batch normalisation in evaluation, in a stated order: `(x - mean) * (gain / sqrt(variance + eps)) + bias`.

    The factor of a channel is computed in float64 and rounded once, because torch's float32 root is not always the
    nearest. Each of the three operations is rounded by itself, so that another implementation can be equal to the bit.

    Example:
        >>> one = torch.ones(1)
        >>> normalise(torch.full((1, 1), 5.0), one, 4 * one, 3 * one, one, 0.0)
        tensor([[7.]])
    """
    channels = (1, -1, *[1] * (x.dim() - 2))
    wide = _widest(x)
    factor = (gain.to(wide) / torch.sqrt(variance.to(wide) + eps)).to(x.dtype)
    y = x - mean.view(channels)
    y = y * factor.view(channels) if torch.is_grad_enabled() else y.mul_(factor.view(channels))
    return y.add_(bias.view(channels))

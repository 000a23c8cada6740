"""Evaluation on integer codes: sums of products of codes, which no order of summation can change.

A feature that lies on its grid is `code / n`, a quantised weight is `code * scale`. Evaluation convolves the codes, in
float32 where every accumulator stays within 2^24 and in float64 elsewhere, and multiplies once a channel by
`scale / n`. Training keeps the plain convolution of the quantised values, which is faster and is what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.chips.ingenic.devices import Device, device
from chipfit.chips.ingenic.features import Feature
from chipfit.chips.ingenic.quantizers import quantise_rows

_OFF_GRID = 2e-3
"""Distance in codes up to which a value counts as on its grid; float32 puts a 12-bit value at most 1e-3 off."""


class _Round(torch.autograd.Function):
    """Round with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


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
        return grad / scale.view(-1, *[1] * (grad.dim() - 1)), None, None, None, None


def weight_codes(
    w: Tensor, bits: int, factor: float, target: str, *, sequential: bool = False
) -> tuple[Tensor, Tensor]:
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
    out: tuple[Tensor, Tensor] = _WeightCodes.apply(w, bits, factor, has_zero, sequential)  # type: ignore[no-untyped-call]
    return out


class InputCodes(NamedTuple):
    """A feature as integers.

    Args:
        codes: Integral values, floating dtype; `codes / n` is the feature.
        n: Codes a unit.
        largest: Largest magnitude that a code can have.
    """

    codes: Tensor
    n: float
    largest: int


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
        scaled = x * n
        codes: Tensor = _Round.apply(scaled)  # type: ignore[no-untyped-call]
        if torch.compiler.is_compiling() or _on_grid(scaled.detach(), codes.detach(), largest):
            return InputCodes(codes, n, largest)
    return None


def _on_grid(scaled: Tensor, codes: Tensor, largest: int) -> bool:
    low, high = codes.aminmax()
    return bool((torch.maximum(-low, high) <= largest) & ((scaled - codes).abs().amax() <= _OFF_GRID))


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
    bound = int(weight.detach().abs().flatten(1).sum(1).max()) * x.largest
    wide = torch.float32 if bound <= FLOAT32_EXACT else _widest(x.codes)
    total = linear(x.codes.to(wide), weight.to(wide)).to(weight.dtype)
    channels = (1, -1, *[1] * (total.dim() - 2)) if weight.dim() > 2 else (-1,)
    total = total * (scale / x.n).view(channels)
    return total if bias is None else total + bias.view(channels)


def _widest(x: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def exact_mean(x: InputCodes, pool: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Mean of features on codes: `float32(sum) / float32(count * n)`.

    Args:
        x: The features.
        pool: Sums codes over windows.
        count: Values in a window.
    """
    wide = torch.float32 if count * x.largest <= FLOAT32_EXACT else _widest(x.codes)
    return pool(x.codes.to(wide)).to(x.codes.dtype) / (count * x.n)


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
    return (x - mean.view(channels)) * factor.view(channels) + bias.view(channels)

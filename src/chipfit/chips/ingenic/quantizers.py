"""What Ingenic chips compute on features and weights during training: pure functions on tensors.

All numbers follow spec/ingenic.md, section 1, measured on the vendor's kit. Features leave a quantiser *normalised*,
that is divided by the clip value, so that they lie in [0, 1] or [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.chips.ingenic.chunks import Scratch, flat_chunks, row_chunks
from chipfit.chips.ingenic.devices import device
from chipfit.chips.ingenic.summation import vendor_statistics

_BELOW = float(np.float32(0.501)) - 1.0
"""From a value rounded up to the end of the ties below it; float32 holds it."""

_CHUNK = 1 << 17
"""Elements handled at a time on a CPU: 512 KiB of float32 stay in the core's cache through all passes."""


def tround(v: Tensor) -> Tensor:
    """Round to nearest by magnitude; from `k + 0.5` up to, not including, `float32(k + 0.501)` to the even neighbour.

    Args:
        v: Real-valued codes, any shape, floating dtype.

    Returns:
        Integral values in the dtype of `v`.

    Source:
        spec/ingenic.md, section 1.1.

    Example:
        >>> tround(torch.tensor([2.5009, 0.5005, 1.4999, 2.502, -0.5005, -1.5]))
        tensor([ 2.,  0.,  1.,  3., -0., -2.])
        >>> tround(torch.tensor([116.50099, 116.50099945]))
        tensor([116., 117.])
    """
    magnitude = v.abs()
    return _tround_(magnitude, (torch.empty_like(magnitude), torch.empty_like(magnitude))).copysign(v)


def _tround_(v: Tensor, scratch: Scratch) -> Tensor:
    """Round `v >= 0` as `tround`; overwrites all arguments and returns the first of two in `scratch`.

    Plain rounding differs only from a tie up to the end of its band, where it may go up. Half a code less is a new tie
    between the two neighbours there, which rounding again gives to the even one. The end of the band is a float32 sum,
    so that it is rounded as the codes are.
    """
    rounded, end = scratch
    torch.round(v, out=rounded)
    torch.add(rounded, _BELOW, out=end)
    return rounded.sub_(v.lt_(end), alpha=0.5).round_()


def _feature_codes(x: Tensor, bits: int, signed: bool, clip_max: float, has_zero: bool) -> Tensor:
    """Forward of the feature quantiser: clip, normalise, round; see `quantize_feature`."""
    y = torch.empty_like(x)
    n = float(2**bits - 1)
    for source, out, scratch in flat_chunks(x, y, _CHUNK, 2):
        torch.clamp(source, -clip_max if signed else 0.0, clip_max, out=out)
        if not signed:
            codes = _tround_(out.div_(clip_max).mul_(n), scratch)
            torch.div(codes, n, out=out)
        elif has_zero:
            half = float(2 ** (bits - 1))
            sign = out.div_(clip_max).mul_(half).clone()
            codes = _tround_(out.abs_(), scratch).copysign_(sign).clamp_(-half, half - 1)
            torch.mul(codes, 1.0 / half, out=out)
        else:
            codes = _tround_(out.add_(clip_max).div_(2 * clip_max).mul_(n), scratch)
            torch.mul(codes, 2.0, out=out).div_(n).sub_(1.0)
    return y


def _pass_between(grad: Tensor, x: Tensor, clip_min: float, clip_max: float) -> Tensor:
    """Gradient of a clip whose ends let the gradient pass.

    torch's own kernel stops the gradient at the ends, so the ends are moved out by one float32 step.
    """
    low = float(np.nextafter(np.float32(clip_min), np.float32(-np.inf)))
    high = float(np.nextafter(np.float32(clip_max), np.float32(np.inf)))
    return torch.ops.aten.hardtanh_backward(grad, x, low, high)  # type: ignore[no-any-return]  # torch.ops is untyped


class _QuantizeFeature(torch.autograd.Function):
    """Keeps the input for the backward pass, from which the mask is found again; no mask is stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, clip_min: float, clip_max: float, has_zero: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits = clip_min, clip_max
        if bits >= 32:
            return x.view_as(x)
        return _feature_codes(x, bits, clip_min < 0, clip_max, has_zero)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        low, high = ctx.limits
        return _pass_between(grad, x, low, high).div_(high), None, None, None, None


def quantize_feature(x: Tensor, bits: int, clip_min: float, clip_max: float, target: str) -> Tensor:
    """Quantise a feature and normalise it by its clip value.

    Args:
        x: Real values, any shape, float32.
        bits: Width of the code; from 32 on the forward is the identity, without normalisation.
        clip_min: Only the sign counts for the forward: negative means a signed feature.
        clip_max: Clip threshold, above zero.
        target: Name of the target.

    Returns:
        Values in [0, 1] or [-1, 1]: `k / (2^bits - 1)` unsigned, `k / 2^(bits-1)` signed on Txx, Xs1, Xs2, and odd
        multiples of `1 / (2^bits - 1)` signed elsewhere (so that zero maps to the smallest positive code).
        The gradient is that of `x / clip_max` for `clip_min <= x <= clip_max` and zero outside, at 32 bits too.

    Raises:
        InvalidValueError: Unknown target.

    Source:
        spec/ingenic.md, section 1.2.

    Example:
        >>> quantize_feature(torch.tensor([-1.0, 1.5, 7.0]), 2, 0.0, 6.0, "T40")
        tensor([0.0000, 0.3333, 1.0000])
        >>> quantize_feature(torch.tensor([0.0, 7.0]), 2, -6.0, 6.0, "T40")
        tensor([0.3333, 1.0000])
        >>> quantize_feature(torch.tensor([0.0, 7.0]), 2, -6.0, 6.0, "Txx")
        tensor([0.0000, 0.5000])
    """
    has_zero = device(target, "quantize_feature").has_zero
    y: Tensor = _QuantizeFeature.apply(x, bits, clip_min, clip_max, has_zero)  # type: ignore[no-untyped-call]  # torch types no apply
    return y


Number = Any
"""A Python number on a CPU, where it is at hand; a tensor elsewhere, where the program would have to wait for it."""


def _statistics(w: Tensor) -> tuple[Number, Number]:
    """Mean and population deviation; on a CPU `torch.std_mean` would take twenty times as long."""
    if w.device.type == "cpu":
        mean, norm = w.mean().item(), torch.linalg.vector_norm(w).item()
        variance = norm * norm / w.numel() - mean * mean
        if mean * mean < variance:  # else the difference of the two would lose digits
            return mean, math.sqrt(variance)
        return mean, w.std(correction=0).item()
    deviation, mean_elsewhere = torch.std_mean(w, correction=0)
    return mean_elsewhere, deviation


_SUM_ERROR = 2.0**-23
"""Twice the relative error of one float32 addition: as many of them as numbers bound the error of a sum of them."""


def _window(rows: Tensor, factor: float, ends: tuple[Tensor, Tensor], sequential: bool) -> tuple[Number, Number]:
    """Where a weight is clipped, mean ± factor · deviation.

    The order of summation decides only where something may be clipped, so elsewhere the faster one serves: a sum of N
    numbers one after the other is off by at most N · 2^-23 of the sum of their magnitudes (Higham, Accuracy and
    Stability of Numerical Algorithms, section 4.2).
    """
    mean, deviation = _statistics(rows)
    if sequential and rows.device.type != "meta":
        size = (mean * mean + deviation * deviation) ** 0.5
        slack = (1 + factor) * (rows.numel() * _SUM_ERROR + 1e-3) * size
        reach = factor * deviation - slack
        inside = bool(ends[0].amin() >= mean - reach) and bool(ends[1].amax() <= mean + reach)
        if rows.numel() * _SUM_ERROR > 1 or not inside:
            mean, deviation = vendor_statistics(rows)
    return mean - factor * deviation, mean + factor * deviation


def rows_of(w: Tensor) -> Tensor:
    """A weight as one row for each peak that it has: all of a 2-D weight (linear, LSTM), one output channel of others.

    Example:
        >>> rows_of(torch.zeros(4, 3)).shape, rows_of(torch.zeros(4, 3, 2, 2)).shape
        (torch.Size([1, 12]), torch.Size([4, 12]))
    """
    return w.reshape(1, -1) if w.dim() == 2 else w.reshape(w.shape[0], -1)


def epsilon(has_zero: bool) -> float:
    """The peak below which the quantiser stretches a weight: it adds this to it.

    Source:
        spec/ingenic.md, section 1.3.
    """
    return 0.05 if has_zero else 1e-4


def quantise_rows(
    w: Tensor, bits: int, factor: float, has_zero: bool, sequential: bool, as_codes: bool = False
) -> tuple[Tensor, Tensor]:
    """Forward of `quantize_weight`; with `as_codes` the integer codes, which times the scale are the weight."""
    rows = rows_of(w)
    smallest, largest = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    low, high = _window(rows, factor, (smallest, largest), sequential)
    peak = torch.maximum(-smallest, largest)
    # Clipping is monotonic, so the peak after it follows from the two extremes, without another pass.
    clipped_peak = torch.maximum(-smallest.clamp(low, high), largest.clamp(low, high))
    eps = epsilon(has_zero)
    peak = torch.where(peak < eps, peak + eps, peak)
    # An all-zero channel gets code 0: what is added to its `v / N` is 0 instead of 1.
    one, divisor = clipped_peak.sign(), clipped_peak.clamp(min=torch.finfo(w.dtype).tiny)
    n = float(2**bits - 1)
    # Both grids are (code - middle) * step; on the T40 family the middle lies between two codes.
    middle = float(2 ** (bits - 1)) if has_zero else n / 2
    step = peak / middle
    offset = torch.full((), -n, dtype=w.dtype, device=w.device)
    quantised = torch.empty_like(rows)
    for piece, out, scratch, (divisors, ones, steps) in row_chunks(rows, quantised, _CHUNK, 2, divisor, one, step):
        torch.clamp(piece, low, high, out=out).div_(divisors).add_(ones).mul_(n / 2)
        code = _tround_(out, scratch)
        if not as_codes:
            torch.sub(code, middle, out=out).mul_(steps)
        elif has_zero:
            torch.sub(code, middle, out=out)
        else:  # the odd numbers 2k - n
            torch.add(offset, code, alpha=2.0, out=out)
    return quantised.view(w.shape), (step if has_zero else step / 2).view(-1)


class _QuantizeWeight(torch.autograd.Function):
    """Straight-through: the gradient of the quantised weight is that of the weight, clipped parts included."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, bits: int, factor: float, has_zero: bool, sequential: bool
    ) -> tuple[Tensor, Tensor]:
        quantised, scale = quantise_rows(w, bits, factor, has_zero, sequential)
        ctx.mark_non_differentiable(scale)
        return quantised, scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None, None


def quantize_weight(
    w: Tensor, bits: int, factor: float, target: str, *, sequential: bool = True
) -> tuple[Tensor, Tensor]:
    """Clip a weight to mean ± factor · deviation, quantise it, and stretch it back to its original peak.

    Args:
        w: Weight; output channels first. A 2-D weight (linear, LSTM) shares one peak, others have one a channel.
        bits: Width of the code; from 32 on the weight is returned unchanged with scale 0.
        factor: Half-width of the clip window in deviations of the whole tensor. Smaller means more clipping and better
            use of the codes.
        target: Name of the target.
        sequential: Sum mean and deviation element after element in float32 as the vendor's kit does; without it, in
            torch's order, which is faster and moves codes where something is clipped (spec/ingenic.md, section 8: up to
            586 of 859,040). A weight elsewhere is copied to the CPU for it.

    Returns:
        The quantised weight, with the gradient of the identity, and the size of a code a channel (2-D: one value).

    Raises:
        InvalidValueError: Unknown target.

    Source:
        spec/ingenic.md, section 1.3.

    Example:
        >>> q, scale = quantize_weight(torch.tensor([[1.0, -0.4, 0.1, 0.0]]), 2, 3.0, "T40")
        >>> q
        tensor([[ 1.0000, -0.3333,  0.3333,  0.3333]])
        >>> quantize_weight(torch.tensor([[1.0, -0.4, 0.1, 0.0]]), 2, 3.0, "Txx")[0]
        tensor([[ 0.5000, -0.5000,  0.0000,  0.0000]])
    """
    has_zero = device(target, "quantize_weight").has_zero
    if bits >= 32:
        return w, w.new_zeros(1 if w.dim() == 2 else w.shape[0])
    out: tuple[Tensor, Tensor] = _QuantizeWeight.apply(w, bits, factor, has_zero, sequential)  # type: ignore[no-untyped-call]  # torch types no apply
    return out


class _AverageCodes(torch.autograd.Function):
    """Mean of two features on codes; both inputs get the whole gradient, as in the vendor's kit."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, n: float) -> Tensor:
        return torch.round(a * n).add_(torch.round(b * n)).mul_(0.5).round_().div_(n)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, grad, None


def shortcut(a: Tensor, b: Tensor, bits: int, clip_max: float, negative: bool, target: str) -> Tensor:
    """Add two features of a residual connection.

    Args:
        a: Normalised feature.
        b: Normalised feature of the same shape.
        bits: Width of the codes; from 32 on the plain sum is returned.
        clip_max: Clip threshold of the sum, at most 2 counts; Txx, Xs1 and Xs2 ignore it.
        negative: Whether one of the features is signed.
        target: Name of the target.

    Returns:
        On Txx, Xs1, Xs2 the mean of the two codes, ties to even, over `2^bits - 1` (signed: `2^(bits-1) - 1`);
        elsewhere the sum, quantised by `quantize_feature` with `min(clip_max, 2)`.

    Raises:
        InvalidValueError: Unknown target.

    Source:
        spec/ingenic.md, section 1.7.

    Example:
        >>> a, b = torch.tensor([1 / 3, 1.0]), torch.tensor([2 / 3, 1.0])
        >>> shortcut(a, b, 2, 2.0, False, "Txx")
        tensor([0.6667, 1.0000])
        >>> shortcut(a, b, 2, 2.0, False, "T40")
        tensor([0.6667, 1.0000])
    """
    if bits >= 32:
        return a + b
    if device(target, "shortcut").has_zero:
        n = 2 ** (bits - 1) - 1 if negative else 2**bits - 1
        y: Tensor = _AverageCodes.apply(a, b, float(n))  # type: ignore[no-untyped-call]  # torch types no apply
        return y
    clip_max = min(clip_max, 2.0)
    return quantize_feature(a + b, bits, -clip_max if negative else 0.0, clip_max, target)


def hard_sigmoid(v: Tensor) -> Tensor:
    """The chips' sigmoid, `clip(v / 6 + 0.5, 0, 1)`.

    Example:
        >>> hard_sigmoid(torch.tensor([-4.0, 0.0, 1.5]))
        tensor([0.0000, 0.5000, 0.7500])
    """
    return torch.clamp(v / 6 + 0.5, 0.0, 1.0)


def rational_tanh(v: Tensor) -> Tensor:
    """The chips' tanh, `v (27 + v²) / (27 + 9 v²)`, which is not clipped and exceeds 1 beyond |v| = 3.

    Example:
        >>> rational_tanh(torch.tensor([0.0, 3.0, 7.0]))
        tensor([0.0000, 1.0000, 1.1368])
    """
    square = v * v
    return v * (27 + square) / (27 + 9 * square)


def lstm_cell(x: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """One step of the chips' LSTM.

    Args:
        x: Input, (N, I).
        h: Hidden state, (N, H).
        c: Cell state, (N, H).
        weight: (4H, I + H); rows are the gates in the order input, forget, cell, output.
        bias: (4H,), or `None`.

    Returns:
        The next hidden state and cell state.

    Source:
        spec/ingenic.md, section 3.3.

    Example:
        >>> h, c = lstm_cell(torch.ones(1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(4, 2), None)
        >>> c
        tensor([[0.5000]])
    """
    return lstm_step(torch.nn.functional.linear(torch.cat([x, h], dim=1), weight, bias), c)


def lstm_step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The part of `lstm_cell` after the matrix product: gates (N, 4H) and cell state (N, H) to the next states."""
    i, f, g, o = gates.chunk(4, dim=1)
    c = hard_sigmoid(f) * c + hard_sigmoid(i) * rational_tanh(g)
    return hard_sigmoid(o) * rational_tanh(c), c

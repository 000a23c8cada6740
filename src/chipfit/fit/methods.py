"""How calibration chooses a tensor's range from a sample of its values: max, percentile, mse, kl.

A Witmem scale is a power of two, so its range has few candidates; an Ingenic clip may be any number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid, power_of_two_scale
from chipfit.errors import CalibrationError, InvalidValueError, UnknownOptionError, nearest

METHODS = ("max", "percentile", "mse", "kl")
"""Largest magnitude; a percentile of magnitudes; least mean squared error; least Kullback-Leibler divergence."""

_LARGEST_QUANTILE = 1 << 24
"""Number of values from which torch.quantile refuses its input."""
_CANDIDATES = 64
_SEARCHED = 1 << 17
"""Values at most that a search over candidates looks at."""


def check_method(method: str, percentile: float) -> None:
    """Refuse an unknown method or percentile.

    Raises:
        UnknownOptionError: no such method.
        InvalidValueError: a percentile outside its range.
    """
    if method not in METHODS:
        raise UnknownOptionError(
            "unknown calibration method", given=method, allowed=", ".join(METHODS), hint=nearest(method, METHODS)
        )
    if not 0 < percentile <= 100:
        raise InvalidValueError(
            "no such percentile", given=percentile, allowed="above 0, up to 100", where="calibrate(percentile=)"
        )


def only_zeros(values: Tensor) -> bool:
    """Whether a sample has values, and all of them are zero.

    Example:
        >>> only_zeros(torch.zeros(3)), only_zeros(torch.zeros(0)), only_zeros(torch.tensor([0.0, math.nan]))
        (True, False, False)
    """
    return values.numel() > 0 and not bool(values.any())


def largest_magnitude(values: Tensor, where: str) -> float:
    """Largest magnitude of a sample.

    Raises:
        CalibrationError: no values, nothing but zeros, or NaN or infinity.
    """
    if not values.numel():
        raise CalibrationError("no values were seen", where=where, hint="Look at the data that reaches this layer.")
    largest = values.abs().max().item()
    if not (math.isfinite(largest) and largest > 0):
        raise CalibrationError(
            "NaN or infinite values were seen" if largest else "only zeros were seen",
            given=largest,
            allowed="finite values, not all of them zero",
            where=where,
            hint="Look at the data that reaches this layer.",
        )
    return largest


def power_of_two_range(values: Tensor, bits: int, method: str, percentile: float, where: str) -> float:
    """Magnitude that a power-of-two scale is made for.

    Args:
        values: Sample, any shape.
        bits: Width of the signed grid.
        method: One of `METHODS`.
        percentile: For 'percentile', in percent.
        where: Layer and tensor, for the error message.

    Raises:
        CalibrationError: the sample determines no range.

    Example:
        >>> power_of_two_range(torch.tensor([0.5, -3.0]), 8, "max", 99.9, "fc")
        3.0
    """
    largest = largest_magnitude(values, where)
    if method in ("max", "percentile"):
        return largest if method == "max" else _percentile(values, percentile, largest)
    top = bits - 1 - int(math.log2(power_of_two_scale(largest, bits)))
    ranges = [2.0**exponent for exponent in range(top, top - 5, -1)]
    if method == "kl":
        return least_divergence(values, ranges, 2 ** (bits - 1))

    def error(limit: float) -> float:
        grid = Grid(bits, True, power_of_two_scale(limit, bits))
        return (fake_quantise(values, grid) - values).square().mean().item()

    return min(ranges, key=error)


def free_range(
    values: Tensor, levels: int, quantise: Callable[[Tensor, float], Tensor], method: str, percentile: float, where: str
) -> float:
    """Magnitude at which to clip, where any number will do.

    Args:
        values: Sample, any shape.
        levels: Codes that the magnitudes share.
        quantise: Maps values and a clip to the values that the codes stand for.
        method: One of `METHODS`.
        percentile: For 'percentile', in percent.
        where: Layer and tensor, for the error message.

    Raises:
        CalibrationError: the sample determines no range.

    Example:
        >>> x = torch.tensor([1.0] * 99 + [64.0])
        >>> free_range(x, 3, lambda v, c: (v.clamp(0, c) / c * 3).round() / 3 * c, "max", 99.9, "fc")
        64.0
    """
    largest = largest_magnitude(values, where)
    if method in ("max", "percentile"):
        return largest if method == "max" else _percentile(values, percentile, largest)
    ranges = [largest * k / _CANDIDATES for k in range(_CANDIDATES, 0, -1)]
    if method == "kl":
        return least_divergence(values, ranges, levels)
    sample = values[:: values.numel() // _SEARCHED + 1]
    return min(ranges, key=lambda clip: (quantise(sample, clip) - sample).square().mean().item())


def _percentile(values: Tensor, percentile: float, largest: float) -> float:
    every = values.numel() // _LARGEST_QUANTILE + 1
    return max(torch.quantile(values.abs()[::every], percentile / 100).item(), largest * 2.0**-16)


def least_divergence(values: Tensor, ranges: Sequence[float], levels: int) -> float:
    """Range whose codes keep most of the distribution of the magnitudes.

    The histogram of the magnitudes, with what exceeds the range put in its last bin, is compared with the histogram
    that is left when the bins of each code are averaged: the divergence of the second from the first. Zeros are left
    out, since every range holds them exactly.

    Args:
        values: Sample, any shape, not all zero.
        ranges: Candidates, above zero.
        levels: Codes that the magnitudes share.

    Source:
        Migacz, 8-bit Inference with TensorRT, GTC 2017.

    Example:
        >>> x = torch.cat([torch.rand(10_000, generator=torch.Generator().manual_seed(0)), torch.tensor([16.0])])
        >>> least_divergence(x, [16.0, 4.0, 1.0, 0.25], 8)
        1.0
    """
    magnitudes = values.abs().flatten().double()
    magnitudes = magnitudes[magnitudes > 0]
    finest = min(ranges)
    width = finest / max(8, math.ceil(8 * levels * finest / max(ranges)))
    bins = math.ceil(max(*ranges, magnitudes.max().item()) / width) + 1
    counts = torch.bincount((magnitudes / width).floor().long().clamp(max=bins - 1), minlength=bins).double()
    return min(ranges, key=lambda limit: _divergence(counts, max(round(limit / width), 1), levels))


def _divergence(counts: Tensor, kept: int, levels: int) -> float:
    """Divergence of what `levels` codes over the first `kept` bins make of a histogram from the histogram."""
    inside = counts[:kept]
    clipped = inside.clone()
    clipped[-1] += counts[kept:].sum()
    code = torch.arange(kept) * levels // kept
    shared = torch.zeros(levels, dtype=torch.double).index_add_(0, code, inside)
    occupied = torch.zeros(levels, dtype=torch.double).index_add_(0, code, (clipped > 0).double())
    spread = torch.where(clipped > 0, (shared / occupied.clamp(min=1))[code], 0.0)
    p, support = clipped / clipped.sum(), clipped > 0
    # A bin that only the clipped values occupy would make the divergence infinite.
    q = 0.9999 * spread / spread.sum().clamp(min=1e-12) + 0.0001 / support.sum()
    return (p[support] * (p[support] / q[support]).log()).sum().item()


def sqnr(values: Tensor, quantised: Tensor) -> float:
    """Signal to quantisation-noise ratio, in dB.

    Example:
        >>> sqnr(torch.tensor([1.0, 1.0]), torch.tensor([1.5, 0.5]))
        6.02...
    """
    noise = (quantised - values).square().mean().item()
    signal = values.square().mean().item()
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf

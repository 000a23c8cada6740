"""The nearest code of a grid with zero, through the quantiser that the vendor has for it.

On Txx, Xs1, Xs2 (and in depthwise convolutions on every target) the quantiser spreads a weight over the codes from end
to end, `k = round((w / M + 1) / 2 * (2^b - 1))`, and then reads code k as `(k - h) / h * M` with `h = 2^(b-1)`
(spec/ingenic.md, section 1.3): half a step too low and too small on average. The way from the weight that the codes
stand for to the one that has to be given in is affine. A weight `w` held as

    M * (2 * (h * w / M + h) / (2^b - 1) - 1)

gets the nearest code of `w`, provided that the largest of a channel is M itself, whatever M was chosen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chipfit.chips.ingenic.quantizers import rows_of

SMALLEST_PEAK = 0.0501
"""Below 0.05 the vendor's quantiser adds 0.05 to a peak, so that no channel can have a smaller one."""

_SHARES = tuple(0.97**step for step in range(96))
"""Of the peak that clips nothing: what the least error is searched among, down to 0.055."""

_ENOUGH = 2.0
"""Times the smallest peak that a square root bounds: for a window that never clips, with room for rounding."""


def covering_peaks(w: Tensor, bits: int) -> Tensor:
    """The smallest peak of each row that clips no weight: codes go from -h to h - 1.

    Args:
        w: Weight, output channels first.
        bits: Width of the code.

    Returns:
        (rows,).

    Example:
        >>> covering_peaks(torch.tensor([[-0.5, 0.25]]), 2), covering_peaks(torch.tensor([[-0.5, 0.5]]), 2)
        (tensor([0.5000]), tensor([1.]))
    """
    rows, h = rows_of(w), 2 ** (bits - 1)
    return torch.maximum(-rows.amin(1), rows.amax(1) * (h / (h - 1))).clamp(min=0.0)


def best_peaks(w: Tensor, bits: int) -> Tensor:
    """The peak of each row whose nearest codes have the least squared error.

    Args:
        w: As for `covering_peaks`.
        bits: As for `covering_peaks`.

    Returns:
        (rows,), each at most the one of `covering_peaks` and none below what the quantiser can have.

    Example:
        >>> w = torch.tensor([[-1.0] + [0.1, -0.1] * 50])
        >>> best_peaks(w, 2) < 0.3  # rather clip the one
        tensor([True])
    """
    rows, h = rows_of(w), 2 ** (bits - 1)
    cover = covering_peaks(w, bits).clamp(min=SMALLEST_PEAK)
    best, least = cover, torch.full_like(cover, torch.inf)
    for share in _SHARES:
        peak = (cover * share).clamp(min=SMALLEST_PEAK)
        step = peak.view(-1, 1) / h
        error = (rows / step).round_().clamp_(-h, h - 1).mul_(step).sub_(rows).square_().sum(1)
        best, least = torch.where(error < least, peak, best), torch.minimum(error, least)
    return best


def latent_weight(w: Tensor, peaks: Tensor, bits: int) -> Tensor:
    """What to give to the vendor's quantiser, without a window that clips, for the nearest codes of a weight.

    A row that reaches neither end of the codes gets its outermost weight put there, since the quantiser takes the
    largest for the peak.

    Args:
        w: Weight, output channels first.
        peaks: One a row, at least 0.0501 (`SMALLEST_PEAK`).
        bits: Width of the code.

    Returns:
        In the shape of `w`.

    Example:
        >>> from chipfit.chips.ingenic.quantizers import quantize_weight
        >>> w = torch.tensor([[0.9, -1.0, -0.3, 0.2, 0.0]])
        >>> quantize_weight(w, 3, 9.0, "Txx")[0]
        tensor([[ 0.7500, -1.0000, -0.5000,  0.0000,  0.0000]])
        >>> quantize_weight(latent_weight(w, torch.ones(1), 3), 3, 9.0, "Txx")[0]
        tensor([[ 0.7500, -1.0000, -0.2500,  0.2500,  0.0000]])
    """
    h, n = 2 ** (bits - 1), 2**bits - 1
    peak = peaks.to(w).double().view(-1, 1)
    u = ((rows_of(w).double() / peak + 1) * (2 * h / n) - 1).clamp_(-1, 1)
    reach, outermost = u.abs().max(1, keepdim=True)
    end = torch.where(u.gather(1, outermost) < 0, -1.0, 1.0).to(u)
    u.scatter_(1, outermost, torch.where(reach < 1, end, u.gather(1, outermost)))
    latent: Tensor = (u * peak).to(w).view(w.shape)
    return latent


def affine_image(latent: Tensor, bits: int) -> Tensor:
    """The weight that a latent one stands for: that of `latent_weight`, where no peak clips it.

    Args:
        latent: As given to the quantiser.
        bits: Width of the code.

    Returns:
        In the shape of `latent`, with its gradient.

    Example:
        >>> w = torch.tensor([[0.5, -1.0, -0.3, 0.2, 0.0]])
        >>> affine_image(latent_weight(w, torch.ones(1), 4), 4)
        tensor([[ 0.5000, -1.0000, -0.3000,  0.2000,  0.0000]])
    """
    h, n = 2 ** (bits - 1), 2**bits - 1
    rows = rows_of(latent)
    image: Tensor = (rows * n - rows.abs().amax(1, keepdim=True)) / (2 * h)
    return image.view(latent.shape)


def open_window(*weights: Tensor) -> float:
    """A `weight_factor` whose window clips none of N numbers, whatever they become in training.

    No number is further from the mean than sqrt(N - 1) deviations.

    Example:
        >>> open_window(torch.zeros(5, 20))
        20.0
    """
    return _ENOUGH * math.sqrt(max(weight.numel() for weight in weights))

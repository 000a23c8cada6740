"""Noise effects: a Gaussian times a scaling law, at a named port of the analog array.

Ports: the weight cell (`CellNoise`, which the bias rows share) and the column sum (`ColumnNoise`). An effect knows
integer codes and a level, no chip and no layer. All draws come from torch's default generator, so
`torch.manual_seed` controls them; `chipfit.noise.chips` makes seeded chips out of that.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BIAS_DRIVE = 128
"""Input code that drives a bias row."""


@dataclass(frozen=True)
class AffineLaw:
    """Standard deviation that grows with the magnitude of the code: `floor + slope * |code|`, per unit of level.

    Args:
        floor: Deviation of a zero code, in codes.
        slope: Growth per code.

    Example:
        >>> AffineLaw(0.3145, 0.015605).std(torch.tensor([0.0, -100.0]))
        tensor([0.3145, 1.8750])
    """

    floor: float
    slope: float

    def std(self, codes: Tensor) -> Tensor:
        """Standard deviation at level 1, shape of `codes`."""
        return codes.abs().mul_(self.slope).add_(self.floor)


@dataclass(frozen=True)
class CellNoise:
    """Additive Gaussian noise on the integer weight of each cell: `w + level * (floor + slope * |w|) * eps`.

    One draw serves a whole forward: every sample and every pixel meets the same cells.

    Args:
        law: How the deviation grows with the weight code.

    Source:
        spec/witmem-array.md, section 6 (NORMAL): measured to five digits, linear in the level, not rounded or clipped.
    """

    law: AffineLaw

    def disturb(self, codes: Tensor, level: float, eps: Tensor) -> Tensor:
        """Noisy weights: the formula above, operation by operation, differentiable by `codes`.

        Args:
            codes: Integer weight codes.
            level: Noise level, 0 to 9.
            eps: A standard normal draw in the shape of `codes`.

        Example:
            >>> noise = CellNoise(AffineLaw(0.5, 0.01))
            >>> noise.disturb(torch.tensor([-100.0, 0.0]), 2.0, torch.tensor([1.0, 1.0]))
            tensor([-97.,   1.])
        """
        return self.law.std(codes).mul_(level).mul_(eps).add_(codes)

    def gradient(self, grad: Tensor, response: Tensor, level: float) -> Tensor:
        """Gradient by the clean codes, as autograd has it from `disturb`.

        Args:
            grad: Gradient by the noisy codes; its memory is reused for the result.
            response: `sign(codes) * eps`.
            level: Noise level.

        Example:
            >>> noise = CellNoise(AffineLaw(0.5, 0.01))
            >>> noise.gradient(torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 0.0]), 2.0)
            tensor([0.9800, 1.0000])
        """
        return grad.add_(grad.mul(response).mul_(level).mul_(self.law.slope))

    def disturb_rows(self, bias: Tensor, rows: int, level: float, eps: Tensor) -> Tensor:
        """Noisy bias codes, for a bias spread evenly over rows of cells that are each driven with 128.

        Args:
            bias: Bias codes, multiples of 128, shape `(channels,)`.
            rows: Number of bias rows.
            level: Noise level.
            eps: A standard normal draw, shape `(rows, channels)`.

        Returns:
            Shape `(channels,)`, differentiable by `bias`.
        """
        cell = bias / (BIAS_DRIVE * rows)
        return (cell + self.law.std(cell).mul_(level) * eps).sum(0) * BIAS_DRIVE

    def rows_gradient(self, grad: Tensor, response: Tensor, level: float) -> Tensor:
        """Gradient by the clean bias, as autograd has it from `disturb_rows`.

        Args:
            grad: Gradient by the noisy bias, shape `(channels,)`.
            response: `sign(bias) * eps`, shape `(rows, channels)`.
            level: Noise level.
        """
        driven = (grad * BIAS_DRIVE).expand_as(response)
        noise = (driven * response).sum(0).mul_(level).mul_(self.law.slope)
        return (driven.sum(0) + noise).div_(BIAS_DRIVE * response.shape[0])


@dataclass(frozen=True)
class ColumnNoise:
    """Gaussian noise on each column sum, fresh for every sample: `sqrt(floor² + sum((x_i * std(w_i))²))`.

    Args:
        floor: Deviation at zero input, in accumulator codes per unit of level.
        knots: Weight magnitudes at which the cell deviation is known.
        stds: Cell deviation at those magnitudes, per unit of level; a zero weight adds none.
        output_floor: Deviation added to the output code whatever the level.

    Source:
        spec/witmem-array.md, section 6 (MBS): few probes, low confidence; linear between them.
    """

    floor: float
    knots: tuple[float, ...]
    stds: tuple[float, ...]
    output_floor: float

    def cell_variance(self, codes: Tensor, level: float) -> Tensor:
        """Variance that each weight cell adds per squared input code, shape of `codes`.

        Example:
            >>> noise = ColumnNoise(90.0, (0.0, 64.0, 127.0), (0.05, 0.7, 1.2), 1.0)
            >>> noise.cell_variance(torch.tensor([0.0, -64.0]), 2.0)
            tensor([0.0000, 1.9600])
        """
        magnitude = codes.abs()
        std = torch.zeros_like(magnitude)
        for (k0, k1), (s0, s1) in zip(
            zip(self.knots, self.knots[1:], strict=False), zip(self.stds, self.stds[1:], strict=False), strict=True
        ):
            last = k1 == self.knots[-1]
            inside = (magnitude > k0 - (k0 == 0)) & ((magnitude <= k1) | last)
            std = torch.where(inside, s0 + (magnitude - k0) * ((s1 - s0) / (k1 - k0)), std)
        return torch.where(codes == 0, torch.zeros_like(std), (std * level) ** 2)

    def draw(self, input_variance: Tensor, level: float) -> Tensor:
        """A draw of the column noise.

        Args:
            input_variance: `sum(x_i² * cell_variance_i)` of every output, any shape.
            level: Noise level.

        Returns:
            Noise in accumulator codes, shape of `input_variance`.
        """
        return torch.randn_like(input_variance) * torch.sqrt(input_variance.clamp_min(0) + (self.floor * level) ** 2)


def draw_shared_offset(like: Tensor, std: float) -> Tensor:
    """One Gaussian offset for a whole forward, as a scalar tensor: a mean that changes from call to call."""
    return torch.randn((), dtype=like.dtype, device=like.device) * std

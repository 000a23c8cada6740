"""The integer grid that a tensor lives on: how many bits, signed or not, and how many codes make one unit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from chipfit.arithmetic.rounding import Rounding, half_even, straight_through
from chipfit.errors import InvalidTypeError, InvalidValueError


@dataclass(frozen=True)
class Grid:
    """A uniform grid without zero point: code = round(value * scale), clipped to the codes the bits can hold.

    Args:
        bits: Width in bits, a positive int.
        signed: Two's complement (`-2^(bits-1) … 2^(bits-1)-1`) or unsigned (`0 … 2^bits-1`).
        scale: Codes per unit of the real value, a finite number above zero. Chips need a power of two;
            `is_power_of_two` tells.

    Raises:
        InvalidValueError: `bits` below 1, or `scale` not a finite number above zero.
        InvalidTypeError: `bits` is not an int.

    Example:
        >>> grid = Grid(bits=8, signed=True, scale=64)
        >>> grid.lo, grid.hi
        (-128, 127)
        >>> grid.codes(torch.tensor([0.5, -3.0, 0.0234375]))
        tensor([  32., -128.,    2.])
        >>> grid.quantise(torch.tensor([0.51]))
        tensor([0.5156])
    """

    bits: int
    signed: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or isinstance(self.bits, bool):
            raise InvalidTypeError(
                "a bit width must be an int", given=self.bits, allowed="a positive int", where="bits"
            )
        if self.bits < 1:
            raise InvalidValueError("a bit width must be positive", given=self.bits, allowed="1 or more", where="bits")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise InvalidValueError(
                "a scale must be positive and finite", given=self.scale, allowed="a number above 0", where="scale"
            )

    @property
    def lo(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def hi(self) -> int:
        """Highest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def is_power_of_two(self) -> bool:
        """Whether the scale is a power of two, so that scaling is exact in floating point and a shift on the chip."""
        return math.frexp(self.scale)[0] == 0.5

    def codes(self, value: Tensor, rule: Rounding = half_even) -> Tensor:
        """Integer codes of real values, held in the dtype of `value`.

        The value is clipped before it is rounded, and the clip's bounds let the gradient pass (rounding counts as the
        identity): one vendor's order of steps.

        Args:
            value: Real values, any shape, floating dtype.
            rule: Rounding rule.

        Returns:
            Integral codes in `[lo, hi]`.
        """
        return straight_through(rule)(torch.clamp(value * self.scale, self.lo, self.hi))

    def values(self, codes: Tensor) -> Tensor:
        """Real values of integer codes."""
        return codes / self.scale

    def quantise(self, value: Tensor, rule: Rounding = half_even) -> Tensor:
        """Nearest values on the grid: `values(codes(value))`."""
        return self.values(self.codes(value, rule))


def power_of_two_scale(largest: float, bits: int) -> float:
    """Scale whose grid of `bits` signed bits just covers values up to `largest`: `2^(bits-1) / 2^ceil(log2(largest))`.

    Args:
        largest: Greatest magnitude to be represented, a finite number above zero.
        bits: Width in bits of the signed grid; add one for an unsigned tensor of the same width.

    Returns:
        A power of two, in codes per unit.

    Raises:
        InvalidValueError: `largest` is zero, negative, NaN or infinite.

    Source:
        Manual section 2.6. The logarithm is taken in float32 as there, so a value one float32 step above a power of two
        counts as that power.

    Example:
        >>> power_of_two_scale(1.7309, 8)
        64.0
    """
    if not (math.isfinite(largest) and largest > 0):
        raise InvalidValueError(
            "no scale covers this range", given=largest, allowed="a finite number above 0", where="power_of_two_scale"
        )
    return math.ldexp(1.0, bits - 1 - _ceil_log2(largest))


@lru_cache(maxsize=4096)
def _ceil_log2(value: float) -> int:
    return math.ceil(torch.tensor(value, dtype=torch.float32).log2().item())

"""What integer codes stand for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from chipfit.errors import InvalidValueError


@dataclass(frozen=True)
class Grid:
    """The real numbers that codes stand for.

    'plain' is what most chips have: `value = (code - zero) / n`. 'odd' has no code for 0.0: its codes are the odd
    numbers from -n to n, which stand for as many values at even distances from -1 to 1: `value = (code + n) / n - 1`.

    Args:
        kind: 'plain' or 'odd'.
        n: Codes a unit: a power of two where the chip only shifts, else any number above 0, such as 255.
        zero: Code that stands for 0.0; 'plain' only.

    Raises:
        InvalidValueError: n is not above 0, no such kind, or a grid without zero that is given one.

    Example:
        >>> Grid("plain", 16.0, zero=8).value(torch.tensor([8, 12]))
        tensor([0.0000, 0.2500])
        >>> Grid("odd", 3.0).value(torch.tensor([-3, -1, 1, 3]))
        tensor([-1.0000, -0.3333,  0.3333,  1.0000])
    """

    kind: Literal["plain", "odd"]
    n: float
    zero: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("plain", "odd"):
            raise InvalidValueError("no such kind of grid", given=self.kind, allowed="plain, odd", where="Grid")
        if not 0 < self.n < math.inf:
            raise InvalidValueError("a grid of no codes a unit", given=self.n, allowed="above 0", where="Grid")
        if self.kind == "odd" and self.zero:
            raise InvalidValueError("an odd grid has no zero", given=self.zero, allowed="0", where="Grid")

    @property
    def shiftable(self) -> bool:
        """Whether a shift brings its codes to a finer grid of the same kind.

        Example:
            >>> Grid("plain", 16.0).shiftable, Grid("plain", 255.0).shiftable, Grid("odd", 16.0).shiftable
            (True, False, False)
        """
        return self.kind == "plain" and not self.zero and math.frexp(self.n)[0] == 0.5

    def value(self, code: Tensor) -> Tensor:
        """The float32 numbers that codes of any dtype stand for; each step written above rounds once to float32."""
        real = (code - self.zero if self.zero else code).to(torch.float32)
        n = torch.tensor(self.n, dtype=torch.float32)
        return real / n if self.kind == "plain" else (real + n) / n - 1.0


def value(codes: Tensor, grid: Grid | None) -> Tensor:
    """The float32 numbers that an edge's values stand for; without a grid, sums and real numbers are themselves.

    Example:
        >>> value(torch.tensor([-3, 1]), Grid("odd", 3.0)), value(torch.tensor([7]), None)
        (tensor([-1.0000,  0.3333]), tensor([7.]))
    """
    return codes.to(torch.float32) if grid is None else grid.value(codes)

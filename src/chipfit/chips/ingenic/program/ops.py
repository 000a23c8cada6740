"""The operations that only Ingenic programs have: above all what turns sums of products into codes again.

Source: spec/ingenic.md, sections 1.1 to 1.7. Sums are exact integers. What follows them is float32 in the training
kit and therefore here: each operation written down rounds once to float32, in the order written. `tround` rounds to
nearest by magnitude; from `k + 0.5` up to, not including, `float32(k + 0.501)` to the even neighbour. `per channel` is
along `axis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chipfit.program.core.base import Op
from chipfit.program.grid import Grid


@dataclass(frozen=True)
class PixelCodes(Op):
    """An image to codes: `round(x * n)`; a value that is no multiple of `1 / n`, or outside `[lo, hi]`, is refused."""

    n: float
    lo: int
    hi: int


@dataclass(frozen=True)
class Affine:
    """`float32(sum) * scale`, then `+ bias` where there is one; float32 tensors, per channel or one number."""

    scale_tensor: str
    bias_tensor: str | None


@dataclass(frozen=True)
class Norm:
    """Batch normalisation: `(v - mean) * gain + shift`, float32, per channel."""

    mean_tensor: str
    gain_tensor: str
    shift_tensor: str


@dataclass(frozen=True)
class Activation:
    """What comes after the sum.

    Args:
        kind: 'none'; 'relu': `max(v, 0)`; 'relu6': `clip(v, 0, 6)`; 'leaky': `v` above 0, else `v * slope`; 'shift':
            `v + offset`; 'hsigmoid': `clip(v + offset, 0, top) / top`; 'hswish': `v` times that.
        slope_tensor: float32, per channel or one number; 'leaky' only.
        offset, top: As above.
    """

    kind: Literal["none", "relu", "relu6", "leaky", "shift", "hsigmoid", "hswish"] = "none"
    slope_tensor: str | None = None
    offset: float = 0.0
    top: float = 0.0


@dataclass(frozen=True)
class Requantise:
    """Real numbers to codes; `c` is the clip, `v` was divided by `divisor` first where there is one.

    unsigned: `tround(clip(v, 0, c) / c * n)`; signed: `clip(tround(clip(v, -c, c) / c * n), -n, n - 1)`; odd:
    `2 tround((clip(v, -c, c) + c) / 2c * n) - n`.
    """

    kind: Literal["unsigned", "signed", "odd"]
    n: int
    clip: float
    divisor: float | None = None


@dataclass(frozen=True)
class Finish(Op):
    """From sums or codes through normalisation and activation to codes; each part only where it is given.

    Args:
        grid: What the input codes stand for; None where the input is sums for `affine`, or real numbers.
        affine: From sums to real numbers.
        norm: Batch normalisation.
        activation: Activation.
        requantise: Back to codes; None leaves real numbers, which is float32.
        axis: Axis of the channels, 1 or -1.
    """

    grid: Grid | None = None
    affine: Affine | None = None
    norm: Norm | None = None
    activation: Activation = Activation()
    requantise: Requantise | None = None
    axis: int = 1


@dataclass(frozen=True)
class Combine(Op):
    """Sum or product of the two values, then `activation`, then `requantise`.

    Args:
        kind: 'add' or 'mul', with broadcasting.
        left, right: What the inputs' codes stand for; None for real numbers.
        activation: Activation.
        requantise: Back to codes, or None.
    """

    kind: Literal["add", "mul"]
    left: Grid | None
    right: Grid | None
    activation: Activation = Activation()
    requantise: Requantise | None = None


@dataclass(frozen=True)
class AverageCodes(Op):
    """Shortcut of Txx, Xs1, Xs2: mean of `half_even(value * n)` of both inputs, half-way cases to the even code."""

    left: Grid
    right: Grid
    n: int


@dataclass(frozen=True)
class FloatMean(Op):
    """Mean of the numbers that codes stand for: added in float32, then divided by `float32(count)`; real numbers.

    Args:
        grid: What the input's codes stand for; None for real numbers.
        kernel, stride: Windows over height and width, each added row by row, one number after the other. Empty: all
            positions, in the order of `float_sums.positions_sum` with the rows one after the other.
        keepdim: Without windows, leave height and width as 1.
    """

    grid: Grid | None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    keepdim: bool = True


@dataclass(frozen=True)
class Maximum(Op):
    """Greater one of two codes."""


@dataclass(frozen=True)
class Enlarge(Op):
    """Each value becomes a patch of `kernel`: repeated ('nearest'), or in its upper left with `value` around ('zero').

    Args:
        kernel: Height and width.
        mode: As above.
        value: Code that fills the rest.
    """

    kernel: tuple[int, ...]
    mode: Literal["nearest", "zero"]
    value: int = 0


@dataclass(frozen=True)
class TableRows(Op):
    """Rows of a table of codes by index: real numbers, cut to integers, to codes with one more axis.

    Args:
        table_tensor: Codes, shape `(rows, length)`.
    """

    table_tensor: str

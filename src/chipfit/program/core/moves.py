"""The core operations of an integer program that move codes, select some of them or add them up.

The axes of `dim`, `dims` and `shape` count the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chipfit.program.core.base import Op


@dataclass(frozen=True)
class MaxPool(Op):
    """Largest code of each window, as `torch.nn.functional.max_pool1d` and `max_pool2d`; padding never wins."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool


@dataclass(frozen=True)
class SumPool(Op):
    """Sum of each window, without padding: an average whose window is a power of two, at that many times the scale."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Sum(Op):
    """Sum over axes: a mean over a power of two of values, at that many times the scale."""

    dims: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True)
class Max(Op):
    """Largest code along axes, as `torch.amax`."""

    dims: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True)
class Pad(Op):
    """Padding as `torch.nn.functional.pad`, `pads` from the last axis backwards; 'constant' fills in `value`."""

    pads: tuple[int, ...]
    mode: Literal["constant", "reflect", "replicate", "circular"]
    value: int


@dataclass(frozen=True)
class Reshape(Op):
    """New shape, the batch axis included; exactly one axis is -1, the one that grows with the batch."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Permute(Op):
    """Axes in a new order, as `Tensor.permute`."""

    dims: tuple[int, ...]


@dataclass(frozen=True)
class Slice(Op):
    """`x[start:stop:step]` along an axis; `stop` None is the end, `step` at least 1. Never the batch axis."""

    dim: int
    start: int
    stop: int | None
    step: int


@dataclass(frozen=True)
class Select(Op):
    """One index along an axis, which disappears; negative counts from the end."""

    dim: int
    index: int


@dataclass(frozen=True)
class Flip(Op):
    """Reverse the order along axes."""

    dims: tuple[int, ...]


@dataclass(frozen=True)
class Cat(Op):
    """Concatenation of any number of edges of the same scale."""

    dim: int

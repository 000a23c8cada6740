"""What a chip is to chipfit: a frozen description, and layers that can be told what to compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class ArrayGeometry:
    """Size of an analog array.

    Args:
        rows: Weight rows.
        columns: Outputs that one pass computes.
        rows_per_pass: Rows that one operation can drive.
        bias_rows: Logical rows for biases.
    """

    rows: int
    columns: int
    rows_per_pass: int
    bias_rows: int


@dataclass(frozen=True)
class Chip:
    """Description of a chip.

    Args:
        name: Short name, as in `chipfit.chip(name)`.
        vendor: Folder under `chipfit.chips`.
        title: Full name.
        activation_bits: Widths of inputs and outputs.
        weight_bits: Widths of weights.
        g_range: Smallest and largest divisor of an accumulator, where the chip divides by one.
        rounding: Rounding rule of the silicon.
        array: Geometry of the analog array, where there is one.
        operators: Chip operator by the name of the torch module that it stands for.
        source: Where the numbers come from.
    """

    name: str
    vendor: str
    title: str
    activation_bits: tuple[int, ...]
    weight_bits: tuple[int, ...]
    g_range: tuple[int, int] | None = None
    rounding: str | None = None
    array: ArrayGeometry | None = None
    operators: Mapping[str, str] = field(default_factory=dict, hash=False)
    source: str = ""


@runtime_checkable
class ChipLayer(Protocol):
    """A layer that computes what a chip computes; one with noise has its level too, as `noise_level`."""

    mode: str
    layer_name: str

    def set_mode(self, mode: str, level: float | None = None, rounding: str | None = None) -> None:
        """Choose what the layer computes from now on."""

    def freeze_scales(self, frozen: bool = True) -> None:
        """Keep the scales through training, or let training find them anew."""

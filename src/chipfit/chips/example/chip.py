"""The chip as data."""

from __future__ import annotations

from chipfit.hardware import Chip

EXAMPLE = Chip(
    name="example",
    vendor="example",
    title="Example NPU, int8, weights scaled a channel",
    activation_bits=(8,),
    weight_bits=(8,),
    rounding="half_even",
    operators={"Linear": "NpuLinear", "Conv2d": "NpuConv2d"},
    source="docs/add-a-chip.md; it exists nowhere",
)

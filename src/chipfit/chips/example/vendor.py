"""The chip as data, and by the contract."""

from __future__ import annotations

from chipfit.chips.example.conversion import map_operation
from chipfit.chips.example.fitting import FITTING
from chipfit.chips.example.layers import NpuLayer
from chipfit.chips.example.program import LOWERING
from chipfit.hardware import Chip
from chipfit.vendor import Vendor

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
VENDOR = Vendor(
    name="example",
    chips=(EXAMPLE,),
    layers=(NpuLayer,),
    map_operation=map_operation,
    fitting=FITTING,
    lowering=LOWERING,
)

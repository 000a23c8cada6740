"""The chip by the contract."""

from __future__ import annotations

from chipfit.chips.example.chip import EXAMPLE
from chipfit.chips.example.conversion import map_operation
from chipfit.chips.example.fitting import FITTING
from chipfit.chips.example.layers import NpuLayer
from chipfit.chips.example.program import LOWERING
from chipfit.program.comparing import Comparing
from chipfit.vendor import Vendor

VENDOR = Vendor(
    name="example",
    chips=(EXAMPLE,),
    layers=(NpuLayer,),
    map_operation=map_operation,
    fitting=FITTING,
    lowering=LOWERING,
    comparing=Comparing(),
)

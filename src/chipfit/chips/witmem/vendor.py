"""Witmem by the contract."""

from __future__ import annotations

from dataclasses import replace

from chipfit.chips.witmem.conversion.rules import map_operation
from chipfit.chips.witmem.fitting import FITTING
from chipfit.chips.witmem.formats import FORMATS, FUNCTIONS
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.program.comparing import COMPARING
from chipfit.chips.witmem.program.lowering.table import LOWERING, ROUNDING
from chipfit.chips.witmem.program.rules import DIALECT
from chipfit.chips.witmem.wtm2101 import WTM2101
from chipfit.vendor import Vendor

VENDOR = Vendor(
    name="witmem",
    chips=(WTM2101,),
    layers=(WitinLayer,),
    map_operation=map_operation,
    fitting=FITTING,
    dialect=DIALECT,
    formats=FORMATS,
    functions=FUNCTIONS,
    options={
        "lower": {"rounding": ROUNDING},
        "set_mode": {"rounding": replace(ROUNDING, default=None)},
    },
    rank=0,
    demos={WTM2101.name: "chipfit.chips.witmem.demo:run"},
    lowering=LOWERING,
    comparing=COMPARING,
)

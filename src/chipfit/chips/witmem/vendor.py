"""Witmem by the contract."""

from __future__ import annotations

from dataclasses import replace

from chipfit.chips.witmem.conversion.rules import map_operation
from chipfit.chips.witmem.fitting import FITTING
from chipfit.chips.witmem.formats import FORMATS, FUNCTIONS
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.program.rules import DIALECT
from chipfit.chips.witmem.rounding import RULES
from chipfit.chips.witmem.wtm2101 import WTM2101
from chipfit.vendor import Option, Vendor

_ROUNDING = Option(
    None, (*RULES, None), "'wtm2101' is what the silicon computes, 'witin_nn' what the vendor's library trains"
)

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
        "lower": {"rounding": replace(_ROUNDING, default="wtm2101")},
        "set_mode": {"rounding": _ROUNDING},
    },
    rank=0,
    demos={WTM2101.name: "chipfit.chips.witmem.demo:run"},
)

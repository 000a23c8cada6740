"""Witmem by the contract."""

from __future__ import annotations

from chipfit.chips.witmem.conversion.rules import map_operation
from chipfit.chips.witmem.formats import FORMATS, FUNCTIONS
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.program.comparing import COMPARING
from chipfit.chips.witmem.program.lowering.table import LOWERING, ROUNDING
from chipfit.chips.witmem.wtm2101 import WTM2101
from chipfit.vendor import Vendor

VENDOR = Vendor(
    name="witmem",
    chips=(WTM2101,),
    layers=(WitinLayer,),
    map_operation=map_operation,
    lowering=LOWERING,
    comparing=COMPARING,
    formats=FORMATS,
    functions=FUNCTIONS,
    options={"lower": {"rounding": ROUNDING}},
    demo="chipfit.chips.witmem.demo:run",
)

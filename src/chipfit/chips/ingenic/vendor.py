"""Ingenic by the contract."""

from __future__ import annotations

from chipfit.chips.ingenic.conversion.rules import FEATURES, map_operation
from chipfit.chips.ingenic.formats import FORMATS, FUNCTIONS
from chipfit.chips.ingenic.program.comparing import COMPARING
from chipfit.chips.ingenic.program.lowering.table import KINDS, LOWERING
from chipfit.chips.ingenic.targets import CHIPS
from chipfit.vendor import Vendor

VENDOR = Vendor(
    name="ingenic",
    chips=CHIPS,
    layers=KINDS,
    map_operation=map_operation,
    features=FEATURES,
    lowering=LOWERING,
    comparing=COMPARING,
    formats=FORMATS,
    functions=FUNCTIONS,
    demo="chipfit.chips.ingenic.demo:run",
)

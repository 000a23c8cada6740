"""Ingenic by the contract."""

from __future__ import annotations

from chipfit.chips.ingenic.conversion.rules import FEATURES, map_operation
from chipfit.chips.ingenic.formats import FORMATS, FUNCTIONS
from chipfit.chips.ingenic.program.lowering.layers import LAYERS, REFUSED
from chipfit.chips.ingenic.targets import CHIPS
from chipfit.vendor import Vendor

VENDOR = Vendor(
    name="ingenic",
    chips=CHIPS,
    layers=tuple(kind for kind in (*LAYERS, *REFUSED) if kind.__module__.startswith("chipfit.")),
    map_operation=map_operation,
    features=FEATURES,
    formats=FORMATS,
    functions=FUNCTIONS,
    demos={"t40": "chipfit.chips.ingenic.demo:run"},
)

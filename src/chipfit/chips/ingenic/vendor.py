"""Ingenic by the contract."""

from __future__ import annotations

from chipfit.chips.ingenic.calibration.calibrate import TRAINED_AS
from chipfit.chips.ingenic.calibration.nearest import CODES
from chipfit.chips.ingenic.conversion.rules import FEATURES, map_operation
from chipfit.chips.ingenic.fitting import FITTING
from chipfit.chips.ingenic.formats import FORMATS, FUNCTIONS
from chipfit.chips.ingenic.program.comparing import COMPARING
from chipfit.chips.ingenic.program.lowering.table import KINDS, LOWERING
from chipfit.chips.ingenic.program.rules import DIALECT
from chipfit.chips.ingenic.targets import CHIPS
from chipfit.vendor import Option, Vendor

VENDOR = Vendor(
    name="ingenic",
    chips=CHIPS,
    layers=KINDS,
    map_operation=map_operation,
    features=FEATURES,
    fitting=FITTING,
    dialect=DIALECT,
    lowering=LOWERING,
    comparing=COMPARING,
    formats=FORMATS,
    functions=FUNCTIONS,
    options={
        "calibrate": {
            "trained_as": Option(
                None,
                (*TRAINED_AS, None),
                "'float' if the weights were trained without normalisation by the clips, 'quant' if with it; None "
                "means 'quant' for a network that was calibrated before, and 'float' for any other",
            ),
            "codes": Option(
                None,
                (*CODES, None),
                "'nearest' if weights on a grid with zero (Txx, Xs1, Xs2, and depthwise convolutions everywhere) get "
                "the nearest codes, 'vendor' if those that the vendor's quantiser gives them as they are; None means "
                "'nearest' for the weights of a converted float network and for those that have them, and 'vendor' "
                "for all others",
            ),
        }
    },
    rank=1,
    demos={"t40": "chipfit.chips.ingenic.demo:run"},
)

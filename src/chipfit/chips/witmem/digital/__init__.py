"""The layers of the digital unit, from their rooms."""

from __future__ import annotations

from chipfit.chips.witmem.digital.activations import WitinGELU, WitinPReLU, WitinSigmoid, WitinTanh
from chipfit.chips.witmem.digital.elementwise import (
    WitinCat,
    WitinElementAdd,
    WitinElementDivide,
    WitinElementMul,
    WitinMatMul,
)
from chipfit.chips.witmem.digital.norms import WitinBatchNorm2d, WitinClnBn2d, WitinMean
from chipfit.chips.witmem.digital.roots import WitinHypot, WitinInvSqrt, WitinSqrt

__all__ = [
    "WitinBatchNorm2d",
    "WitinCat",
    "WitinClnBn2d",
    "WitinElementAdd",
    "WitinElementDivide",
    "WitinElementMul",
    "WitinGELU",
    "WitinHypot",
    "WitinInvSqrt",
    "WitinMatMul",
    "WitinMean",
    "WitinPReLU",
    "WitinSigmoid",
    "WitinSqrt",
    "WitinTanh",
]

"""The layers."""

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.digital import (
    WitinBatchNorm2d,
    WitinCat,
    WitinClnBn2d,
    WitinElementAdd,
    WitinElementDivide,
    WitinElementMul,
    WitinGELU,
    WitinHypot,
    WitinInvSqrt,
    WitinMatMul,
    WitinMean,
    WitinPReLU,
    WitinSigmoid,
    WitinSqrt,
    WitinTanh,
)
from chipfit.chips.witmem.gru.layers import WitinGru, WitinGruCell

__all__ = [
    "WitinBatchNorm2d",
    "WitinCat",
    "WitinClnBn2d",
    "WitinConv1d",
    "WitinConv2d",
    "WitinConvTranspose2d",
    "WitinElementAdd",
    "WitinElementDivide",
    "WitinElementMul",
    "WitinGELU",
    "WitinGru",
    "WitinGruCell",
    "WitinHypot",
    "WitinInvSqrt",
    "WitinLinear",
    "WitinMatMul",
    "WitinMean",
    "WitinPReLU",
    "WitinSigmoid",
    "WitinSqrt",
    "WitinTanh",
]

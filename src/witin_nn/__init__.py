"""The vendor's package name: scripts written for `witin_nn` run on chipfit unchanged. No logic here."""

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.config.config import (
    GlobalConfigFactory,
    LayerConfigFactory,
    WitinGlobalConfig,
    WitinLayerConfig,
)
from chipfit.chips.witmem.config.enums import (
    HandleNegInType,
    HardwareType,
    NoiseModel,
    ParamType,
    TargetPlatform,
)
from chipfit.chips.witmem.config.infos import WITIN_NN_GLOBAL_INFOS, empty_witmem_cache
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
    "WITIN_NN_GLOBAL_INFOS",
    "AutoScale",
    "GlobalConfigFactory",
    "HandleNegInType",
    "HardwareType",
    "LayerConfigFactory",
    "NoiseModel",
    "ParamType",
    "TargetPlatform",
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
    "WitinGlobalConfig",
    "WitinGru",
    "WitinGruCell",
    "WitinHypot",
    "WitinInvSqrt",
    "WitinLayerConfig",
    "WitinLinear",
    "WitinMatMul",
    "WitinMean",
    "WitinPReLU",
    "WitinSigmoid",
    "WitinSqrt",
    "WitinTanh",
    "empty_witmem_cache",
]

"""The vendor's package name: scripts written for `witin_nn` run on chipfit unchanged. No logic here."""

from chipfit.chips.witmem.array import WitinConv1d, WitinConv2d, WitinConvTranspose2d, WitinLinear
from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.config import GlobalConfigFactory, LayerConfigFactory, WitinGlobalConfig, WitinLayerConfig
from chipfit.chips.witmem.enums import HandleNegInType, HardwareType, NoiseModel, ParamType, TargetPlatform

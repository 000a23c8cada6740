"""Configuration and enumerations: what the vendor's user-editable ConfigFactory.py imports."""

from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.config.config import SingletonMeta, WitinGlobalConfig, WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, HardwareType, NoiseModel, ParamType, TargetPlatform

__all__ = [
    "AutoScale",
    "HandleNegInType",
    "HardwareType",
    "NoiseModel",
    "ParamType",
    "SingletonMeta",
    "TargetPlatform",
    "WitinGlobalConfig",
    "WitinLayerConfig",
]

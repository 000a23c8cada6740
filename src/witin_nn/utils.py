"""The vendor's small helpers."""

from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.config.infos import WITIN_NN_GLOBAL_INFOS, empty_witmem_cache

__all__ = ["WITIN_NN_GLOBAL_INFOS", "AutoScale", "empty_witmem_cache"]

"""The manual's section 2.3 names this file; its factories, from `chipfit.chips.witmem.config.presets`."""

from chipfit.chips.witmem.config.presets import GlobalConfigFactory, LayerConfigFactory

__all__ = ["GlobalConfigFactory", "LayerConfigFactory"]

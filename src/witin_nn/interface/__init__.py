"""The ready-made configurations."""

from witin_nn.interface.ConfigFactory import GlobalConfigFactory, LayerConfigFactory

__all__ = ["GlobalConfigFactory", "LayerConfigFactory"]

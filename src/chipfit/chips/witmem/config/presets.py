"""The vendor's ready-made configurations, value for value (spec/witmem-array.md, section 2).

Each changes the one global configuration, sets what it lists and nothing else, and prints nothing. What a preset leaves
alone stays as the one before left it: after a noise preset the vendor's quantisation preset still trains with noise.
"""

from __future__ import annotations

from typing import Any

import torch

from chipfit.chips.witmem.config.config import WitinGlobalConfig, WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, NoiseModel, TargetPlatform

_QUANTISED: dict[str, Any] = {
    "use_quantization": True,
    "handle_neg_in": HandleNegInType.PN,
    "x_quant_bits": 8,
    "y_quant_bits": 8,
    "scale_x": 16,
    "scale_y": 16,
    "scale_weight": 16,
}
_QAT: dict[str, Any] = {**_QUANTISED, "auto_scale_updata_step": 20, "use_auto_scale": True}
_NAT: dict[str, Any] = {**_QUANTISED, "noise_model": NoiseModel.NORMAL, "noise_level": 4}
_WTM2101: dict[str, Any] = {"target_platform": TargetPlatform.WTM2101}


class GlobalConfigFactory:
    """Ready-made global configurations. Each changes the one global configuration and returns it.

    Example:
        >>> config = GlobalConfigFactory.get_qat_train_wtm2100_config()
        >>> config.handle_neg_in.name, config.scale_x, config.auto_scale_updata_step
        ('PN', 16, 20)
    """

    @staticmethod
    def get_dafault_config() -> WitinGlobalConfig:
        """The global configuration as it stands (the vendor's spelling)."""
        return WitinGlobalConfig()

    @staticmethod
    def get_default_config() -> WitinGlobalConfig:
        """The global configuration as it stands."""
        return WitinGlobalConfig()

    @staticmethod
    def show_defaut_config() -> WitinGlobalConfig:
        """Set the options that the vendor's users edit to their defaults (the vendor's spelling).

        `target_platform`, `output_fp_clip`, `x_clip` and `weight_quant_bits` stay. Despite its name it prints nothing.
        """
        return _set(
            noise_model=NoiseModel.NORMAL,
            use_quantization=False,
            noise_level=0,
            to_linear=False,
            w_clip=None,
            bias_row_N=8,
            handle_neg_in=HandleNegInType.FALSE,
            x_quant_bits=8,
            y_quant_bits=8,
            bias_d=torch.tensor(0),
            scale_x=1,
            scale_y=1,
            scale_weight=1,
            shift_num=1.0,
            use_auto_scale=True,
            auto_scale_updata_step=2,
        )

    @staticmethod
    def get_float_train_torch_config() -> WitinGlobalConfig:
        """Float training: what plain torch computes."""
        return _set(use_quantization=False)

    @staticmethod
    def get_qat_train_wtm2100_config() -> WitinGlobalConfig:
        """Quantisation-aware training: PN, 8 bits, scales of 16 until auto-scale has watched 20 steps.

        The noise level stays as it is; after a noise preset this one trains with noise, too.
        """
        return _set(**_QAT)

    @staticmethod
    def get_qat_nat_train_wtm2100_config() -> WitinGlobalConfig:
        """Quantisation- and noise-aware training: PN, 8 bits, scales of 16, NORMAL noise at level 4.

        Auto-scale stays as it is.
        """
        return _set(**_NAT)

    @staticmethod
    def get_float_train_wtm2101_config() -> WitinGlobalConfig:
        """Float training for the WTM2101; noise is off (the vendor's demo calls this, its library lacks it)."""
        return _set(use_quantization=False, noise_level=0, **_WTM2101)

    @staticmethod
    def get_qat_train_wtm2101_config() -> WitinGlobalConfig:
        """As `get_qat_train_wtm2100_config`, for the WTM2101 and without noise (not in the vendor's library)."""
        return _set(noise_level=0, **_QAT, **_WTM2101)

    @staticmethod
    def get_qat_nat_train_wtm2101_config() -> WitinGlobalConfig:
        """As `get_qat_nat_train_wtm2100_config`, for the WTM2101 (not in the vendor's library)."""
        return _set(**_NAT, **_WTM2101)


class LayerConfigFactory:
    """Ready-made layer configurations."""

    @staticmethod
    def get_default_config() -> WitinLayerConfig:
        """A layer configuration that copies the global one.

        Example:
            >>> LayerConfigFactory.get_default_config().bias_row_N
            8
        """
        return WitinLayerConfig(G_algo=1)

    @staticmethod
    def get_my_config() -> WitinLayerConfig:
        """The vendor's example of a changed one: 9-bit input, 32 codes per unit of x."""
        return WitinLayerConfig(G_algo=1, x_quant_bits=9, scale_x=32)


def _set(**options: Any) -> WitinGlobalConfig:
    config = WitinGlobalConfig()
    for name, value in options.items():
        setattr(config, name, value)
    return config

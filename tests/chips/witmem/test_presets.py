"""The vendor's presets, value for value, on the one global configuration; and what the scripts around them see."""

from typing import Any

import pytest
import torch

from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinGlobalConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, HardwareType, NoiseModel, TargetPlatform
from chipfit.chips.witmem.config.options import OPTIONS
from chipfit.chips.witmem.config.presets import GlobalConfigFactory, LayerConfigFactory
from chipfit.chips.witmem.digital import WitinElementAdd

QAT: dict[str, Any] = {
    "use_quantization": True,
    "handle_neg_in": HandleNegInType.PN,
    "x_quant_bits": 8,
    "y_quant_bits": 8,
    "scale_x": 16,
    "scale_y": 16,
    "scale_weight": 16,
    "auto_scale_updata_step": 20,
    "use_auto_scale": True,
}
NAT: dict[str, Any] = {
    "noise_model": NoiseModel.NORMAL,
    "use_quantization": True,
    "noise_level": 4,
    "handle_neg_in": HandleNegInType.PN,
    "x_quant_bits": 8,
    "y_quant_bits": 8,
    "scale_x": 16,
    "scale_y": 16,
    "scale_weight": 16,
}
DEFAULTS: dict[str, Any] = {
    "noise_model": NoiseModel.NORMAL,
    "use_quantization": False,
    "noise_level": 0,
    "to_linear": False,
    "w_clip": None,
    "bias_row_N": 8,
    "handle_neg_in": HandleNegInType.FALSE,
    "x_quant_bits": 8,
    "y_quant_bits": 8,
    "bias_d": torch.tensor(0),
    "scale_x": 1,
    "scale_y": 1,
    "scale_weight": 1,
    "shift_num": 1.0,
    "use_auto_scale": True,
    "auto_scale_updata_step": 2,
}
WTM2101 = {"target_platform": TargetPlatform.WTM2101}
SETS: dict[str, dict[str, Any]] = {
    "get_dafault_config": {},
    "get_default_config": {},
    "get_float_train_torch_config": {"use_quantization": False},
    "get_qat_train_wtm2100_config": QAT,
    "get_qat_nat_train_wtm2100_config": NAT,
    "show_defaut_config": DEFAULTS,
    # not in the vendor's library
    "get_float_train_wtm2101_config": {"use_quantization": False, "noise_level": 0, **WTM2101},
    "get_qat_train_wtm2101_config": {**QAT, "noise_level": 0, **WTM2101},
    "get_qat_nat_train_wtm2101_config": {**NAT, **WTM2101},
}
ELSEWHERE: dict[str, Any] = {
    "target_platform": TargetPlatform.HE01,
    "hardware": HardwareType.VPU,
    "w_clip": 0.75,
    "bias_row_N": 3,
    "noise_model": NoiseModel.MBS,
    "noise_level": 7,
    "to_linear": True,
    "use_auto_scale": False,
    "auto_scale_updata_step": 5,
    "scale_x": 3,
    "scale_y": 5,
    "scale_weight": 7,
    "scale_x_left": 9,
    "scale_x_right": 11,
    "handle_neg_in": HandleNegInType.Shift,
    "shift_num": 2.5,
    "x_quant_bits": 9,
    "y_quant_bits": 10,
    "weight_quant_bits": 4,
    "x_left_quant_bits": 11,
    "x_right_quant_bits": 12,
    "bias_d": torch.tensor([2.0]),
    "output_fp_clip": 1.5,
    "x_clip": 2.5,
    "debug_mode": True,
    "cln_simple": True,
    "mean_sum_quant_bits": 20,
    "sqrt_left_shift_bits": 4,
    "gelu_shift_num": 0.25,
    "rounding": "wtm2101",
}


def values(config: Any) -> dict[str, Any]:
    read = {name: getattr(config, name) for name in OPTIONS}
    return read | {"bias_d": read["bias_d"].tolist()}


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_a_preset_sets_what_it_lists_and_nothing_else(
    name: str, quantised: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = WitinGlobalConfig()
    assert ELSEWHERE.keys() | {"use_quantization", "conv2d_split_N"} == OPTIONS.keys()
    for option, value in {**ELSEWHERE, "use_quantization": quantised}.items():
        setattr(shared, option, value)
    want = values(shared) | SETS[name]
    want["bias_d"] = want["bias_d"].tolist() if isinstance(want["bias_d"], torch.Tensor) else want["bias_d"]
    assert getattr(GlobalConfigFactory, name)() is shared
    assert values(shared) == want
    assert values(LayerConfigFactory.get_default_config()) == want
    assert capfd.readouterr() == ("", "")


def test_presets_start_from_the_defaults_of_the_library() -> None:
    config = GlobalConfigFactory.get_qat_train_wtm2100_config()
    assert values(config) == values(WitinGlobalConfig()) | QAT
    assert (config.target_platform, config.noise_level) == (TargetPlatform.ANKE, 0)


def test_noise_stays_after_a_noise_preset_as_upstream() -> None:
    GlobalConfigFactory.get_qat_nat_train_wtm2100_config()
    GlobalConfigFactory.get_qat_train_wtm2100_config()
    layer = WitinLinear(3, 2, layer_config=LayerConfigFactory.get_default_config())
    assert (layer.mode, layer.noise_level) == ("nat", 4)
    GlobalConfigFactory.get_float_train_torch_config()
    assert WitinLinear(3, 2, layer_config=LayerConfigFactory.get_default_config()).mode == "float"
    GlobalConfigFactory.get_qat_train_wtm2101_config()  # chipfit's own: quantisation only, as its name says
    assert WitinLinear(3, 2, layer_config=LayerConfigFactory.get_default_config()).mode == "quant"


def test_a_layer_keeps_the_preset_it_was_configured_under() -> None:
    GlobalConfigFactory.get_qat_train_wtm2100_config()
    config = LayerConfigFactory.get_default_config()
    before = values(config)
    GlobalConfigFactory.get_qat_nat_train_wtm2100_config()
    GlobalConfigFactory.show_defaut_config()
    assert values(config) == before
    mine = LayerConfigFactory.get_my_config()
    assert values(mine) == values(WitinGlobalConfig()) | {"x_quant_bits": 9, "scale_x": 32}
    assert mine.G_algo == 1


def test_operands_of_two_inputs_do_not_follow_scale_x() -> None:
    GlobalConfigFactory.get_qat_train_wtm2100_config()
    layer = WitinElementAdd(layer_config=LayerConfigFactory.get_default_config())
    assert layer.scales_in_force() == {"x1": 1, "x2": 1, "y": 16}


def test_qat_preset_trains_twenty_steps_at_sixteen() -> None:
    GlobalConfigFactory.get_qat_train_wtm2100_config()
    layer = WitinLinear(4, 3, layer_config=LayerConfigFactory.get_default_config())
    for _ in range(20):
        assert set(layer.scales_in_force().values()) == {16}
        layer(torch.full((2, 4), -3.0))
    assert layer.scales_in_force()["x"] == 64  # 9 bits over a largest magnitude of 3
    layer.train()  # the next epoch watches anew and keeps these meanwhile
    layer(torch.full((2, 4), 12.0))
    assert layer.scales_in_force()["x"] == 64

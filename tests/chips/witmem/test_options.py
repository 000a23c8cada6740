"""What each option accepts and refuses: every row of the validation table of spec/witmem-array.md, section 2."""

import math

import pytest
import torch

from chipfit.chips.witmem.config.config import WitinGlobalConfig, WitinLayerConfig
from chipfit.chips.witmem.config.enums import (
    HandleNegInType,
    HardwareType,
    NoiseModel,
    ParamType,
    TargetPlatform,
)
from chipfit.chips.witmem.config.options import OPTIONS, meant_option
from chipfit.errors import ChipfitWarning, InvalidTypeError, InvalidValueError, UnsupportedError

BITS = ["x_quant_bits", "y_quant_bits", "weight_quant_bits", "x_left_quant_bits", "x_right_quant_bits"]
SCALES = ["scale_x", "scale_y", "scale_weight", "scale_x_left", "scale_x_right"]
CLIPS = ["w_clip", "output_fp_clip", "x_clip"]
FLAGS = ["use_quantization", "use_auto_scale", "to_linear", "debug_mode", "cln_simple"]

DEFAULTS = {
    "target_platform": TargetPlatform.ANKE,
    "hardware": HardwareType.ARRAY,
    "noise_model": NoiseModel.NORMAL,
    "noise_level": 0,
    "use_quantization": False,
    "to_linear": False,
    "bias_row_N": 8,
    "handle_neg_in": HandleNegInType.FALSE,
    "x_quant_bits": 8,
    "y_quant_bits": 8,
    "bias_d": torch.tensor(0),
    "scale_x": 1,
    "scale_y": 1,
    "scale_weight": 1,
    "sqrt_left_shift_bits": 8,
    "shift_num": 1.0,
    "output_fp_clip": None,
    "x_clip": None,
    "w_clip": None,
    "use_auto_scale": True,
    "auto_scale_updata_step": 2,
    "weight_quant_bits": 8,
    "conv2d_split_N": 1000000,
    "debug_mode": False,
    "cln_simple": False,
    "mean_sum_quant_bits": 55,
    "scale_x_left": 1,
    "scale_x_right": 1,
    "x_left_quant_bits": 8,
    "x_right_quant_bits": 8,
    "gelu_shift_num": None,
}

ACCEPTED = (
    [(name, value) for name in BITS for value in (8, 13, 16, 0, -1, True)]
    + [("noise_level", value) for value in (0, 9, 2.5, 0.5, 1e-7, True)]
    + [("bias_row_N", value) for value in (1, 8, 32)]
    + [(name, value) for name in SCALES for value in (32, 0.5, 0, -4, -0.5)]
    + [("shift_num", value) for value in (0, -3, 1.5)]
    + [(name, value) for name in CLIPS for value in (None, 0, 1, 0.25, -2)]
    + [(name, value) for name in FLAGS for value in (True, False)]
    + [("auto_scale_updata_step", value) for value in (0, -1, 200)]
    + [("sqrt_left_shift_bits", value) for value in (8, 0, -2)]
    + [("bias_d", torch.zeros(3, 2)), ("bias_d", torch.tensor(0.5))]
    + [("handle_neg_in", kind) for kind in HandleNegInType]
    + [("noise_model", kind) for kind in NoiseModel]
    + [("hardware", kind) for kind in HardwareType]
    + [("target_platform", kind) for kind in TargetPlatform]
    + [("rounding", "witin_nn"), ("rounding", "wtm2101")]
)
WRONG_TYPE = (
    [(name, value) for name in BITS for value in (8.0, "8", None)]
    + [("noise_level", "1")]
    + [("bias_row_N", 8.0), ("bias_row_N", None)]
    + [(name, value) for name in SCALES for value in ("1", None, torch.tensor(1.0))]
    + [("shift_num", "a"), ("shift_num", None)]
    + [(name, "a") for name in CLIPS]
    + [(name, value) for name in FLAGS for value in (1, 0, None, "True")]
    + [("auto_scale_updata_step", value) for value in (2.0, "2", None)]
    + [("sqrt_left_shift_bits", value) for value in (7, -1, 1)]
    + [("bias_d", 0), ("bias_d", None)]
    + [(name, value) for name in ("handle_neg_in", "noise_model", "hardware", "target_platform") for value in (1, None)]
    + [("handle_neg_in", NoiseModel.NORMAL), ("rounding", None)]
)
WRONG_VALUE = (
    [("noise_level", value) for value in (-1, 10, 100, 9.5, math.nan)]
    + [("bias_row_N", value) for value in (0, -1, 33)]
    + [("rounding", "half_even")]
)


def name_of(value):
    return str(value).replace("\n", "")


@pytest.fixture(params=["global", "layer"])
def config(request):
    """Either configuration; the global one gets its values back afterwards."""
    if request.param == "layer":
        yield WitinLayerConfig(1)
        return
    shared = WitinGlobalConfig()
    before = dict(vars(shared))
    yield shared
    vars(shared).clear()
    vars(shared).update(before)


def test_every_option_has_its_default():
    assert set(OPTIONS) == {*DEFAULTS, "rounding"}
    for name, value in DEFAULTS.items():
        assert OPTIONS[name].default == value, name
        assert type(OPTIONS[name].default) is type(value), name
    assert OPTIONS["rounding"].default == "witin_nn"


@pytest.mark.parametrize(("name", "value"), ACCEPTED, ids=name_of)
def test_accepts(config, name, value):
    setattr(config, name, value)
    assert getattr(config, name) is value
    options = {"use_quantization": True, name: value}  # noise asks for quantisation
    assert getattr(WitinLayerConfig(1, **options), name) is value


@pytest.mark.parametrize(("name", "value"), WRONG_TYPE, ids=name_of)
def test_refuses_a_type(config, name, value):
    before = getattr(config, name)
    with pytest.raises(InvalidTypeError, match=f"{name} type error") as caught:
        setattr(config, name, value)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    assert getattr(config, name) is before
    with pytest.raises(InvalidTypeError, match=name):
        WitinLayerConfig(1, **{name: value})


@pytest.mark.parametrize(("name", "value"), WRONG_VALUE, ids=name_of)
def test_refuses_a_value(config, name, value):
    before = getattr(config, name)
    with pytest.raises(InvalidValueError, match=f"{name} value error.*got.*allowed") as caught:
        setattr(config, name, value)
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, ValueError)
    assert getattr(config, name) is before
    with pytest.raises(InvalidValueError, match=name):
        WitinLayerConfig(1, use_quantization=True, **{name: value})


@pytest.mark.parametrize("value", [1, 1000000, None])
def test_conv2d_split_n_is_reserved(config, value):
    with pytest.raises(UnsupportedError, match="'conv2d_split_N' is unavailable currently") as caught:
        config.conv2d_split_N = value
    assert isinstance(caught.value, AssertionError)
    with pytest.raises(AssertionError, match="unavailable"):
        WitinLayerConfig(1, conv2d_split_N=value)
    assert WitinLayerConfig(1, conv2d_split_N=ParamType.WITIN_GLOBAL).conv2d_split_N == 1000000


@pytest.mark.parametrize(
    ("typed", "meant", "value"),
    [
        ("x_quant_bit", "x_quant_bits", 10),  # the manual's own slip
        ("y_quant_bit", "y_quant_bits", 10),
        ("weight_quant_bit", "weight_quant_bits", 4),
        ("use_quantisation", "use_quantization", True),
        ("auto_scale_update_step", "auto_scale_updata_step", 5),
        ("use_to_linear", "to_linear", True),
        ("Hardware", "hardware", HardwareType.VPU),
        ("handel_neg_in", "handle_neg_in", HandleNegInType.PN),
    ],
)
def test_a_slip_warns_where_it_was_made_and_works_as_meant(config, typed, meant, value):
    with pytest.warns(ChipfitWarning, match=f"'{typed}'; it is taken as '{meant}'") as caught:
        setattr(config, typed, value)
    assert caught[0].filename == __file__
    assert getattr(config, meant) is value
    assert typed not in vars(config)


def test_a_slip_is_checked_like_the_option():
    with pytest.warns(ChipfitWarning), pytest.raises(InvalidTypeError, match="x_quant_bits type error"):
        WitinLayerConfig(1).x_quant_bit = "8"


@pytest.mark.parametrize("name", ["scale_w", "quant", "my_note"])
def test_an_unclear_name_warns_and_has_no_effect(config, name):
    before = {option: getattr(config, option) for option in OPTIONS}
    with pytest.warns(ChipfitWarning, match=f"no option '{name}'; the assignment has no effect") as caught:
        setattr(config, name, 3)
    assert caught[0].filename == __file__
    assert getattr(config, name) == 3
    assert all(getattr(config, option) is value for option, value in before.items())


@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
def test_no_option_is_taken_for_a_slip_of_another():
    """Every one-letter slip of every option means that option or, where two are as near, none."""
    for option in OPTIONS:
        for slip in (option[:-1], option + "s"):
            if option != "conv2d_split_N" and slip not in OPTIONS:
                assert meant_option(slip) in (option, None), slip

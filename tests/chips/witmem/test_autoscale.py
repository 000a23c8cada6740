"""Auto-scale by hand-worked numbers: spec/witmem-array.md, section 5."""

import pytest
import torch

from chipfit.chips.witmem.array.conv import WitinConv2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.errors import CalibrationError, ChipfitWarning

FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift


def linear(weight=0.75, **options):
    """One weight, one input, one output; the bias is zero."""
    options = {"use_quantization": True, "scale_x": 16, "scale_weight": 64, "scale_y": 4} | options
    layer = WitinLinear(1, 1, layer_config=WitinLayerConfig(1, **options))
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.zero_()
    return layer


def io_max(layer):
    return {name: observer.io_max.item() for name, observer in layer.observers.items()}


def in_force(layer):
    return {name: observer.scale for name, observer in layer.observers.items()}


def at(value):
    return torch.tensor([[float(value)]])


def test_observer_attributes_of_the_vendor():
    layer = linear(x_quant_bits=10, y_quant_bits=9, auto_scale_updata_step=5)
    for name, default, bits in (("x", 10.0, 11), ("y", 9.0, 9), ("weight", 8.0, 8)):
        observer = getattr(layer, f"autoscale_{name}_obj")
        assert (observer.calibration_mode, observer.cnt_train, observer.feat_list) == ("Max", 0, [])
        assert (observer.stat_steps, observer.max_default, observer.q_bit_in) == (5, default, bits)
        assert observer.io_max.item() == default
        assert observer.io_max.dim() == 0
        assert not observer.io_max.requires_grad
        assert observer.scale == {"x": 16, "y": 4, "weight": 64}[name]


def test_observer_by_itself():
    observer = AutoScale("Max")
    assert (observer.max_default, observer.q_bit_in, observer.stat_steps) == (8, 8, 200)
    observer.update_statistics(torch.tensor([0.5, -3.0]))
    observer.update_statistics(torch.tensor([[1.0]]))
    assert observer.feat_list == [3.0, 1.0]
    assert (observer.get_scales(), observer.get_scales(10), observer.get_scale_from_max(1.7309, 8)) == (32, 128, 64)
    observer.reset_stat()
    assert (observer.io_max.item(), observer.feat_list, observer.cnt_train) == (8.0, [], 0)


def test_an_epoch_by_hand():
    """n = 2: configured scales for two forwards, then those of the maxima, which stay."""
    layer = linear()
    first = {"x": 16, "y": 4, "weight": 64}
    assert in_force(layer) == first
    layer(at(3.0))  # 3 * 0.75 = 2.25, exact on both grids
    assert io_max(layer) == {"x": 3.0, "y": 2.25, "weight": 0.75}
    assert in_force(layer) == first
    assert layer(at(5.0)).item() == 3.75  # still 4 codes per unit
    assert io_max(layer) == {"x": 5.0, "y": 3.75, "weight": 0.75}
    # x: 2^8 / 2^3, the unsigned range has a bit more; y: 2^7 / 2^2; weight: 2^7 / 2^0
    computed = {"x": 32.0, "y": 32.0, "weight": 128.0}
    assert in_force(layer) == computed
    assert layer(at(7.0)).item() == 127 / 32  # 5.25 saturates
    assert io_max(layer) == {"x": 5.0, "y": 3.75, "weight": 0.75}  # no statistics after n
    assert in_force(layer) == computed


def test_train_starts_an_epoch_and_keeps_the_scales_meanwhile():
    layer = linear()
    for value in (3.0, 5.0):
        layer(at(value))
    computed = in_force(layer)
    layer.train()  # no eval() in between: still a new epoch
    assert io_max(layer) == {"x": 8.0, "y": 8.0, "weight": 8.0}
    assert in_force(layer) == computed
    layer(at(1.0))
    assert io_max(layer) == {"x": 1.0, "y": 0.75, "weight": 0.75}
    assert in_force(layer) == computed
    layer(at(1.0))
    assert in_force(layer) == {"x": 256.0, "y": 128.0, "weight": 128.0}


def test_eval_neither_resets_nor_collects():
    layer = linear()
    layer(at(3.0))
    layer.eval()
    # scales follow from io_max already: x saturates at 255 / 64, and round(255 * 96 / 256) = 96
    assert layer(at(6.0)).item() == 96 / 32
    assert in_force(layer) == {"x": 64.0, "y": 32.0, "weight": 128.0}
    assert io_max(layer) == {"x": 3.0, "y": 2.25, "weight": 0.75}


def test_eval_of_a_fresh_layer_uses_the_defaults_not_the_configuration():
    layer = linear().eval()
    layer(at(3.0))
    # io_max 8 for all: x 2^8 / 2^3, y and weight 2^7 / 2^3
    assert in_force(layer) == {"x": 32.0, "y": 16.0, "weight": 16.0}
    assert layer.g_value == 32.0


@pytest.mark.parametrize("n", [0, -1])
def test_no_steps_means_the_defaults_from_the_second_forward_on(n):
    layer = linear(auto_scale_updata_step=n)
    assert layer(at(3.0)).item() == 2.25
    assert io_max(layer) == {"x": 8.0, "y": 8.0, "weight": 8.0}
    assert in_force(layer) == {"x": 32.0, "y": 16.0, "weight": 16.0}
    layer(at(100.0))
    assert io_max(layer) == {"x": 8.0, "y": 8.0, "weight": 8.0}


def test_one_step():
    layer = linear(auto_scale_updata_step=1)
    assert layer(at(3.0)).item() == 2.25
    assert in_force(layer) == {"x": 64.0, "y": 32.0, "weight": 128.0}


def test_fixed_scales_leave_io_max_alone():
    layer = linear(use_auto_scale=False)
    for mode in (True, True, False):
        layer.train(mode)
        layer(at(3.0))
    assert in_force(layer) == {"x": 16, "y": 4, "weight": 64}
    assert io_max(layer) == {"x": 8.0, "y": 8.0, "weight": 8.0}


def test_float_mode_collects_nothing():
    layer = linear(use_quantization=False)
    layer(at(3.0))
    assert io_max(layer) == {"x": 8.0, "y": 8.0, "weight": 8.0}
    assert layer.observers["x"].cnt_train == 0


def test_configured_scales_are_never_rewritten():
    layer = linear()
    for _ in range(3):
        layer(at(3.0))
    config = layer.layer_config
    assert (config.scale_x, config.scale_weight, config.scale_y) == (16, 64, 4)


@pytest.mark.parametrize(
    ("kind", "negative", "to_linear", "bits"),
    [
        ("linear", FALSE, False, 9),
        ("linear", PN, False, 9),
        ("linear", SHIFT, False, 8),
        ("conv", FALSE, False, 8),  # signed
        ("conv", PN, False, 9),
        ("conv", SHIFT, False, 8),
        ("conv", FALSE, True, 9),
    ],
)
def test_bits_of_the_input_scale(kind, negative, to_linear, bits):
    config = WitinLayerConfig(1, use_quantization=True, handle_neg_in=negative, to_linear=to_linear)
    layer = WitinLinear(2, 2, layer_config=config) if kind == "linear" else WitinConv2d(2, 2, 1, layer_config=config)
    assert layer.autoscale_x_obj.q_bit_in == bits
    layer.autoscale_x_obj.io_max.fill_(5.0)
    assert layer.autoscale_x_obj.get_scales() == 2 ** (bits - 1) / 8


def test_statistics_are_of_the_raw_input_raw_weight_and_unrounded_output():
    layer = linear(weight=1.5, w_clip=0.5, handle_neg_in=SHIFT, shift_num=2.0, scale_y=1)
    layer(at(-1.03))  # code round(-1.03 * 16) = -16 -> -1; weight clipped to 0.5
    seen = io_max(layer)
    assert seen["x"] == pytest.approx(1.03)
    assert seen["weight"] == 1.5
    # (32 - 16) * 32 = 512; the compensation 32 * 32 = 1024 counts as a bias in units of 128: 512 - 1024
    assert seen["y"] == 0.5


def test_output_statistic_is_clipped_by_output_fp_clip():
    config = WitinLayerConfig(1, use_quantization=True, scale_x=16, scale_weight=64, output_fp_clip=0.5)
    layer = WitinConv2d(1, 1, 1, bias=False, layer_config=config)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    layer(torch.full((1, 1, 1, 1), 3.0))
    assert io_max(layer)["y"] == 0.5


def test_output_statistic_ignores_noise():
    torch.manual_seed(0)
    noisy, clean = linear(noise_level=9), linear()
    for layer in (noisy, clean):
        layer(at(3.0))
    assert io_max(noisy) == io_max(clean)


def test_split_layer_watches_the_analog_half_only():
    layer = linear(x_quant_bits=10, scale_x=64)
    layer(at(5.0))  # code 320 = 256 + 64
    assert io_max(layer) == {"x": 5.0, "y": 0.75, "weight": 0.75}


def test_last_clamp_of_a_convolution_uses_the_new_scale():
    """In the forward that changes scale_y the output is still on the old grid but already clipped to the new range."""
    config = WitinLayerConfig(
        1, use_quantization=True, scale_x=16, scale_weight=64, scale_y=1, auto_scale_updata_step=1
    )
    layer = WitinConv2d(1, 1, 1, bias=False, layer_config=config)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    y = layer(torch.full((1, 1, 1, 1), 4.0))
    assert layer.autoscale_y_obj.scale == 32.0
    assert y.item() == 127 / 32


def test_to_linear_does_not_see_pixels_that_no_window_visits():
    def seen(to_linear):
        config = WitinLayerConfig(1, use_quantization=True, scale_x=16, scale_weight=64, to_linear=to_linear)
        layer = WitinConv2d(1, 1, 1, stride=2, layer_config=config)
        x = torch.ones(1, 1, 3, 3)
        x[0, 0, 1, 1] = 7.0
        layer(x)
        return io_max(layer)["x"]

    assert (seen(False), seen(True)) == (7.0, 1.0)


def test_all_zero_input_names_the_layer():
    layer = linear()
    layer.layer_name = "encoder.fc1"
    layer(at(0.0))  # the first of two: more may come
    with pytest.raises(CalibrationError, match=r"encoder\.fc1.*, x: Unable to determine quant scale.*max_v = 0") as e:
        layer(at(0.0))
    assert isinstance(e.value, AssertionError)
    assert isinstance(e.value, ValueError)
    with pytest.raises(CalibrationError, match="Unable to determine quant scale, because max_v = 0"):
        layer(at(0.0))  # not only the first time
    with pytest.raises(CalibrationError, match="Unable to determine quant scale, because max_v = 0"):
        layer.eval()(at(0.0))


def test_skipping_an_all_zero_batch_is_no_way_around_the_statistics():
    """A loop that catches the error and goes on gets its scales from the next batch, not the configured ones."""
    layer = linear(auto_scale_updata_step=1)
    with pytest.raises(CalibrationError):
        layer(at(0.0))
    layer(at(5.0))
    assert in_force(layer) == {"x": 32.0, "y": 32.0, "weight": 128.0}


def test_nan_never_becomes_a_scale():
    layer = linear(auto_scale_updata_step=1)
    with pytest.raises(CalibrationError, match="no scale covers io_max"):
        layer(at("nan"))


def test_frozen_observers_survive_train():
    layer = linear()
    for value in (3.0, 5.0):
        layer(at(value))
    layer.freeze_scales()
    before = io_max(layer)
    layer.train()
    for _ in range(3):
        layer(at(100.0))
    assert io_max(layer) == before
    assert in_force(layer) == {"x": 32.0, "y": 32.0, "weight": 128.0}
    layer.freeze_scales(False)
    layer.train()
    assert io_max(layer) == {"x": 8.0, "y": 8.0, "weight": 8.0}


def test_loaded_statistics_serve_eval_and_train_discards_them_with_a_warning():
    source = linear()
    for value in (3.0, 5.0):
        source(at(value))
    layer = linear()
    layer.load_state_dict(source.state_dict())
    layer.eval()
    assert torch.equal(layer(at(2.0)), source.eval()(at(2.0)))
    assert io_max(layer) == {"x": 5.0, "y": 3.75, "weight": 0.75}
    with pytest.warns(ChipfitWarning, match="discards the io_max values that load_state_dict brought"):
        layer.train()
    assert io_max(layer) == {"x": 8.0, "y": 8.0, "weight": 8.0}


def test_no_warning_where_nothing_is_lost(recwarn):
    layer = linear()
    layer.load_state_dict(linear().state_dict())  # defaults only
    layer.train()
    layer.load_state_dict({"weight": at(1), "bias": torch.zeros(1)}, strict=False)
    layer.train()
    source = linear()
    source(at(3.0))
    layer.load_state_dict(source.state_dict())
    layer(at(3.0))  # training has replaced what was loaded
    layer.train()
    layer.load_state_dict(source.state_dict())
    layer.freeze_scales()
    layer.train()
    assert not recwarn.list

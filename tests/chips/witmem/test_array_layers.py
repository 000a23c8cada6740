"""What an array layer computes in each mode, by hand-worked numbers and against torch's own layers."""

import pytest
import torch
from torch import nn

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, HardwareType

FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift
pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def config(**options):
    fixed = {"use_quantization": True, "use_auto_scale": False, "scale_x": 16, "scale_weight": 64, "scale_y": 8}
    return WitinLayerConfig(1, **(fixed | options))


def one_weight(value, kind=WitinLinear, bias=0.0, **options):
    """A layer with a single weight: what it does to a number."""
    layer = kind(1, 1, *([] if kind is WitinLinear else [1]), layer_config=config(**options))
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.bias.fill_(bias)
    return lambda x: layer(torch.full((1, 1) if kind is WitinLinear else (1, 1, 1, 1), float(x))).item()


PAIRS = [
    (lambda **k: WitinLinear(5, 4, **k), lambda: nn.Linear(5, 4), (3, 5)),
    (lambda **k: WitinConv1d(3, 4, 3, padding=1, **k), lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    (
        lambda **k: WitinConv2d(4, 6, 3, 2, 1, "reflect", 1, 2, **k),
        lambda: nn.Conv2d(4, 6, 3, 2, 1, 1, 2, True, "reflect"),
        (2, 4, 7, 6),
    ),
    (
        lambda **k: WitinConvTranspose2d(4, 3, 3, 2, 1, 1, 1, **k),
        lambda: nn.ConvTranspose2d(4, 3, 3, 2, 1, 1, 1),
        (2, 4, 5, 6),
    ),
]


@pytest.mark.parametrize(("ours", "torchs", "shape"), PAIRS)
@pytest.mark.parametrize("options", [{}, {"noise_level": 0, "output_fp_clip": 0.1, "x_clip": 0.1, "to_linear": False}])
def test_float_mode_is_the_torch_layer(ours, torchs, shape, options):
    layer, plain = ours(layer_config=config(use_quantization=False, **options)), torchs()
    assert isinstance(layer, type(plain))
    plain.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    y, expected = layer(inputs[0]), plain(inputs[1])
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(layer.weight.grad, plain.weight.grad)
    assert torch.equal(layer.bias.grad, plain.bias.grad)


def test_noise_level_has_no_effect_in_float_mode():
    options = config(use_quantization=False)
    options.noise_level = 9  # the setter accepts it
    layer = WitinLinear(5, 4, layer_config=options)
    x = torch.randn(3, 5)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_w_clip_in_float_mode_overwrites_the_weight_without_masking_its_gradient():
    layer = WitinLinear(1, 2, layer_config=config(use_quantization=False, w_clip=0.5))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0], [-0.25]]))
    layer(torch.ones(1, 1)).sum().backward()
    assert layer.weight.flatten().tolist() == [0.5, -0.25]
    assert layer.weight.grad.flatten().tolist() == [1.0, 1.0]


def test_w_clip_in_quantised_mode_masks_the_gradient_and_leaves_the_weight():
    layer = WitinLinear(1, 2, layer_config=config(w_clip=0.5))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0], [0.5]]))
        layer.bias.zero_()
    y = layer(torch.ones(1, 1))
    assert y.tolist() == [[0.5, 0.5]]
    y.sum().backward()
    assert layer.weight.flatten().tolist() == [2.0, 0.5]
    assert layer.weight.grad.flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("value", [0, None])
def test_w_clip_zero_is_no_clip(value):
    assert one_weight(1.5, w_clip=value)(1.0) == 1.5
    assert one_weight(1.5, w_clip=value, use_quantization=False)(1.0) == 1.5


def test_negative_w_clip_stays_on_the_grid():
    """torch.clamp(w, 3, -3) is -3 everywhere, and -3 * 64 saturates at -128."""
    assert one_weight(0.3, w_clip=-3)(1.0) == -2.0


def test_negative_inputs():
    assert one_weight(1.0)(-2.0) == 0.0  # unsigned: lost
    assert one_weight(1.0, WitinConv2d)(-2.0) == -2.0  # signed
    assert one_weight(1.0, WitinConv2d, to_linear=True)(-2.0) == 0.0
    assert one_weight(1.0, WitinConvTranspose2d)(-2.0) == 0.0
    for kind in (WitinLinear, WitinConv2d, WitinConvTranspose2d):
        assert one_weight(1.0, kind, handle_neg_in=PN)(-2.0) == -2.0
    for kind in (WitinLinear, WitinConv2d):
        assert one_weight(1.0, kind, handle_neg_in=SHIFT, shift_num=4.0)(-2.0) == -2.0


def test_input_saturation():
    assert one_weight(0.5, y_quant_bits=12)(100.0) == round(255 * 32 / 128) / 8
    assert one_weight(0.5, WitinConv2d, y_quant_bits=12)(100.0) == round(127 * 32 / 128) / 8
    assert one_weight(0.5, WitinConv2d, y_quant_bits=12)(-100.0) == -128 * 32 / 128 / 8


def test_bias_is_whole_units_of_128():
    assert one_weight(0.0, bias=0.19)(0.0) == 0.25  # 194.56 / 128 rounds to 2 units, 256 / 1024
    assert one_weight(0.0, bias=0.0625)(0.0) == 0.0  # 64 / 128 = 0.5, to even
    assert one_weight(0.0, bias=0.1875)(0.0) == 0.25  # 1.5, to even
    assert one_weight(0.0, bias=1e6, bias_row_N=1, y_quant_bits=12)(0.0) == 127 * 128 / 1024
    assert one_weight(0.0, bias=-1e6, bias_row_N=1, y_quant_bits=12)(0.0) == -128 * 128 / 1024


def test_shift_code_stops_at_128_on_the_conv_path():
    assert one_weight(1.0, handle_neg_in=SHIFT, shift_num=20.0, y_quant_bits=12)(-9.0) == -9.0
    # 320 codes of shift become 128: -144 + 128 is below zero and lost
    conv = one_weight(1.0, WitinConv2d, handle_neg_in=SHIFT, shift_num=20.0, y_quant_bits=12)
    assert conv(-9.0) == -8.0
    assert one_weight(1.0, handle_neg_in=SHIFT, shift_num=-5.0)(3.0) == 3.0


def test_shift_pads_with_the_shifted_zero():
    layer = WitinConv2d(1, 1, 3, padding=1, bias=False, layer_config=config(handle_neg_in=SHIFT, shift_num=2.0))
    with torch.no_grad():
        layer.weight.fill_(0.5)
    x = torch.full((1, 1, 4, 4), -1.0)
    assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, padding=1))


def test_conv_output_is_int8_in_pn_mode_and_with_to_linear():
    """The vendor's Conv2d clips to int8 there, whatever y_quant_bits says; its Linear does not."""
    for kind, options, largest in (
        (WitinConv2d, {"handle_neg_in": PN}, 127),
        (WitinConv2d, {"to_linear": True}, 127),
        (WitinConv2d, {"x_quant_bits": 12}, 2047),
        (WitinLinear, {"handle_neg_in": PN}, 2047),
        (WitinConvTranspose2d, {"handle_neg_in": PN}, 2047),
    ):
        layer = one_weight(1.5, kind, scale_y=1024, scale_weight=64, y_quant_bits=12, **options)
        assert layer(8.0) == largest / 1024, (kind, options)


def test_output_fp_clip_binds_convolutions_only():
    assert one_weight(1.0, WitinConv2d, output_fp_clip=1.5)(3.0) == 1.5
    assert one_weight(1.0, WitinConvTranspose2d, output_fp_clip=1.5)(3.0) == 1.5
    assert one_weight(1.0, WitinConv2d, output_fp_clip=1.5, to_linear=True)(3.0) == 3.0
    assert one_weight(1.0, output_fp_clip=1.5)(3.0) == 3.0
    assert one_weight(1.0, WitinConv2d, output_fp_clip=0)(3.0) == 3.0


def test_pn_negates_before_it_quantises_on_the_conv_path_only():
    """A weight beyond its range is 127 one way and -128 the other."""
    for kind, negative in ((WitinConv2d, -128), (WitinConvTranspose2d, -128), (WitinLinear, -127)):
        layer = one_weight(9.0, kind, handle_neg_in=PN, y_quant_bits=8, scale_x=1, scale_weight=64, scale_y=64)
        assert (layer(1.0), layer(-1.0)) == (127 / 64, negative / 64)


def test_pn_gradient_of_a_weight_between_the_last_code_and_saturation():
    """w * scale in (127, 127.5]: the positive pass masks the gradient, the negative one does not."""
    for value, expected in ((127.2, -0.5), (-127.2, 0.25), (127.0, -0.25)):
        layer = WitinConv2d(1, 1, 1, layer_config=config(handle_neg_in=PN))
        with torch.no_grad():
            layer.weight.fill_(value / 64)
        layer(torch.tensor([-0.5, 0.25]).view(2, 1, 1, 1)).sum().backward()
        assert layer.weight.grad.item() == expected


def test_pn_passes_no_gradient_at_zero():
    for kind in (WitinLinear, WitinConv2d):
        layer = one_weight_module(kind, handle_neg_in=PN)
        x = torch.zeros((1, 1) if kind is WitinLinear else (1, 1, 1, 1), requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.item() == 0.0
        x = torch.full_like(x.detach(), 1e-30).requires_grad_()
        layer(x).sum().backward()
        assert x.grad.item() == 1.0


def one_weight_module(kind, **options):
    layer = kind(1, 1, *([] if kind is WitinLinear else [1]), layer_config=config(**options))
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def test_split_rounds_each_half_by_itself():
    """Code 1000 = 768 + 232: round(232 * 64 / 100) + round(768 * 64 / 100) = 148 + 492 (not round(640))."""
    layer = one_weight(64.0, scale_x=1, scale_weight=1, scale_y=0.01, x_quant_bits=10, y_quant_bits=12)
    assert layer(1000.0) == pytest.approx(640 / 0.01)
    layer = one_weight(1.0, scale_x=1, scale_weight=1, scale_y=1 / 3, x_quant_bits=10, y_quant_bits=12)
    assert layer(257.0) == pytest.approx(85 * 3)  # 1/3 -> 0, 256/3 -> 85; 257/3 would round to 86


def test_split_analog_half_saturates_at_y_bits():
    layer = one_weight(2.0, scale_x=1, scale_weight=1, scale_y=1, x_quant_bits=9, y_quant_bits=9)
    assert layer(255.0) == 255  # 510 in the analog half saturates
    assert layer(384.0) == 255  # 255 + 512, clipped again
    layer = one_weight(-1.0, scale_x=1, scale_weight=1, scale_y=1, x_quant_bits=9, y_quant_bits=8)
    assert layer(130.0) == -128


def test_split_divides_the_digital_half_by_a_whole_g():
    layer = one_weight(1.0, scale_x=5, scale_weight=1, scale_y=2, x_quant_bits=12, y_quant_bits=12)
    assert layer(256.0) == 640 / 2  # g = 2.5 -> 2: 1280 / 2


def test_bias_d_moves_bias_to_the_digital_unit():
    """In units of the bias; analog and digital part together are the bias as long as neither saturates."""
    options = {"scale_x": 16, "scale_weight": 64, "x_quant_bits": 10, "y_quant_bits": 12, "bias_row_N": 1}
    # 300 units of bias do not fit one row; 200 of them in the digital unit make it fit
    assert one_weight(0.0, bias=37.5, **options)(0.0) == 127 * 128 / 1024
    assert one_weight(0.0, bias=37.5, bias_d=torch.tensor(25.0), **options)(0.0) == 37.5
    assert one_weight(0.0, bias=37.5, bias_d=torch.tensor([25.0]), **options)(0.0) == 37.5
    assert one_weight(0.0, WitinConv2d, bias=5.0, bias_d=torch.ones(1, 1, 1), to_linear=True, **options)(0.0) == 5.0
    options["x_quant_bits"] = 8
    assert one_weight(0.0, bias=37.5, bias_d=torch.tensor(25.0), **options)(0.0) == 127 * 128 / 1024  # no effect


def test_wtm2101_rounding():
    """Half up above zero; below zero outward from a fraction of 0.75 only."""
    options = {"scale_x": 1, "scale_weight": 4, "scale_y": 1}
    silicon, training = one_weight(0.25, rounding="wtm2101", **options), one_weight(0.25, **options)
    for x, chip, half_even in ((2, 1, 0), (6, 2, 2), (10, 3, 2), (1, 0, 0)):
        assert (silicon(x), training(x)) == (chip, half_even)
    silicon = one_weight(-0.25, rounding="wtm2101", **options)
    training = one_weight(-0.25, **options)
    for x, chip, half_even in ((2, 0, 0), (3, -1, -1), (6, -1, -2), (7, -2, -2)):
        assert (silicon(x), training(x)) == (chip, half_even)


@pytest.mark.parametrize("kind", [WitinLinear, WitinConv2d])
def test_wtm2101_rounding_trains(kind):
    layer = one_weight_module(kind, rounding="wtm2101", handle_neg_in=PN)
    x = torch.full((1, 1) if kind is WitinLinear else (1, 1, 1, 1), -0.6, requires_grad=True)
    y = layer(x)  # -10 * 64 / 128 = -5
    assert y.item() == -5 / 8
    y.sum().backward()
    assert (x.grad.item(), layer.weight.grad.item(), layer.bias.grad.item()) == (1.0, -0.625, 1.0)
    assert torch.equal(layer.eval()(x), y)


def test_set_mode_changes_the_arithmetic():
    layer = WitinLinear(1, 1, layer_config=config())
    nn.init.constant_(layer.weight, 0.3)
    nn.init.zeros_(layer.bias)
    x = torch.ones(1, 1)
    assert layer(x).item() == 0.25  # round(16 * 19 / 128) = 2
    layer.set_mode("float")
    assert layer(x).item() == pytest.approx(0.3)
    layer.set_mode("quant", rounding="wtm2101")
    assert layer.rounding == "wtm2101"
    layer.set_mode("nat", level=9)
    torch.manual_seed(0)
    assert len({layer(x).item() for _ in range(20)}) > 3


def test_hardware_and_x_clip_change_nothing():
    torch.manual_seed(0)
    x = torch.rand(3, 5) * 8
    plain = WitinLinear(5, 4, layer_config=config())
    other = WitinLinear(5, 4, layer_config=config(hardware=HardwareType.VPU, x_clip=0.1, debug_mode=True))
    other.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x), other(x))

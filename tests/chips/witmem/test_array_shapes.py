"""Shapes, geometry, dtypes and memory layouts that an array layer takes."""

import pytest
import torch
from torch import nn

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType

FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift
pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def config(**options):
    fixed = {"use_quantization": True, "use_auto_scale": False, "scale_x": 16, "scale_weight": 64, "scale_y": 8}
    return WitinLayerConfig(1, **(fixed | options))


@pytest.mark.parametrize("negative", [FALSE, PN, SHIFT])
@pytest.mark.parametrize("bits", [8, 10])
def test_linear_takes_any_leading_dimensions(negative, bits):
    torch.manual_seed(0)
    layer = WitinLinear(6, 4, layer_config=config(handle_neg_in=negative, x_quant_bits=bits))
    x = torch.randn(2, 3, 5, 6) * 5
    y = layer(x)
    assert y.shape == (2, 3, 5, 4)
    assert torch.equal(y.flatten(0, 2), layer(x.flatten(0, 2)))
    assert torch.equal(y[1, 2, 3], layer(x[1, 2, 3]))
    turned = x.transpose(0, 2)
    assert torch.equal(layer(turned), y.transpose(0, 2))


@pytest.mark.parametrize("negative", [FALSE, PN])
@pytest.mark.parametrize(
    "layer",
    [
        lambda c: WitinConv1d(3, 4, 3, 2, "valid", layer_config=c),
        lambda c: WitinConv2d(3, 4, (3, 2), padding="same", layer_config=c),
        lambda c: WitinConv2d(3, 4, 3, 2, (1, 2), "circular", layer_config=c),
        lambda c: WitinConvTranspose2d(3, 4, 3, 2, layer_config=c),
    ],
)
def test_unbatched_input_is_a_batch_of_one(layer, negative):
    torch.manual_seed(0)
    layer = layer(config(handle_neg_in=negative))
    x = torch.randn(3, 8) * 4 if isinstance(layer, WitinConv1d) else torch.randn(3, 8, 7) * 4
    y = layer(x)
    assert torch.equal(y, layer(x.unsqueeze(0)).squeeze(0))
    assert y.dim() == x.dim()


@pytest.mark.parametrize("negative", [FALSE, PN])
def test_groups_are_separate_convolutions(negative):
    torch.manual_seed(0)
    layer = WitinConv2d(4, 6, 3, groups=2, layer_config=config(handle_neg_in=negative))
    x = torch.randn(2, 4, 6, 6) * 4
    halves = []
    for i in range(2):
        half = WitinConv2d(2, 3, 3, layer_config=config(handle_neg_in=negative))
        with torch.no_grad():
            half.weight.copy_(layer.weight[3 * i : 3 * i + 3])
            half.bias.copy_(layer.bias[3 * i : 3 * i + 3])
        halves.append(half(x[:, 2 * i : 2 * i + 2]))
    assert torch.equal(layer(x), torch.cat(halves, 1))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("negative", [FALSE, PN])
def test_transposed_convolution_to_linear_changes_nothing(stride, negative):
    """At stride 2 the vendor's library fails."""
    torch.manual_seed(0)
    options = {"handle_neg_in": negative}
    plain = WitinConvTranspose2d(3, 4, 3, stride, 1, stride - 1, layer_config=config(**options))
    other = WitinConvTranspose2d(3, 4, 3, stride, 1, stride - 1, layer_config=config(to_linear=True, **options))
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 5, 4) * 4
    y = other(x)
    assert torch.equal(y, plain(x))
    assert y.shape == nn.ConvTranspose2d(3, 4, 3, stride, 1, stride - 1)(x).shape


def test_transposed_convolution_takes_output_size():
    layer = WitinConvTranspose2d(3, 4, 3, 2, 1, layer_config=config())
    x = torch.rand(2, 3, 5, 4)
    assert layer(x).shape == (2, 4, 9, 7)
    y = layer(x, output_size=[10, 8])
    wide = WitinConvTranspose2d(3, 4, 3, 2, 1, 1, layer_config=config())
    wide.load_state_dict(layer.state_dict())
    assert torch.equal(y, wide(x))
    layer.set_mode("float")
    assert layer(x, output_size=[10, 8]).shape == (2, 4, 10, 8)


@pytest.mark.parametrize("kind", [WitinLinear, WitinConv2d])
@pytest.mark.parametrize("bias", [True, False])
def test_without_bias_there_is_a_bias_of_zeros_that_does_not_learn(kind, bias):
    layer = kind(2, 3, *([] if kind is WitinLinear else [1]), bias=bias, layer_config=config())
    assert isinstance(layer.bias, nn.Parameter)
    assert layer.bias.requires_grad is bias
    assert bool((layer.bias == 0).all()) is not bias
    layer(torch.rand((4, 2) if kind is WitinLinear else (4, 2, 3, 3))).sum().backward()
    assert (layer.bias.grad is not None) is bias


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("negative", [FALSE, PN, SHIFT])
@pytest.mark.parametrize("bits", [8, 10])
def test_autocast_gives_the_same_codes(low, negative, bits):
    torch.manual_seed(0)
    x = torch.randn(4, 32) * 4
    layer = WitinLinear(32, 16, layer_config=config(handle_neg_in=negative, x_quant_bits=bits, use_auto_scale=True))
    images = torch.randn(2, 3, 8, 8) * 4
    conv = WitinConv2d(3, 4, 3, layer_config=config(handle_neg_in=negative, x_quant_bits=bits))
    for _ in range(3):
        with torch.autocast("cpu", low):
            y, z = layer(x), conv(images)
        assert y.dtype == torch.float32
    layer.eval()
    with torch.autocast("cpu", low):
        y = layer(x)
    assert torch.equal(y, layer(x))
    assert torch.equal(z, conv(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    """Inputs and weights that every dtype holds exactly give the same codes in all of them."""
    torch.manual_seed(0)
    layers = [
        WitinLinear(8, 4, layer_config=config(handle_neg_in=PN)),
        WitinConv2d(8, 4, 1, layer_config=config()),
        WitinConv2d(8, 4, 1, layer_config=config(to_linear=True, use_auto_scale=True)),
        WitinConvTranspose2d(8, 4, 1, layer_config=config()),
    ]
    for layer in layers:
        with torch.no_grad():
            layer.weight.copy_(torch.randint(-60, 60, layer.weight.shape) / 64)
            layer.bias.copy_(torch.tensor([0.25, -0.5, 1.0, 0.0]))
        x = torch.randint(-100, 100, (3, 8) if isinstance(layer, WitinLinear) else (3, 8, 2, 2)) / 16
        expected = layer(x)
        layer.to(dtype)
        y = layer(x.to(dtype).requires_grad_())
        assert y.dtype == dtype
        assert torch.equal(y.float(), expected)
        y.sum().backward()
        assert layer.weight.grad.dtype == dtype


@pytest.mark.parametrize("kind", [WitinLinear, WitinConv2d, WitinConvTranspose2d])
@pytest.mark.parametrize("auto", [False, True])
def test_empty_batches_pass_through_outside_calibration(kind, auto):
    layer = kind(3, 2, *([] if kind is WitinLinear else [1]), layer_config=config(use_auto_scale=auto)).eval()
    x = torch.zeros((0, 3) if kind is WitinLinear else (0, 3, 4, 4), requires_grad=True)
    y = layer(x)
    assert y.shape == ((0, 2) if kind is WitinLinear else (0, 2, 4, 4))
    y.sum().backward()
    assert layer.weight.grad.abs().sum() == 0


def test_input_memory_layout_does_not_matter():
    torch.manual_seed(0)
    for negative in (FALSE, PN, SHIFT):
        layer = WitinConv2d(20, 24, 3, padding=1, layer_config=config(handle_neg_in=negative))
        x = torch.randn(2, 20, 6, 6) * 4
        assert torch.equal(layer(x), layer(x.contiguous(memory_format=torch.channels_last)))
        assert torch.equal(layer(x), layer(x.transpose(2, 3).contiguous().transpose(2, 3)))


def test_input_is_never_changed():
    x = torch.randn(3, 5) * 9
    before = x.clone()
    for negative in (FALSE, PN, SHIFT):
        for level in (0, 4):
            WitinLinear(5, 4, layer_config=config(handle_neg_in=negative, noise_level=level))(x)
    assert torch.equal(x, before)

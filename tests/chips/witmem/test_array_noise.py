"""Analog noise in the array layers: size, draws, gradients (spec/witmem-array.md, section 6)."""

import pytest
import torch
import torch.nn.functional as F

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.kernel import array_forward
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.array.numbers import Geometry
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, NoiseModel
from chipfit.chips.witmem.noise import NORMAL, noise_in_force

GEOMETRY = {
    WitinConv2d: Geometry("conv", (1, 1), (0, 0), (1, 1)),
    WitinConvTranspose2d: Geometry("conv_transpose", (1, 1), (0, 0), (1, 1)),
}
FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift
C0, K = 0.3145, 0.015605
pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def accumulating(kind, *sizes, level=4, **options):
    """A layer whose output is its accumulator: all scales 1, 24 bits of output."""
    config = WitinLayerConfig(
        1, use_quantization=True, use_auto_scale=False, noise_level=level, y_quant_bits=24, **options
    )
    layer = kind(*sizes, layer_config=config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-127, 128, layer.weight.shape, generator=generator))
        layer.bias.copy_(torch.randint(-900, 900, layer.bias.shape, generator=generator) * 128)
    return layer


def errors(layer, x, calls, seed=1):
    level = layer.noise_level
    torch.manual_seed(seed)
    with torch.no_grad():
        noisy = torch.stack([layer(x) for _ in range(calls)])
        layer.set_mode("quant")
        noisy -= layer(x)
        layer.set_mode("nat", level)
    return noisy


def predicted(x, weight, bias, rows, level):
    """Deviation of one output in accumulator codes; `x` and `weight` list the terms of its sum."""
    cells = (x * level * (C0 + K * weight.abs())).square().sum()
    return (cells + rows * (128 * level * (C0 + K * abs(bias) / (128 * rows))) ** 2).sqrt().item()


@pytest.mark.slow
@pytest.mark.parametrize("level", [1, 2.5, 4, 9])
@pytest.mark.parametrize("rows", [1, 8])
def test_linear_deviation(level, rows):
    layer = accumulating(WitinLinear, 24, 3, level=level, bias_row_N=rows)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, 60.0, -100.0]) * 128)
    x = torch.randint(0, 256, (1, 24), generator=torch.Generator().manual_seed(3)).float()
    error = errors(layer, x, 3000)[:, 0]
    for channel in range(3):
        want = predicted(x[0], layer.weight[channel].detach(), layer.bias[channel].item(), rows, level)
        assert error[:, channel].std().item() == pytest.approx(want, rel=0.05)
        assert abs(error[:, channel].mean().item()) < 4 * want / 3000**0.5
    assert abs(torch.corrcoef(error.t())[0, 1]) < 0.08


@pytest.mark.parametrize("has_bias", [True, False])
def test_bias_rows_are_noisy_even_at_zero(has_bias):
    layer = WitinLinear(4, 5, has_bias, accumulating(WitinLinear, 4, 5).layer_config)
    torch.nn.init.zeros_(layer.bias)
    error = errors(layer, torch.zeros(1, 4), 2000)
    assert error.std().item() == pytest.approx(113.9 * 4, rel=0.05)  # 128 * sqrt(8) * 0.3145 a level


@pytest.mark.slow
@pytest.mark.parametrize("negative", [FALSE, PN, SHIFT])
def test_negative_inputs_meet_the_array_of_their_mode(negative):
    """PN: each sign has cells of its own; Shift: noise acts on the shifted input; FALSE: nothing left but bias rows."""
    layer = accumulating(WitinLinear, 16, 1, handle_neg_in=negative, shift_num=100.0)
    torch.nn.init.zeros_(layer.bias)
    x = -torch.arange(0.0, 96.0, 6.0).view(1, 16)
    weight = layer.weight[0].detach()
    seen = {FALSE: torch.zeros(16), PN: x[0], SHIFT: x[0] + 100}[negative]
    bias = {FALSE: 0.0, PN: 0.0, SHIFT: 128 * round(-100 * weight.sum().item() / 128)}[negative]
    want = predicted(seen, weight, bias, 8, 4)
    error = errors(layer, x, 3000)
    assert error.std().item() == pytest.approx(want, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes", "shape", "negative"),
    [
        (WitinLinear, (16, 1), (2, 16), PN),
        (WitinConvTranspose2d, (16, 1, 1), (2, 16, 1, 1), PN),
        (WitinConv2d, (16, 1, 1), (2, 16, 1, 1), FALSE),
    ],
)
def test_positive_and_negative_arrays_are_independent(kind, sizes, shape, negative):
    """A signed convolution has one array, so x and -x see opposite noise; with PN they see different cells."""
    layer = accumulating(kind, *sizes, handle_neg_in=negative)
    torch.nn.init.zeros_(layer.bias)
    x = torch.full(shape, 100.0)
    x[1] = -100
    error = errors(layer, x, 2000).view(2000, 2)
    rows = (113.9 * 4) ** 2 / error.var(0).mean().item()  # the bias rows are shared by the whole batch
    correlation = torch.corrcoef(error.t())[0, 1].item()
    expected = rows if negative is PN else rows - (1 - rows)
    assert correlation == pytest.approx(expected, abs=0.08)


def test_one_draw_serves_batch_and_pixels():
    conv = accumulating(WitinConv2d, 2, 3, 3)
    linear = accumulating(WitinLinear, 4, 3)
    transposed = accumulating(WitinConvTranspose2d, 2, 3, 2, 2)
    one = accumulating(WitinConv1d, 2, 3, 3)
    for layer, x in (
        (linear, torch.full((5, 4), 90.0)),
        (conv, torch.full((3, 2, 6, 5), 90.0)),
        (one, torch.full((3, 2, 6), 90.0)),
    ):
        y = layer(x)
        channels = y.transpose(0, 1).flatten(1) if layer is not linear else y.t()
        assert all(len(channel.unique()) == 1 for channel in channels)
    y = transposed(torch.full((3, 2, 4, 4), 90.0))  # at stride 2 each pixel of a 2x2 patch has cells of its own
    assert all(len(channel.unique()) == 4 for channel in y.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("train", [True, False])
def test_fresh_draw_each_forward_in_train_and_eval(train):
    layer = accumulating(WitinLinear, 6, 4).train(train)
    x = torch.rand(2, 6) * 200
    torch.manual_seed(9)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(9)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)


def test_train_and_eval_draw_alike():
    layer = accumulating(WitinLinear, 6, 4)
    x = torch.rand(2, 6) * 200
    torch.manual_seed(9)
    y = layer.train()(x)
    torch.manual_seed(9)
    assert torch.equal(layer.eval()(x), y)


def test_linear_draws_in_the_vendors_order():
    """First the weights, transposed, then the bias rows."""
    layer = accumulating(WitinLinear, 6, 4, level=3)
    x = torch.randint(0, 256, (5, 6)).float()
    weight, bias = layer.weight.detach(), layer.bias.detach()
    torch.manual_seed(42)
    y = layer(x)
    torch.manual_seed(42)
    noisy_weight, noisy_bias = drawn_noise(weight, torch.randn(6, 4).T), drawn_rows(bias, torch.randn(8, 4))
    expected = x.double() @ noisy_weight.double().T + noisy_bias.double()
    assert (y.double() - expected).abs().max() <= 0.5 + 0.05  # rounded to whole codes


def test_convolution_draws_in_the_order_of_its_weight():
    layer = accumulating(WitinConv2d, 6, 4, 1, level=3)
    x = torch.randint(0, 128, (5, 6, 1, 1)).float()
    weight, bias = layer.weight.detach()[:, :, 0, 0], layer.bias.detach()
    torch.manual_seed(42)
    y = layer(x)[:, :, 0, 0]
    torch.manual_seed(42)
    noisy_weight, noisy_bias = drawn_noise(weight, torch.randn(4, 6)), drawn_rows(bias, torch.randn(8, 4))
    expected = x[:, :, 0, 0].double() @ noisy_weight.double().T + noisy_bias.double()
    assert (y.double() - expected).abs().max() <= 0.5 + 0.05


def drawn_noise(codes, eps, level=3):
    return codes + level * (C0 + K * codes.abs()) * eps


def drawn_rows(bias, eps, level=3):
    return bias + 128 * (level * (C0 + K * bias.abs() / 1024) * eps).sum(0)


def test_pn_linear_draws_both_signs_as_one_array():
    """Positive cells, negative cells, then the bias rows: one column after the other."""
    layer = accumulating(WitinLinear, 6, 4, level=3, handle_neg_in=PN)
    x = torch.randint(-255, 256, (5, 6)).float()
    weight, bias = layer.weight.detach(), layer.bias.detach()
    torch.manual_seed(42)
    y = layer(x)
    torch.manual_seed(42)
    both = drawn_noise(torch.cat([weight.T, -weight.T]), torch.randn(12, 4))
    inputs = torch.cat([x.clamp_min(0), (-x).clamp_min(0)], 1)
    expected = inputs.double() @ both.double() + drawn_rows(bias, torch.randn(8, 4)).double()
    assert (y.double() - expected).abs().max() <= 0.5 + 0.05


@pytest.mark.parametrize("kind", [WitinConv2d, WitinConvTranspose2d])
def test_pn_convolution_draws_pass_by_pass(kind):
    """Weights and bias rows of the positive pass, then of the negative one, whose bias rows hold nothing."""
    layer = accumulating(kind, 5, 4, 3, level=3, handle_neg_in=PN)
    x = torch.randint(-255, 256, (2, 5, 6, 6)).float()
    weight, bias = layer.weight.detach(), layer.bias.detach()
    torch.manual_seed(42)
    # the accumulator itself: Conv2d limits what it gives in PN mode to int8
    y, _ = array_forward(x, weight, bias, GEOMETRY[kind], layer.spec_in_force())
    torch.manual_seed(42)
    positive, rows = drawn_noise(weight, torch.randn(weight.shape)), drawn_rows(bias, torch.randn(8, 4))
    negative, idle = drawn_noise(-weight, torch.randn(weight.shape)), drawn_rows(0 * bias, torch.randn(8, 4))
    apply = F.conv2d if kind is WitinConv2d else F.conv_transpose2d
    expected = apply(x.clamp_min(0).double(), positive.double(), rows.double())
    expected += apply((-x).clamp_min(0).double(), negative.double(), idle.double())
    assert (y.double() - expected).abs().max() <= 0.5 + 0.05


def test_gradient_factors():
    """dx uses the noisy weights, dw and db carry the derivative of the noise by the code."""
    layer = accumulating(WitinLinear, 6, 4, level=5)
    x = torch.randint(1, 256, (3, 6)).float().requires_grad_()
    weight, bias = layer.weight.detach(), layer.bias.detach()
    up = torch.tensor([[1.0, -2.0, 0.5, 3.0]] * 3)
    torch.manual_seed(8)
    layer(x).backward(up)
    torch.manual_seed(8)
    eps, rows = torch.randn(6, 4).T, torch.randn(8, 4)
    noisy = weight + 5 * (C0 + K * weight.abs()) * eps
    torch.testing.assert_close(x.grad, up @ noisy)
    torch.testing.assert_close(layer.weight.grad, (up.T @ x.detach()) * (1 + 5 * K * weight.sign() * eps))
    torch.testing.assert_close(layer.bias.grad, up.sum(0) * (1 + 5 * K * bias.sign() * rows.mean(0)))


@pytest.mark.parametrize("level", [1e-7, 1])
def test_noise_divides_by_a_whole_g(level):
    """G = 2.5 counts as 2, so even a vanishing level changes the result."""
    config = WitinLayerConfig(
        1, use_quantization=True, use_auto_scale=False, scale_x=5, scale_y=2, y_quant_bits=16, noise_level=level
    )
    layer = WitinLinear(1, 1, layer_config=config)
    torch.nn.init.constant_(layer.weight, 100.0)
    torch.nn.init.zeros_(layer.bias)
    y = layer(torch.full((1, 1), 40.0)).item()
    assert y == pytest.approx(200 * 100 / 2 / 2, rel=1e-6 if level < 1 else 0.2)
    layer.set_mode("quant")
    assert layer(torch.full((1, 1), 40.0)).item() == 200 * 100 / 2.5 / 2


@pytest.mark.slow
def test_split_layer_has_noise_in_its_analog_half_only():
    layer = accumulating(WitinLinear, 6, 4, x_quant_bits=10)
    torch.nn.init.zeros_(layer.bias)
    high = errors(layer, torch.full((1, 6), 256.0), 2000)  # all of it digital: noise of the bias rows only
    assert high.std().item() == pytest.approx(113.9 * 4, rel=0.05)
    both = errors(layer, torch.full((1, 6), 256.0 + 255.0), 3000)[:, 0, 0]
    want = predicted(torch.full((6,), 255.0), layer.weight[0].detach(), 0.0, 8, 4)
    assert both.std().item() == pytest.approx(want, rel=0.05)


def test_final_clamps_hold_under_noise():
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16, noise_level=9)
    layer = WitinConv2d(3, 4, 3, layer_config=config)
    y = layer(torch.randn(2, 3, 8, 8) * 50)
    assert y.min() == -128
    assert y.max() == 127
    assert torch.equal(y, y.round())


def test_levels_and_models():
    assert noise_in_force(NoiseModel.NORMAL, 0, 8, "fc") == (None, 0.0)
    assert noise_in_force(NoiseModel.NORMAL, 9, 8, "fc") == (NORMAL, 0.0)
    assert (NORMAL.law.floor, NORMAL.law.slope) == (C0, K)


def test_mbs_noise_is_drawn_for_every_sample():
    layer = accumulating(WitinLinear, 8, 4, noise_model=NoiseModel.MBS, level=4)
    torch.nn.init.zeros_(layer.bias)
    assert len(layer(torch.full((50, 8), 100.0))[:, 0].unique()) > 40
    assert errors(layer, torch.zeros(50, 8), 200).std().item() == pytest.approx(350, rel=0.05)
    torch.nn.init.zeros_(layer.weight)  # zero weights add none
    assert errors(layer, torch.full((50, 8), 200.0), 200).std().item() == pytest.approx(350, rel=0.05)
    torch.nn.init.constant_(layer.weight, 64.0)
    want = (350**2 + 8 * (200 * 2.8) ** 2) ** 0.5
    assert errors(layer, torch.full((50, 8), 200.0), 200).std().item() == pytest.approx(want, rel=0.05)


def test_simple_noise_shares_an_offset_that_changes_from_call_to_call():
    layer = accumulating(WitinLinear, 8, 400, noise_model=NoiseModel.SIMPLE, level=4)
    torch.nn.init.zeros_(layer.bias)
    means = errors(layer, torch.zeros(1, 8), 400).mean((1, 2))
    assert means.std().item() == pytest.approx(113.9 * 4, rel=0.15)  # far beyond 113.9 * 4 / sqrt(400)

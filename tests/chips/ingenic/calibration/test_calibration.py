"""Calibration of Ingenic layers: the network keeps its function, its clips fit the data, and it works quantised."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.calibration.float_view import float_arithmetic
from chipfit.errors import CalibrationError, ChipfitWarning, InvalidValueError, UnknownOptionError, UnsupportedError
from chipfit.fit.bias import correct_bias
from chipfit.fit.calibrate import METHODS, calibrate, restore
from support.ingenic import branches as networks


def error(clean: Tensor, got: Tensor) -> float:
    return ((clean - got).square().mean() / clean.square().mean()).item()


def quantised(floats: nn.Module, bits: int, target: str) -> Any:
    net = networks.Branches(bits, target)
    net.load_state_dict(floats.state_dict())
    return net.eval()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["T40", "Txx"])
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_the_function_stays_and_8_bits_come_close(branches: Any, target: str, method: str) -> None:
    floats, x = branches[target], networks.images(64, test=True)
    net = quantised(floats, 8, target)
    clean = floats(x)
    assert error(clean, net(x)) > 0.5  # what happens without
    calibrate(net, networks.images(128).split(64), method)
    correct_bias(net, networks.images(128).split(64))
    assert error(clean, net(x)) < (0.003 if target == "T40" else 0.1)
    again = quantised(floats, 8, target)
    calibrate(again, networks.images(128).split(64), method)
    with float_arithmetic(again):
        torch.testing.assert_close(again(x), clean, rtol=0, atol=2e-5)


@torch.no_grad()
def test_what_meets_shares_its_range(branches: Any) -> None:
    for target in ("T40", "Txx"):
        net = quantised(branches[target], 8, target)
        chosen = {c.layer: c for c in calibrate(net, networks.images().split(64), "max") if c.tensor == "y"}
        assert chosen["conv1"].io_max == chosen["conv2"].io_max
        assert chosen["add"].io_max == chosen["conv3"].io_max
        sums = chosen["add"].io_max / chosen["conv1"].io_max
        if target == "Txx":  # the chip averages
            assert sums == 2.0
            assert chosen["add2"].io_max == 2 * chosen["add"].io_max
        else:
            assert sums <= 2.0
            assert net.add.clip_max_value == chosen["add"].setting == pytest.approx(sums, rel=1e-5)
        assert net.conv0.QuantizeFeature.clip_max_value == chosen["conv0"].setting
        assert chosen["conv0"].io_max <= 6.0  # ReLU6
        assert "se.conv2" not in chosen  # Hsigmoid brings its own clip


def layer(target: str = "T40", bits: int = 4, **options: Any) -> Any:
    options = {"activation_fn": ops.ReLU(target), "quantize": True, "weight_bitwidth": 8, **options}
    return ops.FullConnected(
        32, 32, input_bitwidth=bits, output_bitwidth=bits, target_device=target, auto_bitwidth=False, **options
    )


def identity(net: Any) -> Any:
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.copy_(torch.eye(32))
            module.bias.data.zero_()
    return net


def test_the_clip_is_what_the_method_says_and_the_next_weight_makes_up_for_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 32).abs()
    x[3, 5] = 40.0
    settings = {}
    for method in METHODS:
        net = identity(nn.Sequential(layer(), layer(last_layer=True)))
        choices = calibrate(net, [(x, 0)], method)
        clip = net[0].QuantizeFeature.clip_max_value
        assert choices[0].setting == clip
        torch.testing.assert_close(net[1].Linear.weight, torch.eye(32) * clip)
        torch.testing.assert_close(net[0].Linear.weight, torch.eye(32))
        settings[method] = clip
    assert settings["max"] == 40.0
    for method in ("percentile", "mse", "kl"):
        assert 2 < settings[method] < 7, settings


def test_mse_is_the_least_error_of_its_candidates() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 32).abs()
    net = identity(nn.Sequential(layer(bits=3), layer(last_layer=True)))
    choice = calibrate(net, [x], "mse")[0]

    def loss(clip: float) -> float:
        return ((x.clamp(max=clip) / clip * 7).round() / 7 * clip - x).square().mean().item()

    assert choice.io_max == min((choice.largest * k / 64 for k in range(1, 65)), key=loss)


@torch.no_grad()
def test_batch_norm_takes_up_what_clipping_the_weight_does() -> None:
    torch.manual_seed(0)
    net = ops.FullConnected(
        32, 64, None, enable_batch_norm=True, last_layer=True, quantize=True, weight_bitwidth=2, target_device="T40"
    ).eval()
    floats = ops.FullConnected(32, 64, None, enable_batch_norm=True, last_layer=True, target_device="T40").eval()
    floats.Linear.weight.normal_()
    floats.BatchNorm1d.batch_norm.running_mean.normal_()
    x = torch.rand(256, 32) * 2 - 1
    floats.BatchNorm1d.batch_norm.running_var.copy_(floats.Linear(x).var(0))
    net.load_state_dict(floats.state_dict())
    before = error(floats(x), net(x))
    first = nn.Sequential(layer(bits=8), net)  # something with a clip to choose
    identity(first[:1])
    calibrate(first, [x.abs()], "mse")
    net.Linear.weight /= first[0].QuantizeFeature.clip_max_value
    assert net.Linear.QuantizeWeight.factor < 3.0
    after = error(floats(x), net(x))
    assert after < 0.35 < before


@torch.no_grad()
def test_calibrating_twice_changes_nothing_and_saying_float_does(branches: Any) -> None:
    data, x = networks.images().split(64), networks.images(32, test=True)
    net = quantised(branches["T40"], 8, "T40")
    first = calibrate(net, data, "max")
    once = net(x)
    second = calibrate(net, data, "max")
    assert [c.setting for c in second] == pytest.approx([c.setting for c in first], rel=1e-3)
    assert error(once, net(x)) < 1e-3
    calibrate(net, data, "max", trained_as="float")  # multiplies weights that were multiplied already
    assert error(once, net(x)) > 0.1


@torch.no_grad()
def test_choices_bring_a_saved_network_back(branches: Any) -> None:
    x = networks.images(32, test=True)
    net = quantised(branches["T40"], 4, "T40")
    choices = calibrate(net, networks.images().split(64))
    fresh = networks.Branches(4, "T40").eval()
    fresh.load_state_dict(net.state_dict())
    assert not torch.equal(fresh(x), net(x))
    restore(fresh, choices)
    assert torch.equal(fresh(x), net(x))
    with pytest.raises(InvalidValueError, match="cannot restore"):
        restore(nn.Sequential(layer()), choices)


@torch.no_grad()
def test_an_lstm_and_a_concatenation_of_different_ranges() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, bits: int) -> None:
            super().__init__()
            q: Any = {"quantize": bits < 32, "weight_bitwidth": bits, "input_bitwidth": bits, "output_bitwidth": bits}
            self.a = ops.Conv2D(32, 32, kernel_h=1, kernel_w=1, activation_fn=ops.ReLU("T40"), target_device="T40", **q)
            self.b = ops.Conv2D(32, 32, kernel_h=1, kernel_w=1, activation_fn=ops.ReLU("T40"), target_device="T40", **q)
            self.route = ops.Route("T40")
            self.c = ops.Conv2D(64, 32, padding=1, activation_fn=ops.ReLU("T40"), target_device="T40", **q)
            self.rnn = ops.LSTM(32, 16, bidirectional=True, use_squeeze=True, target_device="T40", **q)
            self.head = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.c(self.route([self.a((x, 8, 0.0)), self.b((x, 8, 0.0))]))
            out, _ = self.rnn(y)
            got: Tensor = self.head(out[0])
            return got

    floats = Net(32).eval()
    floats.b.Conv2d.weight *= 20
    net = Net(8).eval()
    net.load_state_dict(floats.state_dict())
    x = torch.rand(16, 32, 1, 6)
    weight = net.c.Conv2d.weight.clone()
    calibrate(net, [x], "max")
    ratio = (net.c.Conv2d.weight / weight).mean((0, 2, 3))
    clips = [net.a.QuantizeFeature.clip_max_value, net.b.QuantizeFeature.clip_max_value]
    torch.testing.assert_close(ratio, torch.tensor(clips).repeat_interleave(32), rtol=1e-4, atol=0)
    assert clips[1] > 10 * clips[0]
    assert net.rnn.QuantizeFeature.clip_max_value == 1.0
    with float_arithmetic(net):
        torch.testing.assert_close(net(x), floats(x), rtol=0, atol=1e-5)
    assert error(floats(x), net(x)) < 0.02


@torch.no_grad()
def test_attention_gets_a_clip_too() -> None:
    def build(quantize: bool) -> Any:
        torch.manual_seed(0)
        bits = 8 if quantize else 32
        widths: Any = {"quantize": quantize, "weight_bitwidth": bits, "input_bitwidth": bits, "target_device": "T40"}
        return nn.Sequential(
            ops.FullConnected(32, 32, ops.ReLU("T40"), output_bitwidth=bits, **widths),
            ops.SoftAttention(32, 8, bits, target_device="T40", quantize=quantize),
            ops.FullConnected(32, 4, None, last_layer=True, **widths),
        ).eval()

    net, floats, x = build(True), build(False), torch.rand(16, 5, 32)
    calibrate(net, [x], "max")
    assert net[1].QuantizeFeature.clip_max_value < 2.0
    with float_arithmetic(net):
        torch.testing.assert_close(net(x), floats(x), rtol=0, atol=1e-5)
    assert error(floats(x), net(x)) < 0.01


@pytest.mark.parametrize("trained_as", ["float", "quant"])
@torch.no_grad()
def test_a_dead_layer_keeps_its_clip_and_the_network_its_function(branches: Any, trained_as: str) -> None:
    floats = copy.deepcopy(branches["T40"])
    floats.conv2.Conv2d.weight.zero_()  # one operand of `add`
    floats.conv2.Conv2d.bias.fill_(-1.0)
    floats.conv4.BatchNorm2d.batch_norm.weight.zero_()
    floats.conv4.BatchNorm2d.batch_norm.bias.fill_(-1.0)
    net = quantised(floats, 8, "T40")
    net.conv4.QuantizeFeature.clip_max_value = 3.0
    if trained_as == "quant":
        with float_arithmetic(net):
            clean = net(networks.images(8))
    else:
        clean = floats(networks.images(8))
    with pytest.warns(ChipfitWarning, match=r"^conv2, y; conv2, weight; conv4, y: only zeros were seen"):
        choices = calibrate(net, networks.images().split(64), "max", trained_as=trained_as)
    assert [choice.layer for choice in choices if choice.tensor == "y" and choice.largest == 0] == ["conv2", "conv4"]
    found = {(choice.layer, choice.tensor): choice for choice in choices}
    assert found["conv4", "y"].setting == net.conv4.QuantizeFeature.clip_max_value == 3.0
    assert (found["conv4", "y"].largest, found["conv4", "y"].io_max) == (0.0, 3.0)
    assert found["conv2", "weight"].setting == net.conv2.Conv2d.QuantizeWeight.factor
    with float_arithmetic(net):
        torch.testing.assert_close(net(networks.images(8)), clean, rtol=0, atol=2e-5)


def test_what_follows_a_dead_layer_is_ready_for_values() -> None:
    net = identity(nn.Sequential(layer(), layer(), layer(last_layer=True)))
    net[1].Linear.bias.data.fill_(-9.0)
    net[1].QuantizeFeature.clip_max_value = 3.0
    with pytest.warns(ChipfitWarning, match=r"^1, y: only zeros were seen"):
        calibrate(net, [torch.rand(64, 32)], "max")
    torch.testing.assert_close(net[2].Linear.weight, torch.eye(32) * 3.0)


def test_a_constant_weight_is_calibrated() -> None:
    net = nn.Sequential(layer(), layer(last_layer=True))
    net[1].Linear.weight.data.fill_(0.25)
    (choice,) = [c for c in calibrate(net, [torch.rand(64, 32)]) if (c.layer, c.tensor) == ("1", "weight")]
    assert choice.io_max == choice.largest > 0 and choice.sqnr_db > 100
    assert choice.setting == net[1].Linear.QuantizeWeight.factor == net[1].weight_factor


def test_what_it_refuses_leaves_the_network_as_it_was() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = layer(), layer(), layer(last_layer=True)

        def forward(self, x: Tensor) -> Any:
            return self.c(self.a(x)[0] + self.b(x)[0])

    torch.manual_seed(0)
    net = Added()
    net.b.Linear.weight.data.mul_(9)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(UnsupportedError, match=r"^c\.Linear: the clips before this layer cannot be made up for"):
        calibrate(net, [torch.rand(64, 32)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.a.QuantizeFeature.clip_max_value == 6.0
    assert net.a.quantize and net.a.quantizes_output and "forward" not in vars(net.a.QuantizeFeature)
    with pytest.raises(CalibrationError, match="only zeros"):
        calibrate(nn.Sequential(layer(enable_bias=False), layer(last_layer=True)), [torch.zeros(4, 32)])
    with pytest.raises(CalibrationError, match="calibration data is empty"):
        calibrate(net, [])
    with pytest.raises(UnknownOptionError, match="unknown trained_as"):
        calibrate(net, [torch.rand(4, 32)], trained_as="qat")


class Cancels(nn.Module):
    """A sum of nothing but zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.b(a + -a)


def test_a_sum_of_zeros_keeps_a_clip_that_the_chip_has() -> None:
    net, x = Cancels().eval(), 5 * torch.randn(2, 32, 4, 4)
    converted = chipfit.convert(net, chipfit.chip("t40"), x)
    with pytest.warns(ChipfitWarning, match="add, y: only zeros were seen"):
        chipfit.calibrate(converted, [x])
    assert converted.add.clip_max_value == 2.0
    chipfit.set_mode(converted, "quant")
    assert chipfit.verify(converted, chipfit.lower(converted, x[:1]), [x])

"""What `convert` offers on the Ingenic targets, and what comes after it: widths, stand-ins, state, training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.chips.ingenic.operators.layer import WeightedLayer
from chipfit.convert import convert
from chipfit.errors import InvalidValueError, UnsupportedError
from chipfit.program import lower, verify
from chipfit.vendor import chip
from support import networks
from support.conversion import calibrated, on_chip

T40, TXX = chip("t40"), chip("txx")


class Net(nn.Module):
    """An image classifier with a residual connection."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.b(torch.relu(self.a(x))))
        return self.head(x.mean((2, 3)))


def images(count: int = 8) -> Tensor:
    return torch.randint(256, (count, 3, 6, 6)).float() / 255


def bits_of(net: nn.Module) -> dict[str, tuple[int, int]]:
    """Widths of weight and output by layer."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, WeightedLayer)}
    return {name: (layer.weight_bitwidth, layer.output_bitwidth) for name, layer in layers.items()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"stem": (8, 8), "a": (8, 8), "b": (8, 8), "relu_2": (8, 8), "head": (8, 32)}),
        ({"bits": 4}, {"stem": (8, 4), "a": (4, 4), "b": (4, 4), "relu_2": (8, 4), "head": (8, 32)}),
        ({"weight_bits": 2}, {"stem": (2, 8), "a": (2, 8), "b": (2, 8), "relu_2": (8, 8), "head": (2, 32)}),
        (
            {"weight_bits": {"a": 4, "head": 6}, "bits": 5},
            {"stem": (8, 5), "a": (4, 5), "b": (5, 5), "relu_2": (8, 5), "head": (6, 32)},
        ),
    ],
)
def test_widths(options: dict[str, Any], expected: dict[str, tuple[int, int]]) -> None:
    converted = on_chip(Net().eval(), "t40", images(), **options)
    assert bits_of(converted) == expected


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("t40", {"bits": 9}, r"convert\(bits=\): no such bit width; got 9; allowed: 2 to 8 on t40"),
        ("txx", {"weight_bits": 2}, r"convert\(weight_bits=\): no such bit width; got 2; allowed: 4 to 8 on txx"),
        ("t40", {"weight_bits": {"a": 1}}, "no such bit width; got 1"),
        ("t40", {"weight_bits": {"aa": 4}}, "no layer of this name has weights; got 'aa'; allowed: stem, a, b, head"),
    ],
)
def test_wrong_widths(target: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        convert(Net().eval(), chip(target), images(), **options)


def test_widths_are_not_for_the_analog_array() -> None:
    with pytest.raises(UnsupportedError, match="the widths are the chip's"):
        convert(Net().eval(), chip("wtm2101"), images(), bits=4)


def test_sums_that_txx_could_not_hold_keep_eight_bits() -> None:
    """9 x 64 products of 4 and 4 bits are at most 73728, of 6 and 6 bits more (spec/ingenic.md, section 3.2)."""
    net = nn.Sequential(nn.Conv2d(1, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1)).eval()
    x = torch.rand(2, 1, 4, 4)
    found = {bits: bits_of(convert(net, TXX, x, bits=bits))["2"][0] for bits in (4, 6)}
    assert found == {4: 4, 6: 8}
    assert bits_of(convert(net, T40, x, bits=6))["2"][0] == 6
    on_chip(net, "txx", x, bits=6)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(2, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        return self.head(x * torch.sigmoid(self.b(x)))


def test_stand_ins_are_listed() -> None:
    net, x = Gated().eval(), torch.randn(4, 2, 3, 3)
    plain = on_chip(net, "t40", x)
    assert plain.meta["on_cpu"] == {"act": "T40 has no silu", "sigmoid": "T40 has no sigmoid"}
    converted = on_chip(net, "t40", x, approximate=True)
    assert converted.meta["on_cpu"] == {}
    assert converted.meta["approximated"] == {"act": "silu by hardswish", "sigmoid": "sigmoid by hardsigmoid"}
    assert "# approximated: act: silu by hardswish" in repr(converted)
    with torch.no_grad():
        a = F.hardswish(net.a(x))
        expected = net.head(a * F.hardsigmoid(net.b(a)))
        torch.testing.assert_close(convert(net, T40, x[:2], approximate=True)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_an_lstm_may_stand_for_torchs(target: str) -> None:
    torch.manual_seed(0)
    net, x = networks.LstmClassifier().eval(), torch.randn(4, 6, 8)
    converted = calibrated(net, target, x, approximate=True)
    with pytest.raises(UnsupportedError, match="LSTM cannot be lowered: its quantised arithmetic was never measured"):
        lower(converted, x[:1])
    assert converted.meta["approximated"] == {"lstm": "the chip's gates and start"}
    assert "lstm" not in converted.meta["on_cpu"]
    fresh = convert(net, chip(target), x[:2], approximate=True)
    expected = torch.cat([net.lstm.weight_ih_l0, net.lstm.weight_hh_l0], 1)
    assert torch.equal(fresh.lstm.weight_l0, expected)


def test_strict_names_the_users_lines() -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)2 operation\(s\).*act: T40 has no silu \(test_options.py"):
        convert(Gated().eval(), T40, torch.randn(4, 2, 3, 3), strict=True)
    assert convert(Net().eval(), T40, images(), strict=True).meta["on_cpu"] == {}


def test_print_says_what_runs_on_the_cpu_core() -> None:
    text = repr(convert(Gated().eval(), T40, torch.randn(4, 2, 3, 3)))
    assert "# on the CPU core: act: T40 has no silu" in text and "(act): SiLU()" in text


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_copies_and_restored_networks_give_the_same(target: str) -> None:
    net, x = Net().eval(), images()
    converted = calibrated(net, target, x)
    with torch.no_grad():
        expected = converted(x)
        assert torch.equal(copy.deepcopy(converted)(x), expected)
        fresh = convert(net, chip(target), x[:2])
        choices = chipfit.calibrate(convert(net, chip(target), x[:2]), [x])
        chipfit.restore(fresh, choices)
        fresh.load_state_dict(converted.state_dict())
        assert torch.equal(chipfit.set_mode(fresh, "quant")(x), expected)


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_training_reaches_every_weight_and_lowers(target: str) -> None:
    x = images(32)
    labels = (x.mean((1, 2, 3)) > x.mean()).long() + 2 * (x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))).long()
    converted = calibrated(Net().eval(), target, x).train()
    optimiser, losses = torch.optim.Adam(converted.parameters(), 0.01), []
    for _ in range(30):
        optimiser.zero_grad()
        loss = F.cross_entropy(converted(x), labels)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses[-1] < 0.8 * losses[0], losses
    trained = {name: p for name, p in converted.named_parameters() if p.requires_grad}
    assert {"stem.Conv2d.weight", "stem.BatchNorm2d.batch_norm.weight", "head.Linear.bias"} <= set(trained)
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.values())
    converted.eval()
    assert verify(converted, lower(converted, x[:1]), x.split(8)).equal


def test_evaluation_has_a_column_for_float_and_one_for_quant() -> None:
    net, x = Net().eval(), images(16)
    converted = calibrated(net, "t40", x)
    with torch.no_grad():
        labels = net(x).argmax(1)
    matrix = chipfit.evaluate(converted, [(x, labels)], lambda y, t: (y.argmax(1) == t).float().mean().item())
    assert "float" in str(matrix) and "quant" in str(matrix)


def test_mode_float_is_not_lowered() -> None:
    converted = convert(Net().eval(), T40, images())
    with pytest.raises(UnsupportedError, match=r'layers in mode .float. have no codes.*set_mode\(model, "quant"\)'):
        lower(converted, images(1))


def test_modes_go_forth_and_back() -> None:
    net, x = Net().eval(), images()
    converted = calibrated(net, "t40", x)
    with torch.no_grad():
        quant = converted(x)
        floating = chipfit.set_mode(converted, "float")(x)
        assert not torch.equal(quant, floating)
        torch.testing.assert_close(floating, net(x), rtol=1e-5, atol=1e-5)
        assert torch.equal(chipfit.set_mode(converted, "quant")(x), quant)
        assert torch.equal(chipfit.set_mode(converted, "nat")(x), quant)  # a digital chip has no noise

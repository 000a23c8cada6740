"""The plan of scales: no bias clipped where any scales hold it, and never worse than tensor by tensor."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
import witin_nn as wnn
from chipfit.chips.witmem.plan.biases import biases
from chipfit.chips.witmem.wtm2101 import LOG2_G
from chipfit.fit.methods import METHODS, sqnr
from witin_nn import HandleNegInType, WitinLayerConfig


def quantised(net: nn.Module, x: Tensor, method: str = "mse") -> tuple[nn.Module, float]:
    converted = chipfit.convert(net.eval(), chipfit.chip("wtm2101"), x[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = chipfit.calibrate(converted, [x], method)
    return chipfit.set_mode(converted, "quant").eval(), report.sqnr_db


def clipped(net: nn.Module) -> int:
    return sum(int(bias.clipped.sum()) for layer in net.modules() for bias in biases(layer))


def head(bias: float) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 5))
    with torch.no_grad():
        net[2].weight *= 0.3
        net[2].bias[2] = bias
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bias", [-4.6, 30.0])
def test_a_head_keeps_its_bias(bias: float, method: str) -> None:
    x = torch.rand(256, 20)
    net, ratio = quantised(head(bias), x, method)
    assert clipped(net) == 0 and ratio > 30
    with torch.no_grad():
        assert net(x)[:, 2].mean().item() == pytest.approx(head(bias)(x)[:, 2].mean().item(), abs=0.1)


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.25, 0.0625, 16.0])
def test_smaller_weights_cost_little(factor: float) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        net[2].weight *= factor
    found, ratio = quantised(net, torch.rand(16, 3, 12, 12))
    assert clipped(found) == 0 and ratio > 28


@pytest.mark.parametrize("kind", ["gru", "conv1d", "transposed", "grouped"])
@torch.no_grad()
def test_biases_of_every_array_operation(kind: str) -> None:
    torch.manual_seed(2)
    x = torch.rand(16, 6, 8)
    layer: Any
    if kind == "gru":
        layer = nn.GRU(8, 5, 2, batch_first=True, bidirectional=True)
        for name, parameter in layer.named_parameters():
            if name.startswith("bias"):
                parameter.mul_(9)
    else:
        made = {
            "conv1d": nn.Conv1d(6, 4, 3),
            "transposed": nn.ConvTranspose2d(6, 4, 2),
            "grouped": nn.Conv2d(6, 6, 3, groups=3),
        }
        layer = made[kind]
        layer.weight *= 0.05
        layer.bias[0] = -3.0
        x = x if kind == "conv1d" else torch.rand(8, 6, 8, 8)
    net = nn.Sequential(layer)
    converted = chipfit.convert(net.eval(), chipfit.chip("wtm2101"), x[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chipfit.calibrate(converted, [x])
    chipfit.set_mode(converted, "quant")
    assert clipped(converted) == 0
    a, b = net(x), converted(x)
    assert sqnr(a[0] if kind == "gru" else a, b[0] if kind == "gru" else b) > 25


@pytest.mark.parametrize("negative", [HandleNegInType.PN, HandleNegInType.Shift, HandleNegInType.FALSE])
def test_a_held_bias_is_what_the_layer_adds(negative: Any) -> None:
    """What the layer gives for zeros, at an output fine enough to show it."""
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, handle_neg_in=negative, y_quant_bits=12)
    config.scale_x, config.scale_weight, config.scale_y, config.shift_num = 128, 64, 256, 0.5
    layer = wnn.WitinLinear(3, 4, layer_config=config)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.3, -0.2, 17.0, -40.0]))
        (found,) = biases(layer)
        given = layer(torch.zeros(1, 3))[0].clamp(-7.9, 7.9)
    assert found.clipped.tolist() == [False, False, True, True]
    assert torch.allclose(found.held.float().clamp(-7.9, 7.9), given, atol=0.02)


def _errors(net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    _, planned = quantised(net, x)
    with monkeypatch.context() as patch:
        patch.setattr("chipfit.chips.witmem.calibration.plan_scales", lambda *given: {})
        _, before = quantised(net, x)
    return planned, before


def test_never_worse_than_tensor_by_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    from support.random_upwards import RandomNetwork

    gains = []
    for seed in range(300, 320):
        net = RandomNetwork(seed, recurrent=False)
        planned, before = _errors(net, net.data, monkeypatch)
        assert planned > before - 0.01, seed
        gains.append(planned - before)
    assert math.fsum(gains) / len(gains) > 0.3


def test_a_g_inside_what_the_chip_divides_by_stays_inside() -> None:
    torch.manual_seed(3)
    net, _ = quantised(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), torch.rand(64, 64))
    for layer in net.modules():
        if isinstance(layer, wnn.WitinLinear):
            assert 2 ** LOG2_G[0] <= layer.g_value <= 2 ** LOG2_G[1]


def test_the_state_dict_brings_the_planned_scales_back() -> None:
    x = torch.rand(64, 20)
    net, _ = quantised(head(-4.6), x)
    other = chipfit.convert(head(0.0).eval(), chipfit.chip("wtm2101"), x[:2])
    other.load_state_dict(net.state_dict())
    assert torch.equal(chipfit.set_mode(other, "quant").eval()(x), net(x))


def test_certify_marks_a_clipped_bias() -> None:
    x = torch.rand(64, 20)
    net, _ = quantised(head(3e9), x)
    table = chipfit.certify(chipfit.lower(net, x[:2])).table()
    cells = [str(cell) for column in table.columns for cell in column.cells]
    assert any("✗ 1 of 5 bias clipped" in cell for cell in cells)

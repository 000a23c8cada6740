"""Bias correction, and the report on each layer against float."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

import witin_nn as wnn
from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.fit.bias import correct_bias
from chipfit.fit.calibrate import calibrate
from chipfit.fit.quality import layer_quality, quality_table
from chipfit.modes import set_mode
from support.ingenic import branches as networks
from witin_nn import WitinLayerConfig


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, use_quantization=True, **options)


@torch.no_grad()
def test_the_mean_error_of_a_witmem_layer_goes_into_its_bias() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        wnn.WitinConv2d(2, 4, 3, layer_config=config(y_quant_bits=12)),
        nn.ReLU(),
        nn.Flatten(),
        wnn.WitinLinear(64, 3, bias=False, layer_config=config()),
    ).eval()
    x = torch.rand(256, 2, 6, 6)
    calibrate(net, [x], "max")
    net[0].autoscale_weight_obj.io_max.fill_(16.0)  # weights on a grid of 1/8, biases on a coarse one too
    clean = nn.functional.conv2d(x, net[0].weight, net[0].bias)
    before = (net[0](x) - clean).mean((0, 2, 3))
    done = correct_bias(net, x.split(64))
    after = (net[0](x) - clean).mean((0, 2, 3))
    assert [(entry.layer, entry.corrected) for entry in done] == [("0", True), ("3", False)]
    assert done[0].shift == pytest.approx(before.square().mean().sqrt().item(), rel=1e-4)
    assert done[0].left == pytest.approx(after.square().mean().sqrt().item(), rel=1e-4)
    assert bool((after.abs() <= before.abs() + 1e-6).all())
    assert done[0].left < 0.5 * done[0].shift
    assert not net[3].bias.any()


@torch.no_grad()
def test_an_ingenic_network_gains(branches: Any) -> None:
    floats, x = branches["Txx"], networks.images(200, test=True)
    net = networks.Branches(4, "Txx")
    net.load_state_dict(floats.state_dict())
    data = networks.images().split(64)
    calibrate(net, data)
    net.eval()
    clean = floats(x)
    before, plain = (net(x) - clean).square().mean(), copy.deepcopy(net)
    last = {row.layer: row.sqnr_db for row in layer_quality(net, data)}["fc"]
    done = correct_bias(net, data)
    assert all(entry.corrected for entry in done)
    assert [entry.layer for entry in done][:3] == ["conv0", "conv1", "conv2"]
    assert (net(x) - clean).square().mean() < 0.5 * before
    assert {row.layer: row.sqnr_db for row in layer_quality(net, data, reference=plain)}["fc"] > last + 3


@torch.no_grad()
def test_quality_by_hand_and_worst_first() -> None:
    net = nn.Sequential(wnn.WitinTanh(layer_config=config()), wnn.WitinLinear(8, 2, layer_config=config())).eval()
    x = torch.randn(50, 8)
    calibrate(net, [x])
    net[1].noise_level = 3
    set_mode(net, "nat", level=3)
    rows = layer_quality(net, [x[:20], x[20:]])
    assert [layer.mode for layer in net] == ["nat", "nat"]
    assert rows == sorted(rows, key=lambda row: row.sqnr_db)
    by_name = {row.layer: row for row in rows}
    set_mode(net, "quant")
    clean, got = torch.tanh(x).double(), net[0](x).double()
    sqnr = 10 * math.log10(clean.square().sum().item() / (clean - got).square().sum().item())
    assert by_name["0"].sqnr_db == pytest.approx(sqnr, abs=1e-3)
    cosine = torch.nn.functional.cosine_similarity(clean.flatten(), got.flatten(), dim=0).item()
    assert by_name["0"].cosine == pytest.approx(cosine, abs=1e-9)
    assert quality_table(rows, most=1).row_count == 1


@torch.no_grad()
def test_quality_of_every_ingenic_layer(branches: Any) -> None:
    net = networks.Branches(8, "T40").train()
    net.load_state_dict(branches["T40"].state_dict())
    data = networks.images().split(64)
    calibrate(net, data)
    rows = layer_quality(net, data)
    assert {row.layer for row in rows} == {
        *("conv0", "conv1", "conv2", "add", "conv3", "add2", "se", "se.conv1", "se.conv2", "conv4", "fc")
    }
    assert all(row.sqnr_db > 25 and row.cosine > 0.998 for row in rows), rows
    assert net.training and net.conv0.quantize


def test_what_they_refuse() -> None:
    net = nn.Sequential(wnn.WitinLinear(2, 2, layer_config=config()))
    for function in (correct_bias, layer_quality):
        with pytest.raises(CalibrationError, match="the data is empty"):
            function(net, [])
        with pytest.raises(UnsupportedError, match="no chip layers"):
            function(nn.Sequential(nn.Linear(2, 2)), [torch.rand(1, 2)])

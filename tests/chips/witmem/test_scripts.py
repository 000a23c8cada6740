from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from chipfit.chips.witmem.gru.layers import WitinGru
from chipfit.chips.witmem.scripts import fixed_point_model, g_values, save_fixed_point, write_g_values
from chipfit.errors import ChipfitWarning, InvalidValueError, UnsupportedError
from witin_nn import HandleNegInType, WitinConv2d, WitinLayerConfig, WitinLinear


def linear(x: float, weight: float, y: float, **options: object) -> WitinLinear:
    """A layer whose observers have seen these maxima."""
    layer = WitinLinear(3, 2, layer_config=WitinLayerConfig(1, use_quantization=True, **options))
    for name, largest in (("x", x), ("weight", weight), ("y", y)):
        layer.observers[name].io_max.data.fill_(largest)
    return layer


def test_g_from_io_max(tmp_path):
    """s_x = 2^8 / 2^ceil(log2 1.5) = 128, s_w = 2^7 / 2^-1 = 256, s_y = 2^7 / 2^2 = 32: G = 1024."""
    net = nn.Sequential(linear(1.5, 0.5, 3.9), linear(4.0, 0.25, 16.0))
    indices = [net[0].index, net[1].index]
    assert g_values(net) == {str(indices[0]): 1024, str(indices[1]): 64 * 512 // 8}
    path = write_g_values(net, tmp_path / "g.json")
    assert json.loads(path.read_text()) == {str(indices[0]): 1024, str(indices[1]): 4096}


def test_widths_are_the_layers_own():
    conv = WitinConv2d(1, 1, 1, layer_config=WitinLayerConfig(1, use_quantization=True))
    for name in ("x", "weight", "y"):
        conv.observers[name].io_max.data.fill_(1.0)
    with pytest.warns(ChipfitWarning, match="G is 128"):  # a signed input: 8 bits in the formula, not 9
        assert list(g_values(conv).values()) == [128]


def test_configured_scales_count_without_auto_scale():
    layer = linear(1.5, 0.5, 3.9, use_auto_scale=False, scale_x=64, scale_weight=64, scale_y=16)
    assert list(g_values(layer).values()) == [256]


def test_g_below_one():
    with pytest.raises(InvalidValueError, match="below 1"):
        g_values(linear(4096.0, 4096.0, 0.001))


def test_layers_that_share_a_configuration():
    config = WitinLayerConfig(1, use_auto_scale=False, scale_x=64, scale_weight=64, scale_y=16)
    layers = [WitinLinear(2, 2, layer_config=config) for _ in range(2)]
    with pytest.raises(InvalidValueError, match="share one layer_config"):
        g_values(nn.Sequential(*layers))


def test_fixed_point_by_hand(tmp_path):
    layer = linear(1.5, 0.5, 3.9, bias_row_N=2, handle_neg_in=HandleNegInType.PN)  # s_x 128, s_w 256
    weight = torch.tensor([[0.5, -0.5, 1.5 / 256], [2.5 / 256, -0.6, 0.1]])
    layer.load_state_dict({"weight": weight, "bias": torch.tensor([0.26, 40.0])}, strict=False)
    fixed = fixed_point_model(nn.Sequential(layer))[0]
    # 128 is clipped; 1.5 and 2.5 go to the even code; -153.6 is clipped; 25.6 -> 26
    assert fixed.weight.tolist() == [[127, -128, 2], [2, -128, 26]]
    # 0.26 * 32768 / 128 = 66.56 -> 67; 40 * 256 = 10240 -> 254 = 127 * 2
    assert fixed.bias.tolist() == [67 * 128, 254 * 128]
    assert torch.equal(layer.weight, weight)
    path = save_fixed_point(nn.Sequential(layer), tmp_path / "net.safetensors")
    assert torch.equal(load_file(path)["0.weight"], fixed.weight)


def test_recurrent_layers_are_refused():
    net = nn.Sequential(WitinGru(3, 2, layer_config=WitinLayerConfig(1)))
    for function in (g_values, fixed_point_model):
        with pytest.raises(UnsupportedError, match="GRU"):
            function(net)


def test_network_without_array_layers():
    with pytest.raises(UnsupportedError, match="no chip layers"):
        g_values(nn.Sequential(nn.Linear(2, 2)))

"""Modes, frozen scales, the chip registry, and simulated chips."""

import pytest
import torch
from torch import nn

import chipfit
from chipfit.errors import InvalidValueError, UnknownOptionError, UnsupportedError
from chipfit.modes import chip_layers
from witin_nn import LayerConfigFactory, WitinLayerConfig, WitinLinear, WitinTanh


def layer(**options):
    return WitinLinear(4, 3, layer_config=WitinLayerConfig(G_algo=1, **options))


def test_set_mode_reaches_every_layer_and_changes_what_it_computes():
    scales = {"use_auto_scale": False, "scale_x": 32, "scale_weight": 64, "scale_y": 8}
    net = nn.ModuleDict({"a": layer(**scales), "b": nn.Sequential(WitinTanh(layer_config=WitinLayerConfig(G_algo=1)))})
    assert chipfit.set_mode(net, "nat", level=2.5) is net
    assert [m.mode for m in chip_layers(net).values()] == ["nat", "nat"]
    assert net["a"].noise_level == 2.5
    x = torch.rand(2, 4)
    assert not torch.equal(net["a"](x), net["a"](x))
    chipfit.set_mode(net, "quant")
    assert torch.equal(net["a"](x), net["a"](x))
    chipfit.set_mode(net, "float")
    assert torch.equal(net["a"](x), nn.functional.linear(x, net["a"].weight, net["a"].bias))


def test_layers_learn_their_names_for_errors():
    net = nn.Sequential(nn.Sequential(layer(use_quantization=True)))
    chipfit.set_mode(net, "quant")
    net.train()
    net(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"0\.0 \(index \d+\), x"):
        net(torch.zeros(1, 4))


def test_rounding_of_the_silicon():
    net = nn.Sequential(layer(use_quantization=True, use_auto_scale=False, scale_x=1, scale_weight=1, scale_y=1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))
        net[0].bias.zero_()
    net[0].observers["y"].scale = 0.5  # G = 2
    x = torch.tensor([[5.0, 0, 0, 0]])  # -2.5 and 2.5 output codes
    assert (net(x) * 0.5).tolist() == [[-2.0, 2.0, 0.0]]
    chipfit.set_mode(net, "quant", rounding="wtm2101")
    assert (net(x) * 0.5).tolist() == [[-2.0, 3.0, 0.0]]
    with pytest.raises(UnknownOptionError, match="Did you mean 'wtm2101'"):
        chipfit.set_mode(net, "quant", rounding="wtm2011")


def test_frozen_scales_survive_training_and_thawed_ones_do_not():
    net = nn.Sequential(layer(use_quantization=True))
    with torch.no_grad():
        net[0].observers["x"].io_max.fill_(2.0)
    chipfit.freeze_scales(net)
    net.train()
    net(torch.rand(8, 4) * 100)
    assert net[0].observers["x"].io_max == 2.0
    assert net[0].observers["x"].scale == 2**8 / 2
    chipfit.freeze_scales(net, frozen=False)
    net.train()
    net(torch.full((8, 4), 100.0))
    assert net[0].observers["x"].io_max == 100.0


def test_errors():
    with pytest.raises(UnknownOptionError, match="Did you mean 'quant'"):
        chipfit.set_mode(nn.Sequential(layer()), "qant")
    with pytest.raises(InvalidValueError, match="needs a noise level"):
        chipfit.set_mode(nn.Sequential(layer()), "nat")
    with pytest.raises(InvalidValueError, match="0 to 9"):
        chipfit.set_mode(nn.Sequential(layer()), "nat", level=11)
    with pytest.raises(UnsupportedError, match="no chip layers"):
        chipfit.set_mode(nn.Linear(1, 1), "quant")


def test_registry():
    assert chipfit.chip("wtm2101").array.rows == 1792
    with pytest.raises(UnknownOptionError, match="Did you mean 'wtm2101'"):
        chipfit.chip("wtm2110")


def test_a_simulated_chip_keeps_its_cells_and_the_callers_generator():
    net = nn.Sequential(layer(use_quantization=True, noise_level=9, use_auto_scale=False, scale_x=8, scale_weight=32))
    x = torch.rand(5, 4)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with chipfit.simulated_chip(net, 7):
        one = net(x)
        assert torch.equal(net(x), one)
        assert torch.equal(net(x[:2]), one[:2])
    assert torch.equal(torch.rand(3), expected)
    with chipfit.simulated_chip(net, 8):
        assert not torch.equal(net(x), one)
    assert LayerConfigFactory.get_default_config().noise_level == 0


def test_a_frozen_layer_follows_what_it_loads():
    source, target = layer(use_quantization=True), layer(use_quantization=True)
    with torch.no_grad():
        source.autoscale_x_obj.io_max.fill_(3.0)
    chipfit.freeze_scales(target)
    target.load_state_dict(source.state_dict())
    target.train()(torch.rand(2, 4))
    assert target.observers["x"].scale == 2**8 / 4

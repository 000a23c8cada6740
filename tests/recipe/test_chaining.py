"""Chained scales let a calibrated network through to the compiler's layout."""

import pytest
import torch
from torch import nn

import chipfit
from chipfit.chips.witmem.chaining import chain_scales
from chipfit.chips.witmem.demo import digits_cnn
from chipfit.errors import UnsupportedError
from chipfit.export import check_mapper
from chipfit.fit.data import digits
from chipfit.program.ops import Rescale
from witin_nn import WitinElementAdd, WitinLayerConfig, WitinLinear


@pytest.fixture
def calibrated():
    net = digits_cnn()
    images = digits()[0].tensors[0]
    with torch.no_grad():
        net[2].weight.mul_(3)  # so that the scales of neighbours differ
    chipfit.calibrate(net, [images[:200]])
    return chipfit.set_mode(net.eval(), "quant"), images


def test_a_chained_network_reaches_the_compiler(calibrated, tmp_path):
    net, images = calibrated
    with pytest.raises(UnsupportedError, match="do not chain"):
        chipfit.lower(net, images[:1]).export(tmp_path, ["witin_mapper"], samples=images[:100])
    before = {name: net[int(name)].observers["x"].scale for name in "259"}
    changed = chain_scales(net, images[:1])
    assert changed
    program = chipfit.lower(net, images[:1])
    assert not [node for node in program.nodes if isinstance(node.op, Rescale)]
    for name, (old, new) in changed.items():
        assert old == before[name]
        assert net[int(name)].observers["x"].scale == new
    producers = {"2": "0", "5": "2", "9": "5"}
    for name, producer in producers.items():
        assert net[int(name)].observers["x"].scale == net[int(producer)].observers["y"].scale
    files = program.export(tmp_path, ["witin_mapper"], samples=images[:100])
    check_mapper(files[0])
    assert chipfit.verify(net, program, [images[:64]])


def test_chaining_twice_changes_nothing_more(calibrated):
    net, images = calibrated
    chain_scales(net, images[:1])
    assert chain_scales(net, images[:1]) == {}


def test_two_inputs_cannot_follow():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (WitinLinear(4, 4, layer_config=WitinLayerConfig(1)) for _ in range(2))
            self.add = WitinElementAdd(layer_config=WitinLayerConfig(1))

        def forward(self, x):
            return self.add(torch.relu(self.a(x)), self.b(x))

    net = Residual()
    with torch.no_grad():
        net.b.weight.mul_(20)
    chipfit.calibrate(net, [torch.rand(20, 4)])
    with pytest.raises(UnsupportedError, match="no single input"):
        chain_scales(net, torch.rand(1, 4))

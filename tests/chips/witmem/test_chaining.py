"""Chained scales let a calibrated network through to the compiler's layout."""

import copy

import pytest
import torch
from torch import nn

import chipfit
from chipfit import chain_scales
from chipfit.chips.witmem.demo import digits_cnn
from chipfit.chips.witmem.program.ops import arrays
from chipfit.errors import UnsupportedError
from chipfit.export import check_mapper
from chipfit.fit.data import digits
from chipfit.program.ops import Rescale
from witin_nn import HandleNegInType, WitinElementAdd, WitinGru, WitinLayerConfig, WitinLinear


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


def test_the_name_is_public_and_the_error_says_it(calibrated, tmp_path):
    net, images = calibrated
    assert "chain_scales" in chipfit.__all__
    with pytest.raises(UnsupportedError, match=r"chipfit\.chain_scales\(model, example\)"):
        chipfit.lower(net, images[:1]).export(tmp_path, ["witin_mapper"], samples=images[:100])


def config(**options: object) -> WitinLayerConfig:
    return WitinLayerConfig(1, use_quantization=True, **options)


def fixed(inputs: int, outputs: int, x: float, weight: float, y: float, **options: object) -> WitinLinear:
    scales = {"use_auto_scale": False, "scale_x": x, "scale_weight": weight, "scale_y": y}
    return WitinLinear(inputs, outputs, layer_config=config(**scales, **options))


def test_g_comes_into_range():
    first, second, third = fixed(4, 8, 128, 32, 64), fixed(8, 8, 64, 1024, 4), fixed(8, 2, 64, 64, 16)
    net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    wanted = {"0.y": (64.0, 16.0), "2": (64.0, 16.0), "4": (64.0, 4.0), "4.y": (16.0, 1.0)}
    assert chain_scales(net, torch.rand(1, 4)) == wanted
    program = chipfit.lower(net, torch.rand(1, 4))
    assert [op.g for _, _, op in arrays(program)] == [256, 4096, 256]
    assert chipfit.verify(net, program, [torch.rand(50, 4)])


def test_a_g_too_large_takes_coarser_weights():
    net = nn.Sequential(fixed(4, 8, 128, 1024, 2))
    assert chain_scales(net, torch.rand(1, 4)) == {"0.weight": (1024.0, 128.0)}
    assert [op.g for _, _, op in arrays(chipfit.lower(net, torch.rand(1, 4)))] == [8192]


def test_configured_scales_that_were_never_observed_stay():
    net = nn.Sequential(fixed(4, 8, 64, 128, 16), nn.ReLU(), fixed(8, 2, 64, 128, 4))
    assert chain_scales(net, torch.rand(1, 4)) == {"2": (64.0, 16.0)}
    for layer, scales in ((net[0], (64, 128, 16)), (net[2], (16, 128, 4))):
        assert tuple(layer.scales_in_force().values()) == (scales[0], scales[2], scales[1])
    net.train()
    net(torch.rand(3, 4))
    assert net[2].observers["x"].scale == 16


def pn(inputs: int, outputs: int) -> WitinLinear:
    return WitinLinear(inputs, outputs, layer_config=config(handle_neg_in=HandleNegInType.PN))


@pytest.mark.parametrize("method", ["mse", "max"])
@pytest.mark.parametrize("factor", [0.7, 1.0, 3.0])
def test_signed_inputs_become_int8(method, factor):
    torch.manual_seed(0)
    net, x = nn.Sequential(pn(6, 5), nn.ReLU(), pn(5, 3)), factor * torch.randn(200, 6).clamp(-2, 2)
    chipfit.calibrate(net, [x], method)
    before = net[0].observers["x"].scale
    changed = chain_scales(net, x)
    codes = chipfit.program.trace(chipfit.lower(net, x), x)["0.input"]
    assert codes.min() < 0 and 32 <= codes.abs().max() <= 127
    assert changed["0"] == (before, net[0].observers["x"].scale)
    assert chain_scales(net, x) == {}
    again = nn.Sequential(pn(6, 5), nn.ReLU(), pn(5, 3)).eval()
    again.load_state_dict(net.state_dict())
    assert chain_scales(again, x[:1]) == {}


def test_inputs_without_sign_keep_their_codes():
    net, x = nn.Sequential(pn(6, 5), nn.ReLU(), pn(5, 3)), torch.rand(200, 6)
    chipfit.calibrate(net, [x], "max")
    assert "0" not in chain_scales(net, x)


def test_layers_that_share_an_input_get_one_scale(tmp_path):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = fixed(6, 5, 128, 128, 16), fixed(6, 5, 64, 128, 16)

        def forward(self, x):
            return self.a(x), self.b(x)

    net, x = Net(), torch.rand(120, 6)
    assert chain_scales(net, x) == {"a": (128.0, 64.0)}
    program = chipfit.lower(net, x)
    check_mapper(program.export(tmp_path, ["witin_mapper"], samples=x)[0])
    assert chipfit.verify(net, program, [x])


def test_every_cell_of_a_gru():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"num_layers": 2, "bidirectional": True, "batch_first": True}
            self.gru = WitinGru(6, 8, layer_config=config(handle_neg_in=HandleNegInType.PN), **options)
            self.fc = pn(16, 3)

        def forward(self, x):
            return self.fc(self.gru(x)[0][:, -1])

    torch.manual_seed(0)
    net, x = Net(), torch.randn(100, 5, 6)
    chipfit.calibrate(net, [x])
    net.gru.observers["x_l1"].io_max.fill_(0.4)
    untouched = copy.deepcopy(net)
    changed = chain_scales(net, x)
    assert {"gru.x_l0", "gru.x_l0_reverse", "gru.x_l1"} <= set(changed)
    program = chipfit.lower(net, x[:2])
    assert not [node for node in program.nodes if isinstance(node.op, Rescale) and node.op.shift]
    for node in program.nodes:
        if hasattr(node.op, "input_shift"):
            assert node.op.input_shift == 0
            assert 8 <= node.op.input.log2_g <= 13 and 8 <= node.op.hidden.log2_g <= 13
    assert chipfit.verify(net, program, [x])
    with torch.no_grad():
        exact = chipfit.set_mode(untouched, "float").eval()(x)
        lost = (chipfit.program.run(program, x) - exact).norm() / exact.norm()
    assert lost < 0.15, lost

"""Old checkpoints, learned thresholds, and whole networks."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from chipfit import chip
from chipfit.chips.ingenic import demo as ingenic_demo
from chipfit.chips.ingenic import use_vendor_statistics
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature, QuantizeWeight
from chipfit.files import load_model, save_model
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops, quantize_ops
from ingenic_t40_network import Network

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


@pytest.mark.parametrize("bits", [32, 8])
def test_old_clip_keys_are_accepted(bits):
    net = Network(bits)
    state = dict(net.state_dict())
    places = [name for name, module in net.named_modules() if isinstance(module, QuantizeFeature)]
    for name in places:
        state |= {f"{name}.clip_min_value": torch.tensor(0.0), f"{name}.clip_max_value": torch.tensor(6.0)}
    assert len(places) >= 15
    net.load_state_dict(state, strict=True)
    state["conv0.Conv2d.other"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="other"):
        net.load_state_dict(state, strict=True)


def test_float_weights_load_into_quantised_networks(tmp_path):
    plain = Network(32)
    save_model(tmp_path / "float.safetensors", plain)
    for bits in (8, 4):
        net = load_model(tmp_path / "float.safetensors", Network(bits))
        assert list(net.state_dict()) == list(plain.state_dict())
        assert torch.equal(net.conv3.Conv2d.weight, plain.conv3.Conv2d.weight)


def bare(cls):
    """An instance as a foreign pickle leaves it: of our class, without our constructor's attributes."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    return module


def test_whole_pickled_networks_give_their_weights():
    """Such files name the vendor's classes and hold its attributes; the weights can be carried over."""
    foreign = bare(ops.Conv2D)
    foreign.Conv2d, foreign.QuantizeFeature = bare(quantize_ops.Conv2d_Q), bare(quantize_ops.QuantizeFeature)
    foreign.Conv2d.weight = nn.Parameter(torch.rand(32, 32, 3, 3))
    foreign.Conv2d.bias = nn.Parameter(torch.rand(32))
    foreign.QuantizeFeature.register_buffer("clip_max_value", torch.tensor(6.0))
    state = pickle.loads(pickle.dumps(foreign)).state_dict()
    conv = ops.Conv2D(32, 32, **Q8)
    conv.load_state_dict(state, strict=True)
    assert torch.equal(conv.Conv2d.weight, foreign.Conv2d.weight)


def test_off_the_cpu_shapes_come_out():
    """No accelerator is needed to see that nothing asks for values on the way."""
    conv = ops.Conv2D(32, 64, padding=1, enable_batch_norm=True, target_device="T40", **Q8).to("meta")
    fc = ops.FullConnected(64, 10, target_device="Txx", **Q8).to("meta")
    y = conv((torch.rand(2, 32, 4, 4, device="meta"), 8, -1.0))[0]
    z = fc((y.mean((2, 3)), 8, 0.0))[0]
    z.sum().backward()
    assert (y.shape, z.shape) == ((2, 64, 4, 4), (2, 10))
    assert conv.Conv2d.weight.grad.shape == (64, 32, 3, 3)


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_the_manual_s_network(bits):
    torch.manual_seed(0)
    net = Network(bits)
    logits = net(torch.rand(4, 3, 32, 32))
    logits.square().sum().backward()
    assert logits.shape == (4, 10)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    net.eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(net(x)[:1], net(x)[:1])
    assert torch.allclose(net(x)[:1], net(x[:1]), atol=1e-5)


def test_vendor_statistics_reach_every_layer():
    net = Network(8)
    quantisers = [module for module in net.modules() if isinstance(module, QuantizeWeight)]
    assert net.rnn.QuantizeWeight in quantisers and all(q.sequential for q in quantisers)
    use_vendor_statistics(net, False)
    assert not any(q.sequential for q in quantisers)
    use_vendor_statistics(net)
    assert all(q.sequential for q in quantisers)


def test_parallel_copies_compute_the_same():
    conv = ops.Conv2D(32, 32, target_device="T40", **Q8)
    x = torch.rand(2, 32, 4, 4)
    assert torch.equal(nn.DataParallel(conv)((x, 8, 0.0))[0], conv((x, 8, 0.0))[0])


def test_sync_batch_norm_can_be_put_in():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(ops.Conv2D(32, 32, enable_batch_norm=True, **Q8)).eval()
    assert isinstance(net.BatchNorm2d.batch_norm, nn.SyncBatchNorm)
    net((torch.rand(1, 32, 4, 4), 8, 0.0))


def learned(clip, signed=False, bits=4):
    return QuantizeFeature(bits, signed, clip, "T40", learn=True)


def test_learned_threshold_is_off_by_default_and_leaves_the_state_alone():
    on = ops.Conv2D(32, 32, auto_threshold=True, target_device="T40", **Q8)
    off = ops.Conv2D(32, 32, target_device="T40", **Q8)
    assert set(on.state_dict()) - set(off.state_dict()) == {"QuantizeFeature.clip_max_value"}
    on.load_state_dict(off.state_dict())
    assert on.QuantizeFeature.clip_max_value.item() == 6
    x = torch.rand(1, 32, 4, 4)
    assert torch.equal(on((x, 8, 0.0))[0], off((x, 8, 0.0))[0])
    assert not list(ops.BatchNorm(32, quantize=True).QuantizeFeature.parameters())
    assert not list(ops.Conv2D(32, 32, auto_threshold=True).QuantizeFeature.parameters())


def test_learned_threshold_gradient():
    quantiser = learned(2.0)
    x = torch.tensor([-1.0, 0.5, 1.5, 3.0])
    quantiser(x).sum().backward()
    scale = (4 * 15) ** -0.5
    assert quantiser.clip_max_value.grad.item() == pytest.approx(-(0.5 + 1.5) / 4 * scale)


def test_learned_threshold_loads_the_old_kit_s_value():
    quantiser = learned(6.0)
    quantiser.load_state_dict({"clip_min_value": torch.tensor(0.0), "clip_max_value": torch.tensor([3.5])})
    assert quantiser.clip_max_value.item() == 3.5


def test_learned_threshold_comes_down_to_the_data():
    """The signal ends at 1; a clip of 6 wastes most of the 4-bit codes, and learning finds a tighter one."""
    torch.manual_seed(0)
    x = torch.rand(4096)
    quantiser = learned(6.0)
    gain = torch.tensor(6.0, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": quantiser.parameters(), "lr": 0.05}, {"params": [gain], "lr": 0.05}])
    errors = []
    for _ in range(300):
        error = (quantiser(x) * gain - x).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 10
    assert quantiser.clip_max_value.item() < 3


def test_targets_are_registered():
    assert chip("t40").vendor == "ingenic"
    assert chip("t40").operators["PixelShuffle"] == "Pixel_Shuffle"
    assert "ConvTranspose2d" not in chip("t02").operators
    assert min(chip("txx").weight_bits) == 4


@pytest.mark.slow
def test_demo_writes_what_it_says(tmp_path):
    figures = ingenic_demo.run(tmp_path, seed=0, epochs=(2, 1, 1))
    assert set(figures["accuracy"]) == {"float", "8bit", "4bit"}
    assert figures["accuracy"]["float"] > 60
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"float.safetensors", "8bit.safetensors", "4bit.safetensors", "figures.json", "SHA256SUMS"}
    load_model(tmp_path / "4bit.safetensors", ingenic_demo.DigitsNetwork(4))
    with pytest.raises(ValueError, match="epochs"):
        ingenic_demo.run(tmp_path, epochs=(1, 1))

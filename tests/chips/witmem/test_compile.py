"""A compiled network computes the codes of the uncompiled one."""

import copy
import shutil

import pytest
import torch
from torch import nn

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType

pytestmark = pytest.mark.slow

FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift


def config(negative, auto=True, **options):
    scales = {"scale_x": 16, "scale_weight": 64, "scale_y": 16, "use_auto_scale": auto}
    return WitinLayerConfig(1, use_quantization=True, handle_neg_in=negative, **(scales | options))


def network(auto=True):
    torch.manual_seed(0)
    return nn.Sequential(
        WitinConv2d(2, 3, 3, padding=1, layer_config=config(PN, auto)),
        nn.Flatten(),
        WitinLinear(3 * 5 * 5, 8, layer_config=config(FALSE, auto, x_quant_bits=10, y_quant_bits=10)),
        WitinLinear(8, 5, layer_config=config(SHIFT, auto, rounding="wtm2101")),
    )


def small(auto=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), WitinLinear(50, 4, layer_config=config(PN, auto)))


def data(steps=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 2, 5, 5, generator=generator) * 3 for _ in range(steps)]


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same_training(plain, compiled, net):
    """Four steps of training, then evaluation: outputs, gradients, statistics."""
    for x in data():
        plain.zero_grad()
        net.zero_grad()
        y, z = plain(x), compiled(x)
        assert torch.equal(y, z)
        y.square().sum().backward()
        z.square().sum().backward()
        for (name, a), b in zip(plain.named_parameters(), net.parameters(), strict=True):
            if a.requires_grad:
                torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5 * float(a.grad.abs().max())), name
            else:
                assert torch.equal(a, b), name
    plain.eval()
    net.eval()
    for x in data():
        with torch.no_grad():
            assert torch.equal(plain(x), compiled(x))


@pytest.mark.parametrize("auto", [False, True])
def test_training_and_evaluation(auto):
    plain = network(auto)
    net = copy.deepcopy(plain)
    assert_same_training(plain, torch.compile(net, backend="aot_eager"), net)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_inductor():
    plain = small()
    net = copy.deepcopy(plain)
    assert_same_training(plain, torch.compile(net), net)


@pytest.mark.parametrize(
    "make",
    [
        lambda c: WitinConvTranspose2d(2, 3, 2, 2, layer_config=c),
        lambda c: nn.Sequential(nn.Flatten(2), WitinConv1d(2, 3, 5, 3, layer_config=c)),
    ],
    ids=["conv_transpose2d", "conv1d"],
)
def test_other_layers(make):
    net = make(config(PN, False))
    x = data(1)[0]
    assert torch.equal(torch.compile(net, backend="aot_eager")(x), net(x))


def test_set_mode_after_compiling_takes_effect():
    net, x = small(), data(1)[0]
    compiled = torch.compile(net, backend="aot_eager")
    quantised = compiled(x)
    net[1].set_mode("float")
    torch.testing.assert_close(compiled(x), net(x))
    assert not torch.equal(compiled(x), quantised)


def test_noise_is_drawn_afresh_in_a_compiled_network():
    net, x = small(), data(1)[0]
    net[1].set_mode("nat", level=4)
    compiled = torch.compile(net, backend="aot_eager")
    torch.manual_seed(0)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(compiled(x), first)
    first.sum().backward()
    assert net[1].weight.grad.isfinite().all()


def test_steady_training_does_not_recompile():
    """Counting forwards must not be baked into the compiled code."""
    net = small(auto=True)
    compiled = torch.compile(net, backend="eager")
    for x in data(5):
        compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for x in data(4):
            compiled(x)

"""Weights of any size, dead channels, norms in a row: the network on the chip stays the one that was brought."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight
from chipfit.errors import ChipfitWarning
from chipfit.fit.methods import sqnr
from support.conversion import CHIPS, quality, quantised

DATA = Path(__file__).parents[3] / "shared" / "data" / "mlperf_tiny"


def shake(net: nn.Module) -> nn.Module:
    """Batch norms with statistics of their own."""
    for norm in net.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return net.eval()


@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("smallest", [0.5, 1e-3])
def test_norms_in_a_row_are_all_there(target: str, count: int, smallest: float) -> None:
    """Row 3: of two behind a convolution one was lost, and the output off by 2.9."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(32) for _ in range(count)]
    net = shake(nn.Sequential(nn.Conv2d(3, 32, 3), *norms, nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10)))
    with torch.no_grad():
        norms[0].weight[0] = smallest  # below 0.01 the chip's operator cannot have it
        norms[1].weight[1] = -1.0
    x = torch.rand(4, 3, 8, 8)
    converted = chipfit.convert(net, target, x)
    torch.testing.assert_close(converted.eval()(x), net(x), rtol=1e-5, atol=1e-5)
    if target != "wtm2101":
        assert quality(net, target, x) > (20 if target == "t40" else 15)  # half a code beside zero, 1,152 times


def with_dead_channels(norm: bool, size: float = 1e-32) -> nn.Module:
    def block(inputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, 32, 3, padding=1, bias=not norm),
            *([nn.BatchNorm2d(32, eps=1e-3)] if norm else []),
            nn.ReLU(),
        ]

    net = shake(nn.Sequential(*block(3), *block(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)))
    with torch.no_grad():
        for layer, behind in pairwise(net):
            if isinstance(layer, nn.Conv2d):
                layer.weight[::2] *= size
            if isinstance(behind, nn.BatchNorm2d):
                behind.running_var[::2] = 7e-16
                behind.running_mean[::2] *= 1e-20
    return net


@pytest.mark.parametrize("target", ["t40", "txx"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("size", [1e-32, 0.0])
def test_a_dead_channel_is_its_constant(target: str, norm: bool, size: float) -> None:
    """Row 6: NaN gains and infinite variances; zeros, which the weight's grid lacks, came out as -0.05 on Txx."""
    torch.manual_seed(0)
    net, x = with_dead_channels(norm, size), torch.rand(8, 3, 8, 8)
    converted = quantised(net, target, x)
    assert all(bool(torch.isfinite(value).all()) for value in converted.state_dict().values())
    layer = converted.get_submodule("0")
    assert quality(net, target, x) > 20
    codes = converted.preprocess(x)
    with torch.no_grad():
        y = layer(codes)[0]
        dead, alive = y[:, ::2], y[:, 1::2]
        assert torch.equal(dead, dead[:1, :, :1, :1].expand_as(dead))  # the constant, whatever the input
        assert alive.std() > 0
        expected = F.relu(net[1](net[0](x)) if norm else net[0](x))[:1, ::2, :1, :1]
        clip = float(layer.QuantizeFeature.clip_max_value)
        size_of_code = expected.max().item() / dead.max().item() / 255
        torch.testing.assert_close(dead[:1, :, :1, :1] * size_of_code * 255, expected, rtol=0, atol=size_of_code)
        assert clip > 0


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_a_layer_that_is_dead_altogether(target: str) -> None:
    net, x = with_dead_channels(True), torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        net[3].weight.zero_()
        net[4].running_mean.zero_()
        converted = quantised(net, target, x)
        assert sqnr(net(x), converted(x)) > 20


@pytest.mark.parametrize("target", ["t40", "txx"])
@pytest.mark.parametrize("power", [0, -6, -12, -20])
@pytest.mark.parametrize("kind", ["linear", "conv", "depthwise", "relu6", "prelu", "residual"])
def test_small_weights_are_not_stretched(target: str, power: int, kind: str) -> None:
    """Row 7: below 0.05 (Txx) and 1e-4 (T40) the quantiser adds its epsilon to a peak; -77 dB at 2^-20."""
    torch.manual_seed(0)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.a(x)) + F.relu(self.b(x))

    middle: dict[str, nn.Module] = {
        "linear": nn.Conv2d(32, 32, 1),
        "conv": nn.Conv2d(32, 32, 3, padding=1),
        "depthwise": nn.Conv2d(32, 32, 3, padding=1, groups=32),
        "relu6": nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU6()),
        "prelu": nn.Sequential(nn.Conv2d(32, 32, 3), nn.PReLU(32)),
        "residual": Residual(),
    }
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), middle[kind], nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 8)
    )
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.mul_(2.0**power)
                layer.bias.mul_(2.0**power)
    x = torch.rand(8, 3, 10, 10)
    converted = quantised(net, target, x)
    for weight in converted.modules():
        if isinstance(weight, nn.Conv2d) and isinstance(weight.QuantizeWeight, QuantizeWeight):
            least = 0.05 if weight.QuantizeWeight.target_device == "Txx" else 1e-4
            assert weight.weight.abs().flatten(1).amax(1).min().item() >= least
    chipfit.set_mode(converted, "float")
    torch.testing.assert_close(converted(x) / 2.0**power, net(x) / 2.0**power, rtol=1e-4, atol=1e-5)
    chipfit.set_mode(converted, "quant")
    chipfit.correct_bias(converted, [x])  # the grid of Txx lies half a code beside zero
    with torch.no_grad():
        assert sqnr(net(x), converted(x)) > 20
    proof = chipfit.verify(converted, chipfit.lower(converted, x[:1]), [x])
    assert proof.equal, proof


def test_a_default_linear_of_many_inputs_on_txx() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(2048, 10)).eval(), torch.randn(64, 2048)
    assert quality(net, "txx", x) > 30


def test_weights_that_nothing_stretches_stay_what_they_were() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval(), torch.rand(8, 32)
    converted = chipfit.convert(net, "t40", x)
    chipfit.calibrate(converted, [x])
    assert not [name for name, _ in converted.named_modules() if name.endswith("batch_norm")]
    ratio = converted.get_submodule("0.Linear").weight / net[0].weight
    assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=1e-6)  # the clip of the input alone


def test_what_cannot_be_moved_is_said() -> None:
    net, x = nn.Sequential(nn.Linear(64, 8)).eval(), torch.rand(4, 64)
    with torch.no_grad():
        net[0].weight.mul_(2.0**-90)
    converted = chipfit.convert(net, "t40", x)
    with pytest.warns(ChipfitWarning, match="0: the largest weight is below the chip's epsilon"):
        chipfit.calibrate(converted, [x])


def test_training_keeps_what_takes_the_size_back() -> None:
    """The norm that only divides does so in training too, and its numbers are no parameters to train."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(64, 8)).eval(), torch.rand(16, 64)
    with torch.no_grad():
        net[0].weight.mul_(1e-6)
        net[0].bias.mul_(1e-6)
    converted = quantised(net, "t40", x)
    evaluated = converted.eval()(x)
    assert torch.equal(converted.train()(x), evaluated)
    converted(x).sum().backward()
    names = {name for name, value in converted.named_parameters() if value.grad is not None}
    assert names == {"0.Linear.weight", "0.Linear.bias"}


class Vww(nn.Module):
    """MobileNetV1 of width 0.25 with TensorFlow's borders, from tensors named `<index>.<kind>.<what>`."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, kind, what = key.split(".")
            parts.setdefault(f"{index}.{kind}", {})[what] = value
        self.layers = nn.ModuleList()
        channels, size = 3, 96
        for name, values in sorted(parts.items()):
            kind = name.split(".")[1]
            if kind == "conv":
                outputs, inputs, kernel, _ = values["weight"].shape
                groups = channels // inputs
                stride = 2 if kernel == 3 and self._halves(len(self.layers)) else 1
                if kernel == 3:
                    total = (size // stride - 1) * stride + 3 - size
                    before = total // 2
                    self.layers.append(nn.ZeroPad2d((before, total - before, before, total - before)))
                size //= stride
                layer: nn.Module = nn.Conv2d(inputs * groups, outputs, kernel, stride, groups=groups)
                channels = outputs
            elif kind == "norm":
                layer = nn.BatchNorm2d(channels, eps=1e-3)
            else:
                layer = nn.Linear(*reversed(values["weight"].shape))
            layer.load_state_dict(values, strict=False)
            self.layers.append(layer)

    def _halves(self, _: int) -> bool:
        convs = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        # the first one, then the depthwise ones before 32, 64, 128 and 256 channels
        return len(convs) in (0, 3, 7, 11, 23)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x)
            if isinstance(layer, nn.BatchNorm2d):
                x = F.relu(x)
        head: Tensor = self.layers[-1](x.mean((2, 3)))
        return head


@pytest.mark.skipif(not (DATA / "vww.safetensors").exists(), reason="../shared/data/mlperf_tiny is not here")
@pytest.mark.parametrize(("target", "least"), [("t40", 30), ("txx", 25)])
def test_the_dead_channels_of_a_published_network(target: str, least: float) -> None:
    """971 channels of MLPerf Tiny's person detector have weights near 1e-32: NaN before."""
    from safetensors.torch import load_file

    torch.manual_seed(0)
    net, x = Vww(load_file(DATA / "vww.safetensors")).eval(), torch.rand(4, 3, 96, 96)
    converted = quantised(net, target, x)
    assert all(bool(torch.isfinite(value).all()) for value in converted.state_dict().values())
    chipfit.set_mode(converted, "float")
    torch.testing.assert_close(converted(x), net(x), rtol=1e-3, atol=1e-3)
    chipfit.set_mode(converted, "quant")
    with torch.no_grad():
        assert sqnr(net(x), converted(x)) > least

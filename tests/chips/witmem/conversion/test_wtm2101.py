"""Ordinary networks on the WTM2101: equal in float, and every code equal in the integer program."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.convert import check, convert
from chipfit.errors import ChipfitWarning, UnsupportedError
from chipfit.program import lower, verify
from chipfit.vendor import chip
from support import networks
from support.networks import ZOO, from_zoo, lively

CHIP = chip("wtm2101")


def assert_on_chip(net: nn.Module, x: Tensor) -> nn.Module:
    converted = convert(net, CHIP, x[:2])
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
    assert converted.meta["on_cpu"] == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # A few squeezed channels of random weights may all be cut by their ReLU.
        warnings.filterwarnings(
            "ignore",
            r"whole network: \S+ dB against float",
            ChipfitWarning,  # weights are random
        )
        warnings.filterwarnings(
            "ignore", r"\S*\.se\.conv2, x; \S*\.se\.conv2, y; \S*\.se\.sigmoid, x: only zeros", ChipfitWarning
        )
        chipfit.calibrate(converted, [x])
    chipfit.set_mode(converted, "quant")
    program = lower(converted, x[:1])
    proof = verify(converted, program, x.split(2))
    assert proof.equal, proof
    assert sum(proof.codes.values()) > 100
    return converted


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_others_run_on_the_chip_code_for_code(name: str) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert_on_chip(from_zoo(name), x)


@pytest.mark.parametrize("kind", [k for k in networks.EXAMPLES if k is not networks.Transformer])
def test_ordinary_networks_run_on_the_chip_code_for_code(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    assert_on_chip(lively(kind()), torch.randn(4, *networks.EXAMPLES[kind]))


def test_what_a_transformer_cannot_map_is_listed_and_stays_torch() -> None:
    torch.manual_seed(0)
    net, x = networks.Transformer().eval(), torch.randn(2, 5, 16)
    converted = convert(net, CHIP, x)
    torch.testing.assert_close(converted(x), net(x), rtol=1e-5, atol=1e-5)
    assert sorted(converted.meta["on_cpu"]) == ["norm1", "norm2", "softmax"]
    assert isinstance(converted.norm1, nn.LayerNorm)
    report = check(net, CHIP, x)
    assert {row.name for row in report.rows if row.unit == "cpu"} == {"norm1", "norm2", "softmax"}
    assert report.coverage == 1.0 and not report.ok  # attention's products run on the chip
    with pytest.raises(UnsupportedError, match=r"softmax: the chip has no softmax \(networks.py, line \d+: weights = "):
        convert(net, CHIP, x, strict=True)
    chipfit.calibrate(converted, [x])
    with pytest.raises(UnsupportedError, match="LayerNorm has no integer form"):
        lower(chipfit.set_mode(converted, "quant"), x)


class Bordered(nn.Module):
    """Borders, and maxima over space and over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.border, self.mirror = nn.ZeroPad2d((1, 0, 1, 0)), nn.ReflectionPad2d(1)
        self.a, self.b, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(torch.relu(self.a(self.border(x))), (0, 1, 0, 1))
        x = self.b(self.mirror(x))
        return self.head(torch.cat([x.amax((2, 3)), torch.max(x, 1, keepdim=True).values.flatten(1)[:, :1]], 1))


def test_borders_and_maxima_are_moves_of_codes() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 6, 6)
    assert_on_chip(Bordered().eval(), x)
    rows = {row.name: row for row in check(Bordered().eval(), CHIP, x).rows}
    assert {name: rows[name].operator for name in ("border", "mirror", "pad", "amax")} == {
        **dict.fromkeys(("border", "mirror", "pad"), "moves codes"),
        "amax": "selects codes",
    }
    assert rows["pad"].problems == () and rows["pad"].suggestions[0].startswith("The chip's compiler pads with zeros")
    assert rows["amax"].problems == ("the chip's compiler has maxima of windows of an image only",)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda x: nn.functional.pad(x, (1, 1), value=0.3), "padding with 0.3, which may be no code"),
        (lambda x: torch.max(x, torch.relu(x)), "the larger of two tensors, element by element"),
        (lambda x: x - x.amax(), "a maximum over the batch"),
    ],
)
def test_other_borders_and_maxima_stay_on_the_cpu_core(forward: Any, reason: str) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    (row,) = check(Net(), CHIP, torch.randn(2, 3)).problems
    assert (row.unit, row.problems) == ("cpu", (f"{reason}: runs on the CPU core",))


def test_names_parameters_and_signs_follow_the_network() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 2)
    )
    converted = convert(net.eval(), CHIP, torch.randn(1, 1, 8, 8))
    own = converted.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(own[name], value), name
    signs = [getattr(converted, name).layer_config.handle_neg_in for name in ("0", "4", "5")]
    assert signs == [HandleNegInType.PN, HandleNegInType.FALSE, HandleNegInType.PN]
    positive = convert(net, CHIP, torch.rand(1, 1, 8, 8))
    assert getattr(positive, "0").layer_config.handle_neg_in is HandleNegInType.FALSE
    assert getattr(positive, "0").layer_config.x_quant_bits == 9


def test_dropout_vanishes_in_evaluation_only() -> None:
    net = networks.GruKeywords()
    x = torch.randn(64, 10, 21)
    converted = convert(net, CHIP, x)
    assert converted.training
    assert not torch.equal(converted(x), converted(x))
    converted.eval()
    assert torch.equal(converted(x), converted(x))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.PixelShuffle(2), (8, 3, 3)),
        (nn.Upsample(scale_factor=2), (4, 3, 5)),
        (nn.AdaptiveMaxPool2d(1), (4, 6, 6)),
        (nn.AvgPool2d(7), (4, 7, 7)),
        (nn.BatchNorm2d(4), (4, 3, 3)),
        (nn.GELU(), (4, 3, 3)),
        (nn.Hardsigmoid(), (4, 3, 3)),
        (nn.ReLU6(), (4, 3, 3)),
    ],
)
def test_a_layer_after_a_relu_is_the_chips_own(module: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(shape[0], shape[0], 1)
    assert_on_chip(nn.Sequential(first, nn.ReLU(), lively(module)).eval(), torch.randn(3, *shape))


class Arithmetic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        gate = 1 - torch.sigmoid(a - b)
        root = torch.sqrt(torch.relu(a * b) + 0.5)
        parts = torch.cat([a / (gate + 1), root, -b], dim=1).chunk(3, dim=1)
        return parts[0] + parts[1].mean(1, keepdim=True) * parts[2]


def test_functions_become_the_chips_layers() -> None:
    torch.manual_seed(0)
    converted = assert_on_chip(Arithmetic().eval(), torch.randn(6, 8))
    kinds = {type(module).__name__ for module in converted.modules()}
    assert {"WitinElementAdd", "WitinElementMul", "WitinElementDivide", "WitinSqrt", "WitinCat", "WitinMean"} <= kinds


class Functions(nn.Module):
    """Weights that functions read, a size computed in Python, an expansion, a function without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 1, 3, 3)), nn.Parameter(torch.randn(4))
        self.out = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(nn.functional.conv2d(x, self.weight, self.bias, padding=1))
        if x.shape[-1] % 2 == 0:
            x = nn.functional.avg_pool2d(x, (x.size(2) // 2, 3))
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True)).expand_as(x)
        return nn.functional.linear(x.amax((2, 3)), self.out)


def test_functions_with_weights_sizes_and_expansions() -> None:
    torch.manual_seed(0)
    net, x = Functions().eval(), torch.randn(2, 1, 6, 6)
    converted = convert(net, CHIP, x)
    torch.testing.assert_close(converted(x), net(x), rtol=1e-5, atol=1e-5)
    assert converted.meta["on_cpu"] == {}
    assert torch.equal(converted.conv2d.weight, net.weight) and torch.equal(converted.linear.weight, net.out)
    assert converted.avg_pool.weight.unique().tolist() == pytest.approx([1 / 9])
    assert "expand" not in converted.code


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(4, 4), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(self.act(self.fc(torch.relu(x)))))


def test_calls_of_one_module_share_weights_but_no_scales() -> None:
    torch.manual_seed(0)
    converted = assert_on_chip(Twice().eval(), torch.randn(9, 4))
    assert [name for name, m in converted.named_modules() if type(m).__name__ == "WitinLinear"] == ["fc"]
    assert [name for name, m in converted.named_modules() if type(m).__name__ == "WitinTanh"] == ["act", "act_1"]
    assert converted.fc.layer_config.handle_neg_in is HandleNegInType.PN  # the second call sees negative values


def test_an_embedding_runs_on_the_cpu_core() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    x = torch.randint(9, (5, 3))
    converted = convert(net, CHIP, x)
    assert converted.meta["on_cpu"] == {"0": "the chip has no embedding"}
    assert torch.equal(converted(x), net(x))


def test_the_global_configuration_does_not_leak_in() -> None:
    from chipfit.chips.witmem.config.config import WitinGlobalConfig

    WitinGlobalConfig().w_clip = 0.01
    net, x = nn.Sequential(nn.Linear(3, 3)).eval(), torch.randn(2, 3)
    assert torch.equal(convert(net, CHIP, x)(x), net(x))

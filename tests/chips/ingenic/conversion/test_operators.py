"""Which operators of an Ingenic chip stand for torch's, and what stands beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.operators.bridges import ToTensor
from chipfit.convert import convert
from chipfit.vendor import chip
from support.conversion import kinds, on_chip

T40 = chip("t40")


class Zipped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 1)
        self.parts = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(4))
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        outs = [torch.relu(part(y)) for part, y in zip(self.parts, x.split(2, dim=1), strict=True)]
        first, *rest = x.chunk(4, dim=1)[::-1]
        return self.head(torch.cat([*outs[:3], first + rest[-1]], 1))


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_parts_are_taken_by_zip_slices_and_stars(target: str) -> None:
    converted = on_chip(Zipped().eval(), target, torch.rand(2, 2, 4, 4))
    assert converted.meta["on_cpu"] == {} and kinds(converted).count("Channel_Split") == 2


class Differences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.a(x)), self.b(x)
        y = torch.add(a - b, 1 - a, alpha=0.5)
        return self.head(torch.max(y, torch.rsub(a, b, alpha=2)) - 0.25)


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_differences_and_weighted_sums(target: str) -> None:
    converted = on_chip(Differences().eval(), target, torch.randn(4, 2, 3, 3))
    assert converted.meta["on_cpu"] == {}
    assert kinds(converted).count("Shortcut") == 3 and kinds(converted).count("Max") == 1


@pytest.mark.parametrize(
    ("layer", "padding", "added"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), 1, None),
        (nn.Conv2d(2, 2, 3), 0, None),
        (nn.Conv2d(2, 2, (4, 2), padding="same"), 1, None),
        (nn.Conv2d(2, 2, 3, padding=2), 0, (2, 2, 2, 2)),
        (nn.Conv2d(2, 2, 3, 2, 1), 0, (1, 1, 1, 1)),
        (nn.Conv2d(2, 2, (3, 5), padding=(0, 1), dilation=2), (0, 1), None),
        (nn.Conv2d(2, 2, 3, padding="same", dilation=2), (2, 2), None),
        (nn.Conv2d(2, 2, (1, 2), padding="same", dilation=3), 0, (1, 2, 0, 0)),
    ],
)
def test_borders_are_the_chips_or_an_operator(layer: nn.Conv2d, padding: Any, added: Any) -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), layer).eval()
    converted = on_chip(net, "t40", torch.randn(2, 2, 8, 8))
    built = converted.get_submodule("2")
    assert isinstance(built, nn.Sequential) is (added is not None)
    if added is not None:
        assert built.pad.pads == added
        built = built.conv
    assert built.Conv2d.same is (padding == 1)
    if padding != 1:
        assert tuple(built.Conv2d.padding) == (padding if isinstance(padding, tuple) else (0, 0))


@pytest.mark.parametrize(
    ("module", "shape", "names"),
    [
        (nn.MaxPool2d(3, 2, 1), (2, 8, 8), ["PadFeature", "Maxpool2D"]),
        (nn.MaxPool2d(2, 2, ceil_mode=True), (2, 5, 7), ["PadFeature", "Maxpool2D"]),
        (nn.MaxPool1d(3), (2, 9), ["Flatten", "Maxpool2D", "Flatten"]),
        (nn.AvgPool2d(3, 1, 1), (2, 5, 5), ["PadFeature", "Avgpool2D"]),
        (nn.AdaptiveAvgPool2d(2), (2, 6, 4), ["Avgpool2D"]),
        (nn.AdaptiveAvgPool1d(1), (2, 6), ["Flatten", "AdaptiveAvgpool2D", "Flatten"]),
        (nn.Upsample(scale_factor=(2, 3)), (2, 3, 3), ["Unpool2D"]),
        (nn.ConvTranspose2d(2, 3, 3, 2, 1, 1), (2, 4, 4), ["Unpool2D", "PadFeature", "Conv2D"]),
        (nn.ZeroPad2d((1, 0, 2, 1)), (2, 4, 4), ["PadFeature"]),
    ],
)
@pytest.mark.parametrize("target", ["t40", "txx"])
def test_pools_borders_and_enlargements(
    target: str, module: nn.Module, shape: tuple[int, ...], names: list[str]
) -> None:
    first = nn.Conv2d(shape[0], shape[0], 1) if len(shape) == 3 else nn.Conv1d(shape[0], shape[0], 1)
    for between in (nn.ReLU(), nn.Identity()):  # unsigned and signed
        converted = on_chip(nn.Sequential(first, between, module).eval(), target, torch.randn(4, *shape))
        built = converted.get_submodule("2")
        parts = list(built) if isinstance(built, nn.Sequential) else [built]
        assert [type(part).__name__ for part in parts] == names


def test_only_what_is_an_activation_behind_one_reader_goes_inside() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(y) + y

    converted = convert(Read().eval(), T40, torch.randn(2, 2, 3, 3))
    assert kinds(converted) == ["ToFeature", "Conv2D", "DepthwiseConv2D", "Shortcut", "ToTensor"]


def test_bridges_lead_off_the_chip_and_back() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.SiLU(), nn.Conv2d(2, 2, 1)).eval()
    converted = convert(net, T40, torch.randn(2, 2, 3, 3))
    assert kinds(converted) == ["ToFeature", "Conv2D", "ToTensor", "SiLU", "ToFeature", "Conv2D"]
    assert isinstance(converted.to_tensor, ToTensor) and converted.meta["on_cpu"] == {"1": "T40 has no silu"}


def test_functions_on_the_cpu_core_that_are_moved_become_codes_first() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.SiLU(), nn.Dropout(), nn.Flatten(), nn.Linear(18, 2)).eval()
    converted = on_chip(net, "t40", torch.randn(4, 2, 3, 3))
    assert kinds(converted) == [
        "ToFeature",
        "Conv2D",
        "ToTensor",
        "SiLU",
        "ToFeature",
        "Dropout",
        "Flatten",
        "FullConnected",
    ]


def test_numbers_of_the_forward_are_no_parameters() -> None:
    class Numbers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return -(torch.relu(self.conv(x)) * 2 + 1) / 4

    converted = convert(Numbers().eval(), T40, torch.rand(2, 2, 3, 3))
    layers = [converted.mul, converted.add, converted.neg, converted.div]
    assert [layer.Conv2d.weight.unique().item() for layer in layers] == [2.0, 1.0, -1.0, 0.25]
    assert [layer.QuantizeFeature.signed for layer in layers[:3]] == [False, False, True]
    assert converted.add.Conv2d.bias.tolist() == [1.0, 1.0]
    trained = {name for name, p in converted.named_parameters() if p.requires_grad}
    assert trained == {"conv.Conv2d.weight", "conv.Conv2d.bias"}


class Spread(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 3, 1, 1, 2)


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2, dilation=2), Spread()])
def test_a_maximum_over_pixels_that_are_not_neighbours_stays_torch(layer: nn.Module) -> None:
    net, x = nn.Sequential(nn.Conv2d(32, 32, 1), layer).eval(), torch.randn(2, 32, 9, 9)
    converted = convert(net, chip("t40"), x)
    assert list(converted.meta["on_cpu"].values()) == ["a maximum over pixels that are not neighbours"]
    torch.testing.assert_close(converted(x), net(x))


def test_tracing_leaves_the_example_alone() -> None:
    net, x = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(32, 32, 1)).eval(), torch.randn(2, 32, 4, 4)
    before = x.clone()
    convert(net, chip("t40"), x)
    assert torch.equal(x, before)

"""What a converted Ingenic network is made of: the user's parameters, the chip's layers, what stands between them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.chips.ingenic import DepthwiseConv2D, Preprocess
from chipfit.chips.ingenic.operators.bridges import ToFeature
from chipfit.convert import convert
from chipfit.errors import UnsupportedError
from chipfit.vendor import chip
from support.conversion import calibrated, kinds, on_chip

T40, TXX = chip("t40"), chip("txx")


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    ).eval()


def pixels(*shape: int, mean: float = 0.0, var: float = 255.0) -> Tensor:
    return (torch.randint(256, shape).float() - mean) / var


def test_names_and_parameters_stay() -> None:
    net = small()
    converted = convert(net, T40, pixels(2, 3, 4, 4))
    assert kinds(converted) == ["Preprocess", "Conv2D", "Flatten", "FullConnected"]
    conv, linear = converted.get_submodule("0"), converted.get_submodule("4")
    assert torch.equal(conv.Conv2d.weight, net[0].weight) and conv.Conv2d.bias is None
    assert torch.equal(linear.Linear.weight, net[4].weight) and torch.equal(linear.Linear.bias, net[4].bias)
    assert conv.Conv2d.weight is not net[0].weight  # the user's network is not changed by training the other
    assert (conv.first_layer, conv.last_layer, linear.first_layer, linear.last_layer) == (True, False, False, True)
    assert sum(p.numel() for p in converted.parameters()) == sum(p.numel() for p in net.parameters())


def test_a_batch_norm_goes_inside_with_its_signs_turned_or_is_folded() -> None:
    net = small()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([1.0, -2.0, 0.5, -0.25]))
        net[1].running_mean.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    x = pixels(2, 3, 4, 4)
    converted = convert(net, T40, x)
    conv = converted.get_submodule("0")
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert torch.equal(conv.BatchNorm2d.batch_norm.weight, net[1].weight.abs())
    assert torch.equal(conv.BatchNorm2d.batch_norm.running_mean, net[1].running_mean * signs)
    assert torch.equal(conv.Conv2d.weight, net[0].weight * signs.view(-1, 1, 1, 1))
    assert converted.meta["folded"] == []
    torch.testing.assert_close(converted(x), net(x), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        net[1].weight[2] = 0.009  # less than the chip's gain can be
    folded = convert(net, T40, x)
    assert folded.get_submodule("0").BatchNorm2d is None and folded.meta["folded"] == ["1"]
    torch.testing.assert_close(folded(x), net(x), rtol=1e-5, atol=1e-6)


def test_a_batch_norm_of_its_own_is_a_depthwise_convolution() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        net[2].weight.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0]))
        net[2].running_var.copy_(torch.tensor([1.0, 4.0, 1.0, 0.25]))
        net[2].bias.copy_(torch.arange(4.0))
    net[2].eps = 0.0
    converted = convert(net, T40, torch.rand(2, 2, 3, 3))
    layer = converted.get_submodule("2")
    assert isinstance(layer, DepthwiseConv2D)
    assert layer.Conv2d.weight.flatten().tolist() == [1.0, -0.5, 0.0, 4.0]
    assert layer.Conv2d.bias.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert layer.Conv2d.weight.requires_grad


@pytest.mark.parametrize(
    ("x", "mean", "var"),
    [
        (pixels(2, 3, 4, 4), 0.0, 255.0),
        (pixels(2, 3, 4, 4, mean=128.0, var=128.0), 128.0, 128.0),
        (pixels(2, 3, 4, 4, var=1.0), 0.0, 1.0),
    ],
)
def test_whole_numbers_of_eight_bits_are_an_image(x: Tensor, mean: float, var: float) -> None:
    converted = on_chip(small(), "t40", x)
    assert isinstance(converted.preprocess, Preprocess)
    assert (converted.preprocess.mean, converted.preprocess.var) == (mean, var)


@pytest.mark.parametrize(("x", "tags"), [(torch.rand(2, 3, 4, 4), (8, 0.0, 255.0, 0.0))])
def test_any_other_input_is_quantised_like_an_image(x: Tensor, tags: tuple[Any, ...]) -> None:
    converted = on_chip(small(), "t40", x)
    assert isinstance(converted.preprocess, ToFeature) and converted.preprocess.image
    assert converted.preprocess.tags == tags
    signed = on_chip(small(), "t40", torch.randn(2, 3, 4, 4))
    assert signed.preprocess.tags == (8, 128.0, 128.0, -1.0)
    assert signed.get_submodule("0").first_layer


def test_t02_has_no_first_layer() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()
    converted = on_chip(net, "t02", torch.randn(2, 2, 5, 5))
    assert kinds(converted) == ["ToFeature", "Conv2D", "Conv2D"]
    assert not converted.to_feature.image and not converted.get_submodule("0").first_layer


class TwoReaders(nn.Module):
    """The input is read by a layer and by an average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([torch.relu(self.conv(x)), F.avg_pool2d(x, 1)], 1))


def test_an_input_that_something_else_reads_comes_as_any_feature() -> None:
    converted = on_chip(TwoReaders().eval(), "t40", torch.rand(2, 2, 4, 4))
    assert not converted.conv.first_layer and not converted.to_feature.image
    assert kinds(converted).count("ToFeature") == 1  # one for both


class Focused(nn.Module):
    """YOLOv5's first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(12, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.head(torch.relu(self.conv(torch.cat(patches, 1))))


def test_every_second_row_and_column_is_part_of_the_first_layer() -> None:
    converted = on_chip(Focused().eval(), "t40", pixels(2, 3, 8, 8))
    assert kinds(converted) == ["Preprocess", "Conv2D", "Conv2D"]
    assert converted.conv.is_focus and converted.meta["on_cpu"] == {}


class Residual(nn.Module):
    """Sums, the last of them activated and in place."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(count))
        self.act, self.head = nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        for branch in self.branches:
            x = x + branch(x)
        return self.head(self.act(x))


def test_an_activation_behind_a_sum_is_a_depthwise_convolution() -> None:
    converted = on_chip(Residual().eval(), "t40", torch.randn(2, 3, 5, 5))
    assert kinds(converted)[-4:] == ["Conv2D", "Shortcut", "DepthwiseConv2D", "Conv2D"]
    relu = convert(Residual().eval(), T40, torch.randn(2, 3, 5, 5)).get_submodule("act_1")
    assert relu.Conv2d.weight.unique().tolist() == [1.0] and not relu.Conv2d.weight.requires_grad


def test_chains_of_sums_are_requantised_where_the_chip_averages() -> None:
    x = torch.randn(2, 3, 5, 5)
    on_t40 = on_chip(Residual(3).eval(), "t40", x)
    on_txx = on_chip(Residual(3).eval(), "txx", x)
    assert [kinds(net).count("Shortcut") for net in (on_t40, on_txx)] == [3, 3]
    added = [sum("requantise" in n for n, _ in net.named_children()) for net in (on_t40, on_txx)]
    assert added == [0, 2]  # what a sum gives goes into the next


class Joined(nn.Module):
    """A concatenation of signed and unsigned features."""

    def __init__(self, then: Any = None, width: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(2, width, 1), nn.Conv2d(2, width, 1), nn.Conv2d(2 * width, 2, 1)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([torch.relu(self.a(x)), self.b(x)], 1)
        return self.head(joined) if self.then is None else self.then(joined)


def test_joined_features_have_one_sign() -> None:
    x = torch.rand(2, 2, 4, 4)
    converted = on_chip(Joined().eval(), "t40", x)
    assert sorted(kinds(converted)) == ["Conv2D", "Conv2D", "Conv2D", "DepthwiseConv2D", "Route", "ToFeature"]
    assert converted.requantise.QuantizeFeature.signed
    on_t02 = convert(Joined().eval(), chip("t02"), x)
    assert on_t02.meta["on_cpu"]["cat"] == "Route joins features of one sign on T02"


@pytest.mark.parametrize(
    "then",
    [
        lambda x: x.permute(0, 2, 3, 1) * 2,
        lambda x: F.pixel_shuffle(x, 2) * 2,
        lambda x: x.reshape(x.shape[0], 2, -1) * 2,
        lambda x: x[:, 3] * 2,
    ],
)
def test_channels_of_several_ranges_get_one_before_they_are_mixed(then: Any) -> None:
    converted = calibrated(Joined(then, 64).eval(), "t40", torch.rand(4, 2, 4, 4))
    assert [name for name, _ in converted.named_children() if "req" in name] == ["requantise", "requantise_1"]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.fc(torch.relu(self.fc(x)))))


def test_a_layer_that_is_called_twice_runs_on_the_cpu_core() -> None:
    net = Twice().eval()
    converted = calibrated(net, "t40", torch.randn(9, 4))
    reason = "its calls share one weight, and their inputs may have two ranges"
    assert {name: converted.meta["on_cpu"].get(name) for name in ("fc", "fc_1")} == {"fc": reason, "fc_1": reason}
    assert type(converted.fc) is nn.Linear and torch.equal(converted.fc.weight, net.fc.weight)


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(16, 64), nn.Linear(64, 16), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.relu(self.a(x)))
        return F.dropout(self.b(x), 0.5, self.training)


def test_dropout_drops_in_training_only() -> None:
    x = torch.randn(8, 16)
    converted = on_chip(Dropped().eval(), "t40", x)
    assert torch.equal(converted(x), converted(x))
    converted.train()
    assert not torch.equal(converted(x), converted(x))
    assert 0.3 < (converted(x) == 0).float().mean().item() < 0.7  # that of the function
    assert convert(Dropped().train(), T40, x).training


class Overwritten(nn.Module):
    """Overwrites a view of a tensor that it reads afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 0].mul_(2.0)  # of a channel that the ReLU cuts on the example, so that no comparison shows it
        return torch.relu(y - 100.0)


class InPlace(nn.Module):
    """A residual network whose activation changes the identity's values, as some do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.b(self.act(y))
        z += y  # the activated one
        z.relu_()
        return z * 2


def test_what_is_computed_in_place_stays_what_it_was() -> None:
    on_chip(InPlace().eval(), "t40", torch.randn(4, 2, 3, 3))
    on_chip(InPlace().eval(), "txx", torch.randn(4, 2, 3, 3))


@pytest.mark.parametrize("target", ["t40", "wtm2101"])
def test_overwriting_part_of_a_tensor_is_refused(target: str) -> None:
    with pytest.raises(UnsupportedError, match=r"y\[:, 0\].mul_.*does not give what the network gives"):
        convert(Overwritten().eval(), chip(target), torch.randn(2, 2, 3, 3))

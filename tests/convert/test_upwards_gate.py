"""The gate upwards: what `convert` gives is compared with what was brought, relative to its size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.convert import fold, trace
from chipfit.convert.relative import TOLERANCE, difference
from chipfit.errors import UnsupportedError
from support.conversion import CHIPS


class Named(nn.Module):
    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU()
        self.head = nn.Linear(32, 10)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.head.weight.mul_(size)
            self.head.bias.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.stem(x))).mean((2, 3)))


def test_a_difference_is_measured_by_the_size_of_what_is_compared() -> None:
    x = torch.tensor([1.0, -2.0, 0.5])
    for size in (1e-20, 1.0, 1e20):
        assert difference(x * size, x * size) == 0.0
        assert difference(x * size, x * size * (1 + 1e-3)) == pytest.approx(1e-3, rel=1e-3)
    assert difference(torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 1.0])) == 0.0
    assert difference(torch.tensor([torch.inf, 1.0]), torch.tensor([2.0, 1.0])) == torch.inf
    assert difference(torch.tensor([1.0, 1.0]), torch.tensor([torch.nan, 1.0])) == torch.inf
    assert difference(torch.zeros(2), torch.tensor([0.0, 1e-30])) == torch.inf


@pytest.mark.parametrize("target", ["wtm2101", "example"])
@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_a_wrong_conversion_names_the_first_module_that_differs(
    target: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold that loses the mean, and a network whose outputs are far below any absolute measure."""
    true_fold = fold.fold_into

    def wrong(layer: Any, norm: Any) -> None:
        norm.running_mean.zero_()
        true_fold(layer, norm)

    monkeypatch.setattr(fold, "fold_into", wrong)
    with pytest.raises(UnsupportedError, match=r"^stem .*does not give what the network gives.*at most 0.0001"):
        chipfit.convert(Named(size).eval(), target, torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("target", CHIPS)
@pytest.mark.parametrize("size", [1.0, 2.0**-40])
def test_a_right_conversion_passes_at_any_size(target: str, size: float) -> None:
    net, x = Named(size).eval(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert difference(net(x), chipfit.convert(net, target, x).eval()(x)) <= TOLERANCE


@pytest.mark.parametrize("target", CHIPS)
def test_a_network_that_gives_nan_is_compared_where_it_gives_numbers(target: str) -> None:
    net = Named().eval()
    with torch.no_grad():
        net.head.weight[0, 0] = torch.nan
    x = torch.rand(2, 3, 8, 8)
    assert chipfit.convert(net, target, x).eval()(x)[:, 0].isnan().all()


class Small(nn.Module):
    """Overwrites a view, with outputs so small that an absolute measure would not see it."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x) * 1e-6
        y[:, 0].mul_(2.0)
        return y


def test_tracing_is_checked_relative_to_the_outputs() -> None:
    with pytest.raises(UnsupportedError, match="does not give what the network gives"):
        trace(Small().eval(), torch.rand(2, 3))


class Places(nn.Module):
    """Its second output are places of maxima, which a rounding may move."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.fc(x)
        return y, y.argmax(1)


def test_places_of_maxima_may_be_an_output() -> None:
    chipfit.convert(Places().eval(), "wtm2101", torch.rand(2, 4))

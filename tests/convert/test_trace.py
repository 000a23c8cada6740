"""Tracing: what cannot be traced is refused with the user's line."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from chipfit.convert import fold_batch_norms, trace
from chipfit.errors import ShapeError, UnsupportedError


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line to name
            return x
        return -x


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]  # a shape from values


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nonzero(x)  # another shape from values


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for row in x:  # a loop over a tensor
            x = x + row
        return x


class Mismatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 5)  # does not fit


@pytest.mark.parametrize(
    ("net", "text"),
    [
        (Branches(), "if x.sum() > 0:  # the line to name"),
        (Masks(), "return x[x > 0]  # a shape from values"),
        (Counts(), "return torch.nonzero(x)  # another shape from values"),
        (Loops(), "for row in x:  # a loop over a tensor"),
    ],
)
def test_what_depends_on_values_is_refused_with_the_users_line(net: nn.Module, text: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        trace(net, torch.randn(2, 3))
    assert "test_trace.py, line " in str(caught.value)
    assert text in str(caught.value)


def test_an_example_that_does_not_fit_is_refused_with_the_users_line() -> None:
    with pytest.raises(ShapeError, match=r"test_trace.py, line \d+: return x.reshape\(-1, 5\)"):
        trace(Mismatch(), torch.randn(2, 3))


def test_the_users_network_is_not_changed() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fold_batch_norms(trace(net, torch.randn(1, 1, 5, 5)))
    assert net.training and net[0].bias is None and net[2].inplace
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Linear(6, 4), nn.BatchNorm1d(4), (6,)),
        (nn.Conv1d(6, 4, 3, groups=2), nn.BatchNorm1d(4), (6, 9)),
        (nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4, affine=False), (6, 7, 7)),
        (nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), nn.BatchNorm2d(4), (6, 4, 4)),
        (nn.ConvTranspose2d(6, 4, 2, bias=False), nn.BatchNorm2d(4, eps=1e-3), (6, 4, 4)),
    ],
)
def test_folding_changes_no_output_by_more_than_1e5(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 2.0)
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    net, x = nn.Sequential(layer, norm).eval(), torch.randn(5, *shape)
    traced = trace(net, x)
    assert fold_batch_norms(traced) == ["1"]
    assert [type(m) for m in traced.network.children()] == [type(layer)]
    torch.testing.assert_close(traced.network(x), net(x), rtol=0, atol=1e-5)
    assert not torch.allclose(layer(x), net(x), atol=0.1)  # there was something to fold


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.conv(x)) + self.b(self.conv(x))


class ReadTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


@pytest.mark.parametrize("net", [Shared(), ReadTwice(), nn.Sequential(nn.BatchNorm2d(1))])
def test_a_norm_with_nothing_of_its_own_before_it_stays(net: nn.Module) -> None:
    assert fold_batch_norms(trace(net, torch.randn(2, 1, 3, 3))) == []

"""Activations that a network writes out in arithmetic, and sums: what is recognised and what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.convert.patterns import focus, write_patterns
from chipfit.convert.trace import Traced, trace


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> Traced:
    return trace(Function(function), x)


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x * torch.sigmoid(x), ["silu"]),
        (lambda x: torch.sigmoid(x).mul(x), ["silu"]),
        (lambda x: F.relu6(x + 3) / 6, ["hardsigmoid"]),
        (lambda x: F.hardtanh(3.0 + x, 0.0, 6.0) * (1 / 6), ["hardsigmoid"]),
        (lambda x: torch.clamp(x + 3, 0, 6) / 6, ["hardsigmoid"]),
        (lambda x: x * F.relu6(x + 3) / 6, ["hardswish"]),
        (lambda x: F.relu6(x + 3) * x / 6, ["hardswish"]),
        (lambda x: x * (F.relu6(x + 3) / 6), ["hardswish"]),
        (lambda x: x * F.hardsigmoid(x), ["hardswish"]),
        (lambda x: x * torch.sigmoid(x * 2), []),
        (lambda x: x + torch.sigmoid(x), []),
        (lambda x: F.relu6(x + 2) / 6, []),
        (lambda x: F.relu6(x + 3) / 5, []),
        (lambda x: F.relu6(torch.add(x, 3, alpha=2)) / 6, []),
        (lambda x: torch.div(F.relu6(x + 3), 6, rounding_mode="floor"), []),
        (lambda x: torch.clamp(x + 3, 0, 5) / 6, []),
        (lambda x: (lambda s: s * x + s)(torch.sigmoid(x)), []),  # the sigmoid is read twice
    ],
)
def test_activations_written_out(function: Callable[[Tensor], Tensor], found: list[str]) -> None:
    x = torch.linspace(-8, 8, 33).view(3, 11)
    graph = traced(function, x)
    assert write_patterns(graph) == found
    torch.testing.assert_close(graph.network(x), function(x))


@pytest.mark.parametrize(("order", "found"), [((0, 1, 2, 3), ["focus"]), ((0, 2, 1, 3), []), ((0, 1, 2, 2), [])])
def test_focus_is_an_order_of_patches(order: tuple[int, ...], found: list[str]) -> None:
    def patches(x: Tensor) -> Tensor:
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return torch.cat([parts[i] for i in order], 1)

    x = torch.randn(2, 3, 4, 6)
    graph = traced(patches, x)
    assert write_patterns(graph, features=True) == found
    assert torch.equal(graph.network(x), patches(x))
    assert write_patterns(traced(patches, x)) == []
    if found:
        assert torch.equal(focus(x), patches(x))


@pytest.mark.parametrize(
    ("function", "factors"),
    [
        (lambda x: x - x.abs(), [-1]),
        (lambda x: torch.sub(x, x.abs(), alpha=3), [-3]),
        (lambda x: torch.rsub(x, x.abs(), alpha=0.5), [-0.5]),
        (lambda x: torch.add(x, x.abs(), alpha=2), [2]),
        (lambda x: x + x.abs(), []),
        (lambda x: x - 1.5, []),
    ],
)
def test_only_plain_sums_of_features_stay(function: Callable[[Tensor], Tensor], factors: list[float]) -> None:
    x = torch.randn(3, 5)
    graph = traced(function, x)
    write_patterns(graph, features=True)
    products = [node for node in graph.network.graph.nodes if getattr(node.target, "__name__", "") == "mul"]
    assert [node.args[1] for node in products] == factors
    assert all(node in graph.seen for node in products)
    torch.testing.assert_close(graph.network(x), function(x))

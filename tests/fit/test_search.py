"""Mixed precision: an exact knapsack over measured sensitivities, better than 4 bits everywhere at no greater size."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chipfit.errors import CalibrationError, InvalidValueError, UnknownOptionError, UnsupportedError
from chipfit.fit.bias import correct_bias
from chipfit.fit.calibrate import calibrate
from chipfit.fit.search import LayerSize, Sensitivity, knapsack, layer_sizes, search, search_table
from support.ingenic import branches as networks

WIDTHS = (2, 4, 8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), *[st.floats(-0.1, 1.0) for _ in WIDTHS]), min_size=1, max_size=5),
    st.floats(0.0, 1.0),
)
def test_knapsack_is_as_good_as_trying_everything(layers: list[tuple[Any, ...]], share: float) -> None:
    table = [
        Sensitivity(str(k), width, loss, size * width)
        for k, (size, *losses) in enumerate(layers)
        for width, loss in zip(WIDTHS, losses, strict=True)
    ]
    cheapest, dearest = (sum(size * width for size, *_ in layers) for width in (2, 8))
    budget = cheapest + share * (dearest - cheapest)
    chosen, loss = knapsack(table, budget)
    entry = {(e.layer, e.bits): e for e in table}
    assert sum(entry[pair].cost for pair in chosen.items()) <= budget
    assert loss == pytest.approx(sum(max(entry[pair].loss, 0.0) for pair in chosen.items()))
    names = [str(k) for k in range(len(layers))]
    best = min(
        sum(max(entry[pair].loss, 0.0) for pair in zip(names, widths, strict=True))
        for widths in itertools.product(WIDTHS, repeat=len(names))
        if sum(entry[pair].cost for pair in zip(names, widths, strict=True)) <= budget
    )
    assert loss == pytest.approx(best)


@pytest.fixture(scope="module")
def gated() -> Any:
    torch.manual_seed(0)
    return networks.trained(networks.Gated(), epochs=4)


def test_sizes_by_hand(gated: Any) -> None:
    sizes = layer_sizes(gated, networks.images(3))
    assert sizes["conv0"] == LayerSize(32 * 9, 32 * 9 * 64)
    assert sizes["conv1"] == LayerSize(64 * 32 * 9, 64 * 32 * 9 * 16)
    assert sizes["gate1"] == LayerSize(64 * 128, 64 * 128)
    assert sizes["fc"] == LayerSize(1280, 1280)
    assert not gated.training


@pytest.mark.slow
@pytest.mark.parametrize("cost", ["bytes", "mac_bits"])
@torch.no_grad()
def test_it_beats_4_bits_everywhere_at_equal_size(gated: Any, cost: str) -> None:
    data, x = networks.images().split(64), networks.images(450, test=True)
    sizes = layer_sizes(gated, data[0])

    def price(widths: dict[str, int]) -> int:
        return sum(
            sizes[name].macs * width if cost == "mac_bits" else sizes[name].weights * width // 8
            for name, width in widths.items()
        )

    uniform = dict.fromkeys(sizes, 4)
    found = search(gated, networks.Gated, data, None, price(uniform), WIDTHS, cost=cost)
    assert price(found.bits) == found.cost <= found.budget == price(uniform)
    assert len(set(found.bits.values())) > 1

    def noise(widths: dict[str, int]) -> float:
        net = networks.Gated(widths)
        net.load_state_dict(gated.state_dict())
        calibrate(net, data)
        correct_bias(net, data)
        return (net.eval()(x) - gated(x)).square().mean().item()

    assert noise(found.bits) < (0.7 if cost == "bytes" else 0.9) * noise(uniform)  # on images it did not see
    losses = {(e.layer, e.bits): e.loss for e in found.table}
    assert all(losses[name, 2] > losses[name, 4] > losses[name, 8] == 0.0 for name in sizes)
    assert found.loss == pytest.approx(sum(losses[pair] for pair in found.bits.items()))
    assert search_table(found).row_count == len(sizes)


def test_a_metric_a_layer_of_fixed_width_and_the_cheapest_budget(gated: Any) -> None:
    data = networks.images(64).split(64)
    seen = []

    def build(widths: dict[str, int]) -> Any:
        return networks.Gated({**widths, "conv0": 8})

    def metric(net: Any) -> float:
        widths = {
            name: layer.weight_bitwidth for name, layer in net.named_children() if hasattr(layer, "weight_factor")
        }
        seen.append(widths)
        return -float(widths["fc"] == 4)

    sizes = layer_sizes(gated, data[0])
    cheapest = sum(size.weights * (8 if name == "conv0" else 4) // 8 for name, size in sizes.items())
    found = search(gated, build, data, metric, cheapest + 1280 // 2, (4, 8))
    assert found.bits == {**dict.fromkeys(sizes, 4), "conv0": 8, "fc": 8}
    assert found.loss == 0.0
    assert len(seen) == 6  # all at 8, and each of the five others at 4
    assert {(e.layer, e.bits): e.loss for e in found.table}["fc", 4] == 1.0
    with pytest.raises(InvalidValueError, match=f"allowed: {cheapest} bytes or more"):
        search(gated, build, data, metric, cheapest - 1, (4, 8))


def test_what_it_refuses(gated: Any) -> None:
    data = networks.images(8).split(8)
    with pytest.raises(UnknownOptionError, match="mac_bits"):
        search(gated, networks.Gated, data, cost="mac_bit")
    with pytest.raises(InvalidValueError, match="no such widths"):
        search(gated, networks.Gated, data, bits=(4, 16))
    with pytest.raises(CalibrationError, match="empty"):
        search(gated, networks.Gated, [])
    with pytest.raises(UnsupportedError, match="no chip layers"):
        search(torch.nn.Linear(2, 2), networks.Gated, [torch.rand(1, 2)])

    def automatic(widths: dict[str, int]) -> Any:
        return networks.Gated({name: 5 if width == 8 else width for name, width in widths.items()})

    def noise(net: Any) -> Tensor:
        return torch.tensor(0.0)

    with pytest.raises(InvalidValueError, match="other widths than it was asked for"):
        search(gated, automatic, data, noise)

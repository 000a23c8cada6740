"""Random plain networks on the Ingenic targets: the float function stays, and what lowers has no differing code."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.convert import convert
from chipfit.errors import UnsupportedError
from chipfit.program import lower, verify
from chipfit.vendor import chip
from support.random_networks import PlainNetwork

WIDTHS: list[dict[str, Any]] = [{}, {"bits": 4}, {}, {"weight_bits": 4}]


def _outputs(run: Callable[[Any], Any], x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        y = run(x)
    return y if isinstance(y, tuple) else (y,)


def _assert_same(found: tuple[Tensor, ...], net: nn.Module, x: Tensor) -> None:
    """Within 1e-5 of the largest output, or within what float32 itself leaves open."""
    exact = _outputs(copy.deepcopy(net).double(), x.double())
    for a, b, c in zip(found, _outputs(net, x), exact, strict=True):
        own = (b - c).abs().max().item()
        assert a.shape == b.shape
        assert (a - b).abs().max().item() <= max(1e-5 * max(1e-3, b.abs().max().item()), 4 * own)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "seeds"),
    [
        ("t40", range(0, 40)),
        ("t41", range(40, 50)),
        ("txx", range(50, 75)),
        ("xs1", range(75, 85)),
        ("t02", range(85, 105)),
    ],
)
def test_random_networks(target: str, seeds: range) -> None:
    lowered = 0
    for seed in seeds:
        net = PlainNetwork(seed, simple=target == "t02")
        options = {} if target == "t02" else WIDTHS[seed % 4]
        x = net.example
        converted = convert(net, chip(target), x[:2], **options)
        _assert_same(_outputs(converted, x), net, x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chipfit.calibrate(converted, [x])
        _assert_same(_outputs(converted, x), net, x)
        chipfit.set_mode(converted, "quant")
        try:
            program = lower(converted, x[:1])
        except UnsupportedError:
            continue
        proof = verify(converted, program, x.split(2))
        assert proof.equal, (seed, proof)
        lowered += 1
    assert lowered >= len(seeds) // 2

"""The whole way of a plain network: converted, calibrated, its noise, and every code of its integer program equal."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import chipfit
from chipfit.convert import convert
from chipfit.errors import ChipfitWarning
from chipfit.fit.methods import sqnr
from chipfit.program import lower, verify
from chipfit.vendor import chip

CHIPS = ["wtm2101", "t40", "txx"]


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(_tensors(found), _tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1e-3, b.abs().max().item()))


def calibrated(net: nn.Module, target: str, x: Tensor, **options: Any) -> nn.Module:
    """A converted network in mode 'quant', equal to torch's in float before and after; `options` of convert."""
    converted = convert(net, chip(target), x[:2], **options)
    exact = "approximate" not in options
    with torch.no_grad():
        expected = net(x) if exact else converted(x)
        _assert_same(converted(x), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ChipfitWarning)  # of layers that random weights leave dead
            chipfit.calibrate(converted, [x])
        _assert_same(converted(x), expected)
    return chipfit.set_mode(converted, "quant")


def on_chip(net: nn.Module, target: str, x: Tensor, **options: Any) -> nn.Module:
    """As `calibrated`, and every code of the integer program equal."""
    converted = calibrated(net, target, x, **options)
    proof = verify(converted, lower(converted, x[:1]), x.split(2))
    assert proof.equal, proof
    return converted


def kinds(net: Any) -> list[str]:
    """Names of the classes of the modules that a converted network calls, in order."""
    modules = dict(net.named_modules())
    return [type(modules[n.target]).__name__ for n in net.graph.nodes if n.op == "call_module"]


def quantised(net: nn.Module, target: str, example: Any, data: Any = None, **options: Any) -> nn.Module:
    """A network converted with an example, calibrated with data (None: the example), and in mode 'quant'."""
    converted = chipfit.convert(net.eval(), target, example, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChipfitWarning)
        chipfit.calibrate(converted, [example if data is None else data])
    return chipfit.set_mode(converted, "quant").eval()


def quality(net: nn.Module, target: str, x: Tensor, data: Tensor | None = None, **options: Any) -> float:
    """SQNR at the output of a network converted with `x`, calibrated and measured with `data`; codes equal."""
    converted = quantised(net, target, x, data, **options)
    seen = x if data is None else data
    proof = chipfit.verify(converted, chipfit.lower(converted, seen[:1]), [seen])
    assert proof.equal, proof
    with torch.no_grad():
        return sqnr(net(seen), converted(seen))

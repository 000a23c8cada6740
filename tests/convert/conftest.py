"""What the conversion tests share: modules beside them, and the whole way from torch to the integer program."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.convert import convert
from chipfit.errors import ChipfitWarning
from chipfit.program import lower, verify
from chipfit.vendor import chip


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The module `tests/models/networks.py`."""
    return _load("networks")


@pytest.fixture(scope="session")
def plain_networks() -> ModuleType:
    """The module `tests/models/plain_networks.py`."""
    return _load("plain_networks")


def _tensors(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def _assert_same(found: Any, expected: Any) -> None:
    for a, b in zip(_tensors(found), _tensors(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1e-3, b.abs().max().item()))


def _calibrated(net: nn.Module, target: str, x: Tensor, **options: Any) -> nn.Module:
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


def _on_chip(net: nn.Module, target: str, x: Tensor, **options: Any) -> nn.Module:
    converted = _calibrated(net, target, x, **options)
    proof = verify(converted, lower(converted, x[:1]), x.split(2))
    assert proof.equal, proof
    return converted


@pytest.fixture(scope="session")
def calibrated() -> Callable[..., nn.Module]:
    """A converted network in mode 'quant', equal to torch's in float before and after calibration.

    `calibrated(net, target, x, **options of convert)`.
    """
    return _calibrated


@pytest.fixture(scope="session")
def on_chip() -> Callable[..., nn.Module]:
    """The same, and every code of the integer program equal."""
    return _on_chip


def _kinds(net: Any) -> list[str]:
    modules = dict(net.named_modules())
    return [type(modules[n.target]).__name__ for n in net.graph.nodes if n.op == "call_module"]


@pytest.fixture(scope="session")
def kinds() -> Callable[[nn.Module], list[str]]:
    """Names of the classes of the modules that a converted network calls, in order: `kinds(net)`."""
    return _kinds

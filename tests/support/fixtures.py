"""Fixtures that tests of several rooms share; `conftest.py` loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from chipfit.chips.witmem.program import ops
from chipfit.program.types import Program, ValueType
from support.ingenic.branches import Branches, trained
from support.programs import Maker, run_at_every_level


@pytest.fixture(scope="session")
def onnxruntime_levels() -> Callable[..., list[list[np.ndarray]]]:
    return run_at_every_level


@pytest.fixture
def maker() -> Callable[[int], Maker]:
    return lambda seed: Maker(np.random.default_rng(seed))


@pytest.fixture
def two_layers() -> Callable[..., Program]:
    """A network that the chip's compiler takes: 6 -> 5, ReLU, 5 -> 3, scales that chain."""

    def build(seed: int = 0, **options: object) -> Program:
        made = Maker(np.random.default_rng(seed))
        x = made.start((6,), 8, signed=False)
        codes = ValueType((5,), 8, True, 16.0)
        linear = ops.Geometry("linear")
        first = made.array_op("fc1", linear, made.weights(5, 6), log2_g=8, rounding="wtm2101", **options)
        y = made.node("fc1", first, (x,), codes)
        y = made.node("relu", ops.Relu(), (y,), codes)
        second = made.array_op("fc2", linear, made.weights(3, 5), log2_g=10, rounding="wtm2101")
        y = made.node("fc2", second, (y,), ValueType((3,), 8, True, 4.0))
        return made.finish(y)

    return build


@pytest.fixture(scope="session")
def branches() -> dict[str, Any]:
    """A trained float network a target."""
    found = {}
    for target in ("T40", "Txx"):
        torch.manual_seed(0)
        found[target] = trained(Branches(32, target), epochs=3)
    return found

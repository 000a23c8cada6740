"""Fixtures that tests of several rooms share; `conftest.py` loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from chipfit.program.types import Program
from support import programs
from support.ingenic.branches import Branches, trained


@pytest.fixture(scope="session")
def onnxruntime_levels() -> Callable[..., list[list[np.ndarray]]]:
    return programs.run_at_every_level


@pytest.fixture
def maker() -> Callable[[int], programs.Maker]:
    return lambda seed: programs.Maker(np.random.default_rng(seed))


@pytest.fixture
def two_layers() -> Callable[..., Program]:
    return programs.two_layers


@pytest.fixture(scope="session")
def branches() -> dict[str, Any]:
    """A trained float network a target."""
    found = {}
    for target in ("T40", "Txx"):
        torch.manual_seed(0)
        found[target] = trained(Branches(32, target), epochs=3)
    return found

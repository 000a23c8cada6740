"""What the tests of the recipe share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    """The module `ingenic_networks.py`."""
    spec = importlib.util.spec_from_file_location("ingenic_networks", Path(__file__).with_name("ingenic_networks.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def branches(networks: Any) -> dict[str, Any]:
    """A trained float network a target."""
    found = {}
    for target in ("T40", "Txx"):
        torch.manual_seed(0)
        found[target] = networks.trained(networks.Branches(32, target), epochs=3)
    return found

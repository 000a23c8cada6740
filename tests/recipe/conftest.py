"""What the tests of the recipe share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.ingenic.branches import Branches, trained


@pytest.fixture(scope="session")
def branches() -> dict[str, Any]:
    """A trained float network a target."""
    found = {}
    for target in ("T40", "Txx"):
        torch.manual_seed(0)
        found[target] = trained(Branches(32, target), epochs=3)
    return found

"""What all tests share."""

import functools
import importlib.util
import os
from pathlib import Path
from types import ModuleType

# Two cores and several workers: threads inside a worker would only fight over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


@functools.cache
def loaded(path: str) -> ModuleType:
    """A file of the repository as a module; test files are in no package, so that they cannot be imported."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _fresh_global_config():
    """Give each test the vendor's global configuration as it is after import, and leave it so to the doctests."""
    from chipfit.chips.witmem.config import SingletonMeta

    SingletonMeta._instances.clear()
    torch.manual_seed(0)
    yield
    SingletonMeta._instances.clear()

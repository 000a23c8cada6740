"""What all tests share."""

import os

# Two cores and several workers: threads inside a worker would only fight over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

pytest_plugins = ["support.fixtures"]


@pytest.fixture(autouse=True)
def _fresh_global_config():
    """Give each test the vendor's global configuration as it is after import, and leave it so to the doctests."""
    from chipfit.chips.witmem.config.config import SingletonMeta

    SingletonMeta._instances.clear()
    torch.manual_seed(0)
    yield
    SingletonMeta._instances.clear()

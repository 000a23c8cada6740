"""Simulated chips: a seed stands for one piece of silicon, whose cells deviate the same way at every inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def kept_generators(model: nn.Module) -> Iterator[None]:
    """Restore torch's generators, the CPU's and those of the model's devices, on leaving."""
    indices = {p.device.index for p in model.parameters() if p.device.type == "cuda" and p.device.index is not None}
    with torch.random.fork_rng(devices=sorted(indices)):
        yield


@contextmanager
def simulated_chip(model: nn.Module, seed: int) -> Iterator[nn.Module]:
    """Run a network in mode 'nat' on one simulated chip.

    Training draws fresh noise at each forward. In here every forward of the network draws the same noise, that of chip
    `seed`, whatever the batch size; the state of torch's generators is restored on leaving.

    Args:
        model: Network with chip layers.
        seed: Number of the chip.

    Yields:
        The same network.

    Example:
        >>> net = nn.Dropout(0.5)
        >>> with simulated_chip(net, seed=3):
        ...     bool((net(torch.ones(8)) == net(torch.ones(8))).all())
        True
    """

    def reseed(module: nn.Module, inputs: Any) -> None:
        torch.manual_seed(seed)

    with kept_generators(model):
        hook = model.register_forward_pre_hook(reseed)
        try:
            yield model
        finally:
            hook.remove()

"""Calibration in a process group: all ranks' data count, and all ranks end with the same scales and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from chipfit.fit.contract import ScaleChoice

T = TypeVar("T")


def several() -> bool:
    """Whether this process is one of several of a group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def seed_rank(seed: int = 0) -> int:
    """Seed torch's generators so that every rank of a process group draws noise of its own.

    Mode 'nat' draws from torch's generators: ranks that were given one seed draw equal noise, so that a step sees the
    same noise on every share of the batch.

    Args:
        seed: Of the run, 0 or more.

    Returns:
        The seed of this rank; without a group `seed` itself.

    Example:
        >>> seed_rank(5)
        5
    """
    own = seed * dist.get_world_size() + dist.get_rank() if several() else seed
    torch.manual_seed(own)
    return own


def each(value: T) -> list[T]:
    """What every rank has in its place, in their order; every rank must ask. Without a group the one that was given.

    Example:
        >>> each(3)
        [3]
    """
    if not several():
        return [value]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def summed(value: float) -> float:
    """The sum over all ranks, to the last bit the same on each; every rank must ask.

    Example:
        >>> summed(0.5)
        0.5
    """
    return sum(each(value))


def anywhere(found: bool) -> bool:
    """Whether it is so on any rank; every rank must ask.

    Example:
        >>> anywhere(False)
        False
    """
    return any(each(found))


def first_ones(value: T) -> T:
    """What the first rank has in its place; every rank must ask."""
    return each(value)[0]


@torch.no_grad()
def agree(
    model: nn.Module,
    choices: list[ScaleChoice],
    restore: Callable[[nn.Module, Iterable[ScaleChoice]], None] | None,
) -> list[ScaleChoice]:
    """Give every rank the choices and the state of the first one, whose sums may be rounded otherwise.

    Args:
        model: The calibrated network; changed in place on the other ranks.
        choices: What this rank chose.
        restore: Gives a network choices that no state_dict brings, where the vendor has such.

    Returns:
        What the first rank chose.
    """
    if not several():
        return choices
    sent: list[Any] = [choices, {name: value.cpu() for name, value in model.state_dict().items()}]
    dist.broadcast_object_list(sent)
    if dist.get_rank():
        model.load_state_dict(sent[1])
        if restore is not None:
            restore(model, sent[0])
    found: list[ScaleChoice] = sent[0]
    return found

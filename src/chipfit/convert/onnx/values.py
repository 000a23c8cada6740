"""What stands for an edge of the file while the network is built, and why a node is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

BATCHES = (11, 13)
"""Sizes of the batch that every shape is computed for: what differs between the two follows the batch."""


class RefusedError(Exception):
    """An operator, or a value of one of its attributes, that is not read, whatever flows into it."""


class UnfitError(Exception):
    """A node that does not fit what flows into it."""


@dataclass(frozen=True, eq=False)
class Value:
    """An edge of the file.

    Args:
        node: What computes it in the network; None for what is known before: constants, shapes, what follows from them.
        probes: What it is for each of `BATCHES`: tensors without data where there is a node, the numbers otherwise.
            A tuple of tensors for a call that returns several.
        name: The file's name of a constant.
    """

    node: fx.Node | None
    probes: tuple[Any, ...]
    name: str = ""

    @property
    def live(self) -> bool:
        """Whether it depends on what the network is given."""
        return self.node is not None

    @property
    def constant(self) -> bool:
        """Whether it is the same for every batch."""
        return not self.live and self.probes[0] is self.probes[1]

    @property
    def tensor(self) -> Tensor:
        """The numbers of a constant.

        Raises:
            UnfitError: it is none.
        """
        if not self.constant:
            raise UnfitError("an input that must be a constant of the file is computed")
        found: Tensor = self.probes[0]
        return found

    @property
    def rank(self) -> int:
        """Number of axes."""
        return int(self.probes[0].dim())

    @property
    def dtype(self) -> torch.dtype:
        """Kind of its numbers."""
        found: torch.dtype = self.probes[0].dtype
        return found

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """Its shape; None for an axis that follows the batch."""
        once, twice = (probe.shape for probe in self.probes)
        if len(once) != len(twice):
            raise UnfitError("the number of axes depends on the batch")
        return tuple(a if a == b else None for a, b in zip(once, twice, strict=True))

    @property
    def floats(self) -> bool:
        """Whether its numbers are floating-point."""
        return self.dtype.is_floating_point

    def axis(self, axis: int, extra: int = 0) -> int:
        """An axis counted from the front.

        Raises:
            UnfitError: there is none.
        """
        rank = self.rank + extra
        if not -max(rank, 1) <= axis < max(rank, 1):
            raise UnfitError(f"axis {axis} of a tensor with {rank} axes")
        return axis % max(rank, 1)

    def size(self, axis: int) -> int:
        """Size of an axis.

        Raises:
            UnfitError: it follows the batch.
        """
        found = self.sizes[self.axis(axis)]
        if found is None:
            raise UnfitError(f"the size of axis {axis} follows the batch")
        return found


def same(probes: tuple[Any, ...]) -> bool:
    """Whether numbers are the same for every batch."""
    a, b = probes
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def at_batch(sizes: tuple[tuple[int, ...], ...], batch: int) -> list[int]:
    """Sizes for another batch, from those for the two of `BATCHES`.

    Example:
        >>> at_batch(((11, 3), (13, 3)), 1)
        [1, 3]
    """
    first, second = BATCHES
    return [a + (b - a) * (batch - first) // (second - first) for a, b in zip(*sizes, strict=True)]

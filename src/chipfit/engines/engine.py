"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from chipfit.program.types import Program
    from chipfit.vendor import Option


class Prepared(Protocol):
    """An engine that is ready for one program.

    Attributes:
        version: What it is, with the versions that its codes could depend on.
    """

    version: str

    def edges(
        self, inputs: tuple[Tensor, ...], reference: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Edges by name: what the reference has, and what the engine computed, as float64 or int64 of one shape.

        Args:
            inputs: Real inputs of a batch.
            reference: Every edge of the batch as the reference computes it.
        """


@dataclass(frozen=True)
class Engine:
    """An engine.

    Args:
        name: What a user calls it.
        prepare: `(program, options)`: a context that holds it ready.
        options: Its own options.
    """

    name: str
    prepare: Callable[[Program, Mapping[str, Any]], AbstractContextManager[Prepared]]
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)

"""One operation of a network and what a chip makes of it: the entries of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from chipfit.convert.words import Mapped, Operation


@dataclass(frozen=True)
class Step:
    """One operation and what the chip makes of it.

    Args:
        node: Its call in the graph.
        operands: The nodes and numbers that it reads.
        operation: What it computes.
        mapped: What the chip makes of it.
        line: The user's line that asks for it.
        into: The call whose operator computes this one too.
        prepares: It is part of how an input is prepared, and no call of its own.
    """

    node: fx.Node
    operands: tuple[Any, ...]
    operation: Operation
    mapped: Mapped
    line: str
    into: fx.Node | None = None
    prepares: bool = False


def has_weights(module: nn.Module | None) -> bool:
    """Whether a module holds tensors, so that all its calls share one layer."""
    return module is not None and any(isinstance(t, Tensor) for t in (*module.parameters(), *module.buffers()))


def owner_of(node: fx.Node) -> str:
    """Name of the user's module whose forward made a node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def fresh_name(owner: str, kind: str, names: set[str]) -> str:
    """A name for a new module in the user's module `owner`."""
    base = f"{owner}.{kind}" if owner else kind
    name, count = base, 0
    while name in names:
        count += 1
        name = f"{base}_{count}"
    return name

"""What the converter and a vendor's folder say to each other: an operation of a network, and what the chip makes of it.

A vendor folder that has a `conversion.py` with a function `map_operation(operation, chip)` can be converted to.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from chipfit.chips.chip import Chip
from chipfit.errors import UnsupportedError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Seen:
    """What a tensor looked like on the example.

    Args:
        shape: Its shape, the batch first.
        lowest: Its smallest value.
        largest: Its largest magnitude.
        smallest: Its smallest magnitude.
        batched: Whether axis 0 grows with the batch of the input.
    """

    shape: Shape
    lowest: float = 0.0
    largest: float = 0.0
    smallest: float = 0.0
    batched: bool = True


@dataclass(frozen=True)
class Operation:
    """One operation of a network.

    Args:
        name: The user's name of the module, or the module's name and the function's.
        kind: What it computes, for instance 'conv2d', 'add', 'mean'; one name for module, function and method.
        inputs: The tensors that it reads; a Python number stands for itself.
        output: What it gives; of several tensors the first.
        nonnegative: Whether each input has no negative values, which the graph shows.
        options: Its other arguments by torch's names, for instance `dim`.
        module: The user's module, where it is one.
    """

    name: str
    kind: str
    inputs: tuple[Seen | float, ...]
    output: Seen
    nonnegative: tuple[bool, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    module: nn.Module | None = None

    @property
    def shape(self) -> Shape:
        """Shape of the first tensor that it reads."""
        return next(x.shape for x in self.inputs if isinstance(x, Seen))


@dataclass(frozen=True)
class Mapped:
    """What a chip makes of an operation.

    Args:
        operator: The chip's operator, or what stays of torch's.
        unit: 'array', 'digital', 'npu' or 'cpu'.
        build: Makes the module that takes the operation's place; None where torch's own stays.
        reason: Why it runs on the CPU core.
        problems: Limits of the chip that it breaks.
        suggestions: What to do about either.
        rows: Rows of the analog array, where it has one.
        columns: Columns of the analog array.
        reads: How many of the inputs the module takes; None for all.
    """

    operator: str
    unit: str
    build: Callable[[], nn.Module] | None = None
    reason: str = ""
    problems: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    rows: int = 0
    columns: int = 0
    reads: int | None = None


def on_cpu(reason: str, suggestion: str = "") -> Mapped:
    """Leave an operation to torch, on the chip's CPU core.

    Args:
        reason: Why the chip does not compute it.
        suggestion: What to do about it; empty for nothing.
    """
    return Mapped("", "cpu", None, reason, (), (suggestion,) if suggestion else ())


MapOperation = Callable[[Operation, Chip], Mapped]


def rules_of(chip: Chip) -> MapOperation:
    """The conversion rules of a chip, from its vendor's folder.

    Raises:
        UnsupportedError: the folder has none.

    Example:
        >>> from chipfit.chips.registry import chip
        >>> rules_of(chip("wtm2101")).__name__
        'map_operation'
    """
    name = f"chipfit.chips.{chip.vendor}.conversion"
    if importlib.util.find_spec(name) is None:
        raise UnsupportedError(
            "no conversion rules for this chip", given=chip.name, hint="Write the network with the vendor's layers."
        )
    return cast(MapOperation, importlib.import_module(name).map_operation)


def converting_rules_of(chip: Chip) -> MapOperation:
    """The rules of a chip, where they build layers too; a folder whose rules only describe says `DESCRIBES_ONLY`.

    Raises:
        UnsupportedError: the folder has no rules, or they only describe.

    Example:
        >>> from chipfit.chips.registry import chip
        >>> converting_rules_of(chip("wtm2101")).__name__
        'map_operation'
    """
    rules = rules_of(chip)
    if getattr(importlib.import_module(rules.__module__), "DESCRIBES_ONLY", False):
        raise UnsupportedError(
            "chipfit cannot convert to this chip yet",
            given=chip.name,
            hint="chipfit.check shows what maps; write the network with the vendor's layers.",
        )
    return rules

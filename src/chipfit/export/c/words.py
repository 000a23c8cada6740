"""What steps of C are made of: operations on rows of numbers, structs, and what an operation is in C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from chipfit.export.c.views import Buffer, View
from chipfit.program.dialect import Context, Range
from chipfit.program.types import Node

if TYPE_CHECKING:
    from chipfit.export.c.builder import CBuilder

CHUNK = 128
"""Numbers of a row that are handled at a time."""


@dataclass(frozen=True)
class Row:
    """One step on a row of numbers in registers, `op_t` in C.

    Args:
        kernel: Name of its function, which is a section of the kernels' text; '' where only its numbers are meant.
        a, b, c: Its numbers.
        lo, hi: Its limits.
        t, u: A `Table` or a `Struct` that it reads.
        clips: Whether it ends in a clip to its limits, which then takes in one behind it.
    """

    kernel: str
    a: int = 0
    b: int = 0
    c: int = 0
    lo: int = 0
    hi: int = 0
    t: Any = None
    u: Any = None
    clips: bool = False


@dataclass(frozen=True)
class Struct:
    """Constants that stand in a struct of their own.

    Args:
        type: Its C type.
        fields: In order: numbers, tables, views, rows, structs, functions.
    """

    type: str
    fields: tuple[Any, ...]


@dataclass(frozen=True)
class Function:
    """The name of a C function."""

    name: str


@dataclass(frozen=True)
class Rows:
    """What a pointwise operation does to a row.

    Args:
        rows: The steps.
        channel: Axis of the edge that their parameters follow; None where they have none.
    """

    rows: tuple[Row, ...]
    channel: int | None = None


@dataclass(frozen=True)
class Writing:
    """What an operation is in C: its column `c` in a dialect's table.

    Args:
        step: `(builder, node, views)`: adds steps and returns the view of the edge that it made; the builder knows
            which edge by `builder.last`, since an operation may take in those behind it.
        rows: `(builder, node, context, range)`: its steps on a row of codes of a range; None from it where it has
            none here, and None where it is not pointwise.
        takes: 'pending' where it loads numbers through steps that still have to be applied, 'border' where it sees a
            padding by itself.
        text: More kernels than the core's.
        code: What decides its codes: 'integer', 'table' or 'float32'.
    """

    step: Callable[[CBuilder, Node, list[View]], View] | None = None
    rows: Callable[[CBuilder, Node, Context, Range], Rows | None] | None = None
    takes: tuple[str, ...] = ()
    text: str = ""
    code: str = "integer"


@dataclass
class Step:
    """One call in `net_run`.

    Args:
        kernel: Its function.
        fields: Of its struct `<kernel>_t`.
        reads, writes: Buffers.
        nodes: Names of the program's nodes that it computes.
        macs: Multiplications.
        alias: A buffer that the output may take the place of, element by element.
    """

    kernel: str
    fields: tuple[Any, ...]
    reads: list[Buffer]
    writes: Buffer
    nodes: tuple[str, ...] = ()
    macs: int = 0
    alias: Buffer | None = None


def merged(rows: Sequence[Row]) -> list[Row]:
    """Let a clip before a clip take it in."""
    found: list[Row] = []
    for row in rows:
        if row.kernel == "clamp" and found and found[-1].clips:
            last = found[-1]
            lo, hi = (min(max(limit, row.lo), row.hi) for limit in (last.lo, last.hi))
            found[-1] = replace(last, lo=lo, hi=hi)
        else:
            found.append(row)
    return found

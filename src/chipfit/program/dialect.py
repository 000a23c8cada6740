"""What an operation means: one row a kind, and a dialect as the rows of one vendor.

A dialect adds operations to the core ones. Whoever computes, bounds, writes or certifies a program looks its operations
up here, and knows no vendor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from chipfit.errors import ChipfitError, InvalidValueError, ShapeError, UnknownOptionError, UnsupportedError

if TYPE_CHECKING:
    from chipfit.export.c.words import Writing
    from chipfit.export.onnx.arithmetic import Edge
    from chipfit.export.onnx.graph import GraphBuilder
    from chipfit.program.core.base import Op
    from chipfit.program.rows import Column, Counting, Ranges
    from chipfit.program.types import Node, Program, ValueType

Step = Callable[[list[Tensor]], Tensor]
"""A prepared step of the fast path: from the values of its inputs, codes held in floating point, to its output."""
Range = tuple[int, int]
"""Lowest and highest code."""


@dataclass(frozen=True)
class Context:
    """Where an operation stands: what its meanings may look at beside itself and its inputs.

    Args:
        tensors: The program's tensors by name.
        sources: Types of the input edges.
        output: Type of the edge that it makes; None where that is not known yet.
        name: Name of its node, for errors.
        exact_in_float32: See `Node`.
    """

    tensors: Mapping[str, Tensor]
    sources: tuple[ValueType, ...] = ()
    output: ValueType | None = None
    name: str = ""
    exact_in_float32: bool = True


@dataclass(frozen=True)
class Meaning:
    """What one kind of operation means.

    Args:
        op: Its dataclass.
        reference: `(op, args, context)`: its output, from the values of its inputs, codes in int64.
        fast: `(op, context)`: its `Step` of the fast path, which gives the same codes in floating point (float64 where
            the output has more than 24 bits); None where the reference serves.
        ranges: `(op, inputs, context)`: lowest and highest code that it gives, from those of its inputs; None where it
            only moves or selects codes.
        onnx: `(builder, op, args, context)`: adds its nodes to an ONNX graph and returns the `Edge`; None where ONNX
            cannot say it. That of a core operation stands in `chipfit.export.onnx.core`.
        c: What it is in C; None where C cannot say it. That of a core operation stands in `chipfit.export.c.core`.
        row: `(node, program, ranges)`: what counts it for the certificate, one `Counting` a row; None where it has no
            row.
        facts: `(op)`: what a firmware engineer has to know of it beside its codes, as plain data; an operation that has
            some is listed as a layer.
        of_input: `(op)`: what it says of the input that it reads, as plain data.
        problems: `(op, context)`: what makes no sense in one that was read from a file, in words, beyond what the names
            of its fields say.

    Example:
        >>> from chipfit.program.core.base import Op
        >>> @dataclass(frozen=True)
        ... class Halve(Op):
        ...     pass
        >>> row = Meaning(Halve, lambda op, args, context: args[0] >> 1)
        >>> row.op.__name__, row.fast
        ('Halve', None)
    """

    op: type[Op]
    reference: Callable[[Any, list[Tensor], Context], Tensor]
    fast: Callable[[Any, Context], Step] | None = None
    ranges: Callable[[Any, list[Range], Context], Range] | None = None
    onnx: Callable[[GraphBuilder, Any, list[Edge], Context], Edge] | None = None
    c: Writing | None = None
    row: Callable[[Node, Program, Ranges], list[Counting]] | None = None
    facts: Callable[[Any], Mapping[str, Any]] | None = None
    of_input: Callable[[Any], Mapping[str, Any]] | None = None
    problems: Callable[[Any, Context], Iterable[str]] | None = None


Fuse = Callable[["Node", "Program"], tuple[Step, list["Node"]] | None]
"""One step of the fast path for a node and some behind it, and these nodes; None where it knows none."""


@dataclass(frozen=True)
class Dialect:
    """The operations of one vendor's programs.

    Args:
        name: The vendor's.
        meanings: One row a kind of operation.
        fuse: What is asked, before the rows, whether a node and those behind it are one step of the fast path. The
            nodes must each be read by the next one alone, and not be an output: `following` finds them.
        columns: Columns of the certificate's table; () for those that every chip has.
        problems: What makes no sense in a program that was read from a file, as `(place, words)`, beyond what its
            operations say.
    """

    name: str
    meanings: tuple[Meaning, ...]
    fuse: Fuse | None = None
    columns: tuple[Column, ...] = ()
    problems: Callable[[Program], Iterable[tuple[str, str]]] | None = None


@functools.cache
def dialects() -> tuple[Dialect, ...]:
    """The core dialect, and those of all vendors."""
    from chipfit.program.core.rules import CORE  # the rows import this module
    from chipfit.vendor import vendors

    return (CORE, *(vendor.dialect for vendor in vendors().values() if vendor.dialect is not None))


@functools.cache
def meanings() -> Mapping[type[Op], Meaning]:
    """Every known operation's row by its dataclass.

    Raises:
        InvalidValueError: two operations of one name, or two rows of one operation.

    Example:
        >>> sorted(kind.__name__ for kind in meanings())[:2]
        ['Accumulate', 'Add']
    """
    rows: dict[type[Op], Meaning] = {}
    names: set[str] = set()
    for dialect in dialects():
        for row in dialect.meanings:
            if row.op.__name__ in names:
                raise InvalidValueError("two operations of one name", given=row.op.__name__, where=dialect.name)
            names.add(row.op.__name__)
            rows[row.op] = row
    return rows


@functools.cache
def operations() -> Mapping[str, type[Op]]:
    """Operations by the name that a program file uses.

    Example:
        >>> operations()["Relu"].__name__
        'Relu'
    """
    return {kind.__name__: kind for kind in meanings()}


def meaning_of(op: Op) -> Meaning:
    """An operation's row.

    Raises:
        UnsupportedError: no dialect has it.
    """
    row = meanings().get(type(op))
    if row is None:
        raise UnsupportedError(
            "no dialect has this operation", given=type(op).__name__, allowed=", ".join(operations())
        )
    return row


@contextmanager
def computing(where: str) -> Iterator[None]:
    """Name the operation that could not be computed, in an error of ours instead of torch's.

    Args:
        where: The node.

    Raises:
        ShapeError: its inputs, tensors and fields do not fit together, or there is not enough memory.
    """
    try:
        yield
    except ChipfitError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [""]
        given = f"{type(error).__name__}: {lines[0]}"
        raise ShapeError("the operation cannot be computed", given=given, where=where) from error


def context_of(node: Node, program: Program) -> Context:
    """Where a node's operation stands."""
    sources = tuple(program.type(edge) for edge in node.inputs)
    return Context(program.tensors, sources, node.output, node.name, node.exact_in_float32)


def dialect_of(program: Program) -> Dialect | None:
    """The dialect of a program's chip; None where the chip is not known here or has none."""
    from chipfit.vendor import vendor_of

    try:
        return vendor_of(program).dialect
    except UnknownOptionError:
        return None


def following(node: Node, program: Program, *kinds: type[Op]) -> list[Node]:
    """A node, and those of `kinds`, in this order, that alone read what comes before them."""
    tail = [node]
    for kind in kinds:
        readers = program.readers(tail[-1].name)
        if len(readers) == 1 and isinstance(readers[0].op, kind) and tail[-1].name not in program.outputs:
            tail.append(readers[0])
    return tail

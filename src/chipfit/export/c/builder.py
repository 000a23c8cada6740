"""From nodes to steps of C: what is a view, what is fused, what is written where."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.export.c.steps import plain, pointwise
from chipfit.export.c.views import INT32, Buffer, Table, View, channels_last, ordered, type_of
from chipfit.export.c.words import CHUNK, Row, Step, Writing, merged
from chipfit.program.dialect import Range, context_of, meaning_of
from chipfit.program.ranges import code_ranges
from chipfit.program.types import Node, Program, ValueType


@dataclass
class CBuilder:
    """The C program so far.

    Args:
        program: The program.
        shapes: Shape of every edge for one sample, the batch of 1 included.
        layout: 'nhwc' or 'nchw': how what a convolution makes lies in memory.
        weights: 'int8' or 'int16': the narrowest type of weights.
        core: The core operations' column.
    """

    program: Program
    shapes: dict[str, tuple[int, ...]]
    layout: str = "nhwc"
    weights: str = "int8"
    core: Mapping[type, Writing] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    tables: dict[tuple[str, bytes], Table] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    made: dict[str, tuple[int, int]] = field(default_factory=dict)
    texts: dict[str, None] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    last: Node | None = None
    absorbed: set[str] = field(default_factory=set)
    rows_needed: int = 0
    wide_needed: int = 2 * CHUNK
    rank: int = 3

    # --- what is known of the program

    @functools.cached_property
    def ranges(self) -> dict[str, Range]:
        """Lowest and highest code of every edge; the width's where nothing says more."""
        return code_ranges(self.program, or_width=True)

    def range(self, node: Node) -> Range:
        """Of a node's codes; (0, 0) for real numbers."""
        return (0, 0) if node.output.real else self.ranges[node.name]

    def readers(self, edge: str) -> list[Node]:
        """The nodes that read an edge and are needed."""
        return [node for node in self.needed if edge in node.inputs]

    needed: list[Node] = field(default_factory=list)

    # --- constants and buffers

    def table(self, values: Any, type_: str | None = None) -> Table:
        """Constants; equal ones are kept once.

        Args:
            values: Integers of any dtype, or float32.
            type_: Their type; default the narrowest.
        """
        array = np.ascontiguousarray(values)
        if type_ is None:
            low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
            type_ = type_of(low, high)
        if type_ != "extra_t":
            array = array.astype(type_)
        key = (type_, array.tobytes())
        if key not in self.tables:
            self.tables[key] = Table(f"net_c{len(self.tables)}", type_, array.reshape(-1))
        return self.tables[key]

    def bits(self, *values: float) -> Table:
        """Float32 numbers as their bits."""
        return self.table(np.asarray(values, np.float32).view(np.int32), "int32")

    def buffer(self, type_: str, count: int, name: str) -> Buffer:
        """A new piece of the arena, written by the next step."""
        made = Buffer(type_, count, name, len(self.steps), len(self.steps))
        self.buffers.append(made)
        return made

    def room(self, edge: str, type_: str, shape: tuple[int, ...], order: Sequence[int], low: int, high: int) -> View:
        """A view of a new buffer, its axes in an order."""
        buffer = self.buffer(type_, math.prod(shape), edge)
        return View(buffer, 0, shape, ordered(shape, tuple(order)), low, high)

    def output(self, node: Node, order: Sequence[int], shape: tuple[int, ...] | None = None) -> View:
        """A view of a new buffer for a node's edge, its axes in an order."""
        shape = self.shapes[node.name] if shape is None else shape
        low, high = self.range(node)
        type_ = "float32" if node.output.real else type_of(low, high)
        return self.room(node.name, type_, shape, order, low, high)

    def emit(
        self,
        kernel: str,
        fields: Iterable[Any],
        reads: Sequence[View],
        out: View,
        macs: int = 0,
        alias: View | None = None,
    ) -> None:
        """Add a step."""
        buffers = [view.base for view in reads if isinstance(view.base, Buffer)]
        for buffer in buffers:
            buffer.last = max(buffer.last, len(self.steps))
        assert isinstance(out.base, Buffer)
        out.base.last = max(out.base.last, len(self.steps))
        place = alias.base if alias is not None and isinstance(alias.base, Buffer) else None
        self.steps.append(Step(kernel, tuple(fields), buffers, out.base, tuple(self._now), macs, place))

    _now: list[str] = field(default_factory=list)

    # --- nodes

    def writing(self, op: Any) -> Writing | None:
        """What an operation is in C; None where C cannot say it."""
        return meaning_of(op).c or self.core.get(type(op))

    def add(self, node: Node) -> None:
        """Write a node, and those behind it that it takes in."""
        if node.name in self.absorbed:
            return
        writing = self.writing(node.op)
        assert writing is not None
        self.classes[node.name] = writing.code
        self.texts.setdefault(writing.text)
        views = [self.views[name] for name in node.inputs]
        views = [
            view if self._takes(writing, view) else plain(self, view, name)
            for view, name in zip(views, node.inputs, strict=True)
        ]
        self.last, self._now = node, [node.name]
        before = len(self.steps)
        view = self._pointwise(node, writing, views) if writing.step is None else writing.step(self, node, views)
        self.views[self.last.name] = view
        self.made[self.last.name] = (before, len(self.steps) - 1)

    def _takes(self, writing: Writing, view: View) -> bool:
        if view.pending and "pending" not in writing.takes:
            return False
        return view.border is None or "border" in writing.takes

    def _pointwise(self, node: Node, writing: Writing, views: list[View]) -> View:
        assert writing.rows is not None
        context = context_of(node, self.program)
        found = writing.rows(self, node, context, (views[0].low, views[0].high))
        if found is None:
            raise UnsupportedError("has no C for these codes", where=node.name)
        readers = self.readers(node.name)
        view = views[0]
        low, high = self.range(node)
        lone = len(readers) == 1 and node.name not in self.kept
        if lone and self._lazy(node, readers[0]) and self._joins(view, found.channel):
            channel = view.channel if found.channel is None else found.channel
            return replace(view, low=low, high=high, pending=(*view.pending, *found.rows), channel=channel)
        if not self._joins(view, found.channel):
            view = plain(self, view, node.inputs[0])
        channel = view.channel if found.channel is None else found.channel
        rows, channel = self.tail(node, found.rows, channel)
        return pointwise(self, view, rows, channel)

    def _joins(self, view: View, channel: int | None) -> bool:
        return not view.pending or view.channel is None or channel is None or view.channel == channel

    def _lazy(self, node: Node, reader: Node) -> bool:
        writing = self.writing(reader.op)
        return writing is not None and "pending" in writing.takes and "view" not in writing.takes

    @functools.cached_property
    def kept(self) -> set[str]:
        """Edges that must lie in memory: those that are read from outside."""
        return set(self.result_edges)

    result_edges: tuple[str, ...] = ()

    def tail(self, node: Node, rows: Sequence[Row], channel: int | None, fixed: bool = False) -> tuple[list[Row], Any]:
        """Take in the pointwise operations behind a node.

        Args:
            node: The node.
            rows: Its own steps.
            channel: Axis of their parameters, or None.
            fixed: Whether rows run along the axis `channel` whatever comes.

        Returns:
            All steps, and the axis of their parameters; `last` is then the node whose edge is made.
        """
        found = list(rows)
        while True:
            readers = self.readers(node.name)
            if len(readers) != 1 or node.name in self.kept or self.shapes[readers[0].name] != self.shapes[node.name]:
                break
            writing = self.writing(readers[0].op)
            if writing is None or writing.rows is None or len(readers[0].inputs) != 1:
                break
            context = context_of(readers[0], self.program)
            more = writing.rows(self, readers[0], context, self.range(node))
            if more is None or (
                more.channel is not None and more.channel != channel and (fixed or channel is not None)
            ):
                break
            low, high = self.range(readers[0])
            if low < INT32[0] or high > INT32[1]:
                break
            self.texts.setdefault(writing.text)
            self.classes[readers[0].name] = writing.code
            channel = channel if more.channel is None else more.channel
            found += more.rows
            node = readers[0]
            self.absorbed.add(node.name)
            self._now.append(node.name)
        self.last = node
        low, high = self.range(node)
        if low < INT32[0] or high > INT32[1]:
            raise UnsupportedError("codes beyond 32 bits", given=(low, high), where=node.name)
        return merged(found), channel

    def inner(self, node: Node, suffix: str, shape: tuple[int, ...], codes: Range) -> Node:
        """A node for what an operation computes on the way, which the program does not name."""
        name = f"{node.name}{suffix}"
        kind = ValueType(None, 32, True)
        self.shapes[name] = shape
        self.ranges[name] = codes
        return Node(name, node.op, node.inputs, kind)

    @property
    def conv_order(self) -> Callable[[int], tuple[int, ...]]:
        """Order of axes of what a convolution makes, by rank."""
        return channels_last if self.layout == "nhwc" else lambda rank: tuple(range(rank))

"""From nodes to steps of C: what is a view, what is fused, what is written where."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.export.c.views import (
    INT32,
    TYPES,
    Border,
    Buffer,
    Loop,
    Table,
    View,
    channels_last,
    collapsed,
    order_of,
    ordered,
    type_of,
)
from chipfit.program.dialect import Context, Range, context_of, meaning_of
from chipfit.program.types import Node, Program, ValueType

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
    problems: list[str] = field(default_factory=list)
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
        found: dict[str, Range] = {}
        for node in self.program.nodes:
            kind = node.output
            if kind.real:
                continue
            ranges = meaning_of(node.op).ranges
            inputs = [found.get(name, (0, 0)) for name in node.inputs]
            try:
                low_high = (
                    (min(i[0] for i in inputs), max(i[1] for i in inputs))
                    if ranges is None
                    else ranges(node.op, inputs, context_of(node, self.program))
                )
            except UnsupportedError:
                low_high = (kind.lo, kind.hi)
            found[node.name] = low_high
        return found

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
        dtype = {"float32": np.float32, "extra_t": array.dtype}.get(type_, type_)
        array = array.astype(dtype)
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

    def output(self, node: Node, order: Sequence[int], shape: tuple[int, ...] | None = None) -> View:
        """A view of a new buffer for a node's edge, its axes in an order."""
        shape = self.shapes[node.name] if shape is None else shape
        low, high = self.range(node)
        type_ = "float32" if node.output.real else type_of(low, high)
        count = 1
        for size in shape:
            count *= size
        return View(self.buffer(type_, count, node.name), 0, shape, ordered(shape, tuple(order)), low, high)

    def emit(
        self,
        kernel: str,
        fields: Iterable[Any],
        reads: Sequence[View],
        out: View,
        macs: int = 0,
        alias: View | None = None,
        more: Sequence[Buffer] = (),
    ) -> None:
        """Add a step."""
        buffers = [view.base for view in reads if isinstance(view.base, Buffer)] + list(more)
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
            view if self._takes(writing, view) else self.plain(view, name)
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
            view = self.plain(view, node.inputs[0])
        channel = view.channel if found.channel is None else found.channel
        rows, channel = self.tail(node, found.rows, channel)
        return self.pointwise(view, rows, channel)

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
            if more is None or (more.channel is not None and more.channel != channel and (fixed or channel is not None)):
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

    # --- steps that many operations are

    def side(self, view: View, strides: Sequence[int], offset: int | None = None) -> Struct:
        """A `view_t` with the strides of a loop."""
        at = view.offset if offset is None else offset
        return Struct("view_t", (replace(view, offset=at), tuple(strides), view.pending))

    def padded(self, values: Sequence[int], fill: int) -> tuple[Any, ...]:
        """Values of a loop's axes; the rest up to RANK is filled when the text is made."""
        self.rank = max(self.rank, len(values))
        return ("axes", tuple(values), fill)

    def pointwise(
        self,
        a: View,
        rows: Sequence[Row] = (),
        channel: int | None = None,
        b: View | None = None,
        join: Row | None = None,
        out: View | None = None,
    ) -> View:
        """One or two views through steps into an edge, which `last` names; `out` where it exists already."""
        assert self.last is not None
        shape = self.shapes[self.last.name] if out is None else out.shape
        if out is None:
            like = next((v for v in (a, b) if v is not None and v.shape == shape), None)
            out = self.output(self.last, order_of(like) if like is not None else range(len(shape)), shape)
        sides = [broadcast(view, shape) for view in (a, b) if view is not None]
        loop = collapsed(shape, [out.strides, *sides], channel)
        inner = max(range(len(loop.shape)), key=lambda i: (loop.shape[i], i))
        views = [self.side(v, s) for v, s in zip([out, a, *([b] if b else [])], loop.strides, strict=True)]
        fields = (
            self.padded(loop.shape, 1),
            inner,
            loop.channel,
            views[0],
            views[1],
            views[2] if b is not None else Struct("view_t", (None, (0,), ())),
            Function(join.kernel) if join is not None else 0,
            () if join is None or join == Row(join.kernel) else (replace(join, kernel=""),),
            tuple(rows),
        )
        same = len(loop.strides) > 1 and loop.strides[0] == loop.strides[1] and TYPES[a.type] == TYPES[out.type]
        whole = isinstance(a.base, Buffer) and isinstance(out.base, Buffer) and a.offset == out.offset == 0
        same = same and whole and a.base.count == out.base.count  # type: ignore[union-attr]
        self.emit("pointwise", fields, [a, *([b] if b is not None else [])], out, alias=a if same else None)
        return out

    def plain(self, view: View, edge: str) -> View:
        """The numbers of a view without steps or a border before them."""
        keep, self.last = self.last, None
        if not view.pending and view.border is None:
            self.last = keep
            return view
        type_ = "float32" if view.type == "float32" and not view.pending else type_of(view.low, view.high)
        if view.pending:
            node = self.program.node(edge)
            type_ = "float32" if node.output.real else type_of(view.low, view.high)
        if view.border is not None:
            low, high = min(view.low, view.border.value), max(view.high, view.border.value)
            if type_ != "float32":
                type_ = type_of(low, high)
        else:
            low, high = view.low, view.high
        shape = view.full
        strides = ordered(shape, order_of(view))
        count = 1
        for size in shape:
            count *= size
        out = View(self.buffer(type_, count, edge), 0, shape, strides, low, high)
        before = len(self.steps)
        self.last = Node(edge, self.program.nodes[0].op, (), self.program.nodes[0].output)
        self._now = [edge]
        if view.border is None:
            self.pointwise(view, (), view.channel, out=out)
        else:
            self.bordered(replace(view, border=None), view.border, out)
        self.last = keep
        self.views[edge] = out
        self.made[edge] = (before, len(self.steps) - 1)
        return out

    def bordered(self, view: View, border: Border, out: View) -> None:
        """Fill a view with a border's code and put numbers into its middle."""
        self.fill(out, border.value)
        lead = len(out.shape) - len(border.before)
        at = out.offset + sum(b * s for b, s in zip(border.before, out.strides[lead:], strict=True))
        self.copy(view, out.moved(view.shape, out.strides, at))

    def fill(self, out: View, value: int) -> None:
        """Write one number everywhere."""
        held = self.bits(float(value)) if out.type == "float32" else self.table([value])
        self.pointwise(View(held, 0, out.shape, (0,) * len(out.shape), value, value), out=out)

    def copy(self, view: View, out: View) -> None:
        """Copy numbers into a view that exists."""
        self.pointwise(view, out=out)

    def reduce(
        self,
        view: View,
        strides: Sequence[int],
        windows: Sequence[tuple[int, int, int, int, int, int, int]],
        largest: bool,
        rows: Sequence[Row],
        channel: int | None,
        order: Sequence[int],
    ) -> View:
        """Sum or maximum over windows or axes into the edge that `last` names.

        Args:
            view: What is read.
            strides: Of its numbers along the axes of the output.
            windows: Up to three of: how many, how far apart in memory, along which axis of the output, where the first
                begins, how far windows move, how far apart along the axis, length of the axis (0: whole axes).
            largest: The maximum instead of the sum.
            rows, channel: As for `pointwise`.
            order: Axes of the output in memory.
        """
        assert self.last is not None
        out = self.output(self.last, order)
        fixed = tuple(window[2] for window in windows if window[6])
        loop = collapsed(out.shape, [out.strides, tuple(strides)], channel, fixed)
        axes = _axes_of(loop, out, fixed)
        free = [i for i in range(len(loop.shape)) if i not in axes.values()]
        if not free:
            loop = Loop((*loop.shape, 1), tuple((*s, 0) for s in loop.strides), loop.channel)
            free = [len(loop.shape) - 1]
        inner = max(free, key=lambda i: (loop.shape[i], i))
        windows = [*windows, *[(1, 0, -1, 0, 0, 0, 0)] * (3 - len(windows))]
        columns = list(zip(*windows, strict=True))
        where = tuple(axes.get(axis, 0) if window[6] else 0 for axis, window in zip(columns[2], windows, strict=True))
        skip = sum(window[3] * (window[1] // window[5]) for window in windows if window[6])
        fields = (
            self.padded(loop.shape, 1),
            inner,
            loop.channel,
            self.side(out, loop.strides[0]),
            self.side(view, loop.strides[1]),
            columns[0],
            columns[1],
            where,
            columns[3],
            columns[4],
            columns[5],
            columns[6],
            skip,
            int(largest),
            tuple(rows),
        )
        self.emit("reduce", fields, [view], out)
        return out

    @property
    def conv_order(self) -> Callable[[int], tuple[int, ...]]:
        """Order of axes of what a convolution makes, by rank."""
        return channels_last if self.layout == "nhwc" else lambda rank: tuple(range(rank))


def _axes_of(loop: Loop, out: View, fixed: tuple[int, ...]) -> dict[int, int]:
    """Where axes that stayed by themselves are in a loop."""
    found: dict[int, int] = {}
    for axis in fixed:
        for i, (size, step) in enumerate(zip(loop.shape, loop.strides[0], strict=True)):
            if i not in found.values() and size == out.shape[axis] and step == out.strides[axis]:
                found[axis] = i
                break
    return found


def broadcast(view: View, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a view under a shape that it is broadcast to.

    Example:
        >>> broadcast(View(Buffer("int8", 4), 0, (4, 1), (1, 1)), (2, 4, 5))
        (0, 1, 0)
    """
    lead = len(shape) - len(view.shape)
    own = zip(view.shape, view.strides, shape[lead:], strict=True)
    return (0,) * lead + tuple(step if size == wanted and size != 1 else 0 for size, step, wanted in own)


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

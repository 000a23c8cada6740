"""Steps that many operations are: on rows of one or two views, sums and maxima over windows, borders, copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from chipfit.export.c.views import TYPES, Border, Buffer, Loop, View, collapsed, order_of, type_of
from chipfit.export.c.words import Function, Row, Struct

if TYPE_CHECKING:
    from chipfit.export.c.builder import CBuilder


def side(b: CBuilder, view: View, strides: Sequence[int], offset: int | None = None) -> Struct:
    """A `view_t` with the strides of a loop."""
    at = view.offset if offset is None else offset
    return Struct("view_t", (replace(view, offset=at), tuple(strides), view.pending))


def padded(b: CBuilder, values: Sequence[int], fill: int) -> tuple[Any, ...]:
    """Values of a loop's axes; the rest up to RANK is filled when the text is made."""
    b.rank = max(b.rank, len(values))
    return ("axes", tuple(values), fill)


def pointwise(
    b: CBuilder,
    a: View,
    rows: Sequence[Row] = (),
    channel: int | None = None,
    other: View | None = None,
    join: Row | None = None,
    out: View | None = None,
) -> View:
    """One or two views through steps into an edge, which `last` names; `out` where it exists already."""
    if out is None:
        assert b.last is not None
        shape = b.shapes[b.last.name]
        like = next((v for v in (a, other) if v is not None and v.shape == shape), None)
        out = b.output(b.last, order_of(like) if like is not None else range(len(shape)), shape)
    shape = out.shape
    sides = [broadcast(view, shape) for view in (a, other) if view is not None]
    loop = collapsed(shape, [out.strides, *sides], channel)
    inner = max(range(len(loop.shape)), key=lambda i: (loop.shape[i], i))
    views = [
        side(b, v, s) for v, s in zip([out, a, *([other] if other is not None else [])], loop.strides, strict=True)
    ]
    fields = (
        padded(b, loop.shape, 1),
        inner,
        loop.channel,
        views[0],
        views[1],
        views[2] if other is not None else Struct("view_t", (None, (0,), ())),
        Function(join.kernel) if join is not None else 0,
        () if join is None or join == Row(join.kernel) else (replace(join, kernel=""),),
        tuple(rows),
    )
    same = len(loop.strides) > 1 and loop.strides[0] == loop.strides[1] and TYPES[a.type] == TYPES[out.type]
    whole = isinstance(a.base, Buffer) and isinstance(out.base, Buffer) and a.offset == out.offset == 0
    same = same and whole and a.base.count == out.base.count  # type: ignore[union-attr]
    b.emit("pointwise", fields, [a, *([other] if other is not None else [])], out, alias=a if same else None)
    return out


def plain(b: CBuilder, view: View, edge: str) -> View:
    """The numbers of a view without steps or a border before them."""
    if not view.pending and view.border is None:
        return view
    real = b.program.node(edge).output.real if view.pending else view.type == "float32"
    low, high = view.low, view.high
    if view.border is not None:
        low, high = min(low, view.border.value), max(high, view.border.value)
    out = b.room(edge, "float32" if real else type_of(low, high), view.full, order_of(view), low, high)
    before = len(b.steps)
    b._now = [edge]
    if view.border is None:
        copy(b, view, out)
    else:
        bordered(b, replace(view, border=None), view.border, out)
    b.views[edge] = out
    b.made[edge] = (before, len(b.steps) - 1)
    return out


def bordered(b: CBuilder, view: View, border: Border, out: View) -> None:
    """Fill a view with a border's code and put numbers into its middle."""
    fill(b, out, border.value)
    lead = len(out.shape) - len(border.before)
    at = out.offset + sum(b * s for b, s in zip(border.before, out.strides[lead:], strict=True))
    copy(b, view, out.moved(view.shape, out.strides, at))


def fill(b: CBuilder, out: View, value: int) -> None:
    """Write one number everywhere."""
    held = b.bits(float(value)) if out.type == "float32" else b.table([value])
    pointwise(b, View(held, 0, out.shape, (0,) * len(out.shape), value, value), out=out)


def copy(b: CBuilder, view: View, out: View) -> None:
    """Copy numbers into a view that exists."""
    pointwise(b, view, (), view.channel, out=out)


def reduce(
    b: CBuilder,
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
        b: The builder.
        view: What is read.
        strides: Of its numbers along the axes of the output.
        windows: Up to three of: how many, how far apart in memory, along which axis of the output, where the first
            begins, how far windows move, how far apart along the axis, length of the axis (0: whole axes).
        largest: The maximum instead of the sum.
        rows: As for `pointwise`.
        channel: Likewise.
        order: Axes of the output in memory.
    """
    assert b.last is not None
    out = b.output(b.last, order)
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
        padded(b, loop.shape, 1),
        inner,
        loop.channel,
        side(b, out, loop.strides[0]),
        side(b, view, loop.strides[1]),
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
    b.emit("reduce", fields, [view], out)
    return out


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

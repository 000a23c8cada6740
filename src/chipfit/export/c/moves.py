"""Operations that move numbers: other views of the same ones wherever strides can say it, copies where not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from chipfit.errors import UnsupportedError
from chipfit.export.c.builder import CBuilder
from chipfit.export.c.steps import bordered, copy
from chipfit.export.c.views import INT32, Border, View, order_of, reshaped, row_major
from chipfit.program.types import Node


def constant(b: CBuilder, node: Node, views: list[View]) -> View:
    """Codes among the constants."""
    op: Any = node.op
    values = b.program.tensors[op.codes_tensor].numpy()
    low, high = int(values.min()), int(values.max())
    if low < INT32[0] or high > INT32[1]:
        raise UnsupportedError("codes beyond 32 bits", given=(low, high), where=node.name)
    return View(b.table(values), 0, values.shape, row_major(values.shape), low, high)


def pad(b: CBuilder, node: Node, views: list[View]) -> View:
    """A border that a convolution sees by itself, or numbers copied into a larger piece of memory."""
    op: Any = node.op
    view = views[0]
    axes = len(op.pads) // 2
    before, after = op.pads[0::2][::-1], op.pads[1::2][::-1]
    if op.mode == "constant":
        if min(op.pads) < 0:
            lead = len(view.shape) - axes
            shape, at = list(view.shape), view.offset
            for i in range(axes):
                shape[lead + i] += min(before[i], 0) + min(after[i], 0)
                at += -min(before[i], 0) * view.strides[lead + i]
            view = view.moved(tuple(shape), view.strides, at)
            before, after = tuple(max(p, 0) for p in before), tuple(max(p, 0) for p in after)
            if not any((*before, *after)):
                return view
        border = Border(before, after, op.value)
        seen = [b.writing(reader.op) for reader in b.readers(node.name)]
        by_all = bool(seen) and all(writing is not None and "border" in writing.takes for writing in seen)
        if by_all and axes == len(view.shape) - 2 and view.type != "float32" and node.name not in b.kept:
            return replace(view, border=border)
        out = b.output(node, order_of(view))
        bordered(b, view, border, out)
        return out
    out = b.output(node, order_of(view))
    _mirrored(b, view, out, op.mode, before, after, len(view.shape) - axes)
    return out


def _mirrored(
    b: CBuilder, view: View, out: View, mode: str, before: tuple[int, ...], after: tuple[int, ...], lead: int
) -> None:
    """Copy every piece of a padding that repeats numbers: for each axis before, middle and after."""
    pieces: list[list[tuple[int, int, int, int]]] = []  # by axis: where in the output, how many, from where, which way
    for i, (front, back) in enumerate(zip(before, after, strict=True)):
        size = view.shape[lead + i]
        middle = (max(front, 0), size + min(front, 0) + min(back, 0), max(-front, 0), 1)
        starts = {"reflect": (front, size - 2), "replicate": (0, size - 1), "circular": (size - front, 0)}[mode]
        way = {"reflect": -1, "replicate": 0, "circular": 1}[mode]
        own = [middle]
        if front > 0:
            own.append((0, front, starts[0], way))
        if back > 0:
            own.append((front + size if front > 0 else middle[1], back, starts[1], way))
        pieces.append(own)
    chosen: list[list[tuple[int, int, int, int]]] = [[]]
    for own in pieces:
        chosen = [[*done, piece] for done in chosen for piece in own]
    for piece in chosen:
        shape, of_view, of_out = list(view.shape), list(view.strides), list(out.strides)
        from_, to = view.offset, out.offset
        for i, (at, count, begin, way) in enumerate(piece):
            axis = lead + i
            shape[axis] = count
            of_view[axis] = view.strides[axis] * way
            from_ += begin * view.strides[axis]
            to += at * out.strides[axis]
        copy(b, view.moved(tuple(shape), tuple(of_view), from_), out.moved(tuple(shape), tuple(of_out), to))


def reshape(b: CBuilder, node: Node, views: list[View]) -> View:
    """Another shape, or a copy where no strides say it."""
    view, shape = views[0], b.shapes[node.name]
    strides = reshaped(view, shape)
    if strides is not None:
        return view.moved(shape, strides)
    out = b.output(node, tuple(range(len(shape))))
    out.base.type = view.type  # copied as it lies, whatever the range would allow
    copy(b, view, out.moved(view.shape, row_major(view.shape)))
    return out


def permute(b: CBuilder, node: Node, views: list[View]) -> View:
    """Other axes."""
    op: Any = node.op
    view = views[0]
    return view.moved(tuple(view.shape[d] for d in op.dims), tuple(view.strides[d] for d in op.dims))


def slice_(b: CBuilder, node: Node, views: list[View]) -> View:
    """Some of the numbers."""
    op: Any = node.op
    view, dim = views[0], op.dim % len(views[0].shape)
    start = range(view.shape[dim])[op.start : op.stop : op.step].start
    strides = tuple(s * op.step if i == dim else s for i, s in enumerate(view.strides))
    return view.moved(b.shapes[node.name], strides, view.offset + start * view.strides[dim])


def select(b: CBuilder, node: Node, views: list[View]) -> View:
    """One of the numbers along an axis."""
    op: Any = node.op
    view, dim = views[0], op.dim % len(views[0].shape)
    strides = view.strides[:dim] + view.strides[dim + 1 :]
    return view.moved(b.shapes[node.name], strides, view.offset + (op.index % view.shape[dim]) * view.strides[dim])


def flip(b: CBuilder, node: Node, views: list[View]) -> View:
    """Numbers from the end."""
    op: Any = node.op
    view = views[0]
    dims = {dim % len(view.shape) for dim in op.dims}
    strides = tuple(-s if i in dims else s for i, s in enumerate(view.strides))
    at = view.offset + sum((view.shape[d] - 1) * view.strides[d] for d in dims)
    return view.moved(view.shape, strides, at)


def cat(b: CBuilder, node: Node, views: list[View]) -> View:
    """Parts copied one behind another."""
    op: Any = node.op
    dim = op.dim % len(views[0].shape)
    biggest = max(views, key=lambda view: math.prod(view.shape))
    out = b.output(node, order_of(biggest))
    at = 0
    for view in views:
        strides = out.strides
        copy(b, view, out.moved(view.shape, strides, out.offset + at * strides[dim]))
        at += view.shape[dim]
    return out

"""The core operations as steps of C; `chipfit.program.core.rules` has them in its column `c`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.export.c import moves
from chipfit.export.c.builder import CBuilder
from chipfit.export.c.steps import broadcast, padded, plain, pointwise, reduce, side
from chipfit.export.c.views import INT32, View, order_of
from chipfit.export.c.weighted import Sums, weighted
from chipfit.export.c.words import Row, Rows, Writing
from chipfit.program.core import ops
from chipfit.program.dialect import Context, Range
from chipfit.program.types import Node

# --- steps on rows of codes


def shift_rows(shift: int, add: int, lo: int, hi: int, codes: Range) -> Rows:
    """`clip(half_even((code + add / 2^shift) * 2^shift), lo, hi)`: `add` is in units of the output."""
    if shift >= 0:
        before = np.array([(lo - add) // (1 << shift) - 1, -(-(hi - add) // (1 << shift)) + 1]).clip(*INT32)
        ends = [int(before[0]) * (1 << shift) + add, int(before[1]) * (1 << shift) + add]
        if shift > 30 or min(ends) < INT32[0] or max(ends) > INT32[1]:
            return Rows((Row("close_wide", shift, c=add, lo=lo, hi=hi, clips=True),))
        if shift == 0 and add == 0:
            return Rows((Row("clamp", lo=lo, hi=hi, clips=True),))
        return Rows((Row("clip", shift, c=add, lo=lo, hi=hi, t=before.astype(np.int32), clips=True),))
    lifted = add << -shift
    room = max(-codes[0], codes[1]) + abs(lifted) + (1 << -shift)
    if -shift <= 30 and room <= INT32[1]:
        return Rows((Row("half_even", -shift, c=lifted, lo=lo, hi=hi, clips=True),))
    return Rows((Row("close", shift, c=lifted, lo=lo, hi=hi, clips=True),))


def _rescale(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows | None:
    op: Any = node.op
    return tabled(b, shift_rows(op.shift, op.zero, op.lo, op.hi, codes))


def tabled(b: CBuilder, rows: Rows) -> Rows:
    """Rows whose numpy values are tables of the builder."""
    made = (replace(row, t=b.table(row.t, "int32")) if isinstance(row.t, np.ndarray) else row for row in rows.rows)
    return Rows(tuple(made), rows.channel)


def _relu(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows:
    return Rows((Row("clamp", lo=0, hi=INT32[1], clips=True),))


def _clamp(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows:
    op: Any = node.op
    return Rows((Row("clamp", lo=max(op.lo, INT32[0]), hi=min(op.hi, INT32[1]), clips=True),))


def table_row(b: CBuilder, table: Any, first: int, codes: Range) -> Row:
    """A table of one row, or of one a channel, cut to the codes that can come."""
    low, high = max(codes[0], first), min(codes[1], first + table.shape[1] - 1)
    cut = table[:, low - first : high - first + 1]
    made = b.table(cut)
    kernel = {"int8": "look_up8", "int16": "look_up16"}.get(made.type)
    if kernel is None:
        made = b.table(cut, "int16" if made.type == "uint8" else "int32")
        kernel = "look_up16" if made.type == "int16" else "look_up"
    return Row(kernel, low, high - low + 1, 0 if len(table) == 1 else cut.shape[1], t=made)


def _look_up(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows:
    op: Any = node.op
    table = context.tensors[op.table_tensor].numpy()
    return Rows((table_row(b, table, op.first, codes),), None if len(table) == 1 else 1)


def _multiply_add(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows | None:
    op: Any = node.op
    weight, bias = (context.tensors[name].numpy() for name in (op.weight_tensor, op.bias_tensor))
    if weight.min() < INT32[0] or weight.max() > INT32[1]:
        return None
    if np.abs(weight).max() * float(max(-codes[0], codes[1])) + np.abs(bias).max() >= 2.0**62:
        return None
    u = b.table(bias, "int64")
    row = Row("multiply_add", op.shift, lo=op.lo, hi=op.hi, t=b.table(weight, "int32"), u=u, clips=True)
    return Rows((row,), 1)


def _quantise(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows:
    op: Any = node.op
    return Rows((Row("soft_quantise", op.lo, op.hi, t=b.bits(op.scale, float(op.zero))),))


def value_row(b: CBuilder, grid: Any) -> Row:
    """From codes to the float32 numbers that they stand for; sums without a grid are themselves."""
    if grid is None:
        return Row("soft_sum")
    if grid.kind == "plain":
        return Row("soft_code", -grid.zero, t=b.bits(grid.n, 0.0, 0.0))
    return Row("soft_code", 0, t=b.bits(grid.n, -1.0, grid.n))


def _dequantise(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows:
    return Rows((value_row(b, context.sources[0].grid),))


# --- two views


def joined(b: CBuilder, node: Node, x: View, y: View, join: Row, rows: tuple[Row, ...] = ()) -> View:
    """A join of two views, and what stands behind it."""
    rank = len(b.shapes[node.name])

    def axis(view: View) -> int | None:
        return None if view.channel is None else view.channel + rank - len(view.shape)

    if axis(x) is not None and axis(y) is not None and axis(x) != axis(y):
        y = plain(b, y, node.inputs[1])
    b.last = node
    channel = axis(x) if axis(x) is not None else axis(y)
    found, channel = b.tail(node, rows, channel)
    return pointwise(b, x, found, channel, other=y, join=join)


def _add(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    x, y = views
    low, high = x.low + y.low, x.high + y.high
    if low < INT32[0] or high > INT32[1]:
        return joined(b, node, x, y, Row("add", op.shift, lo=op.lo, hi=op.hi))
    rows = tabled(b, shift_rows(op.shift, 0, op.lo, op.hi, (low, high)))
    return joined(b, node, x, y, Row("add32"), rows.rows)


def _mul(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    x, y = views
    ends = [p * q for p in (x.low, x.high) for q in (y.low, y.high)]
    if min(ends) < INT32[0] or max(ends) > INT32[1]:
        return joined(b, node, x, y, Row("mul", op.shift, lo=op.lo, hi=op.hi))
    rows = tabled(b, shift_rows(op.shift, 0, op.lo, op.hi, (min(ends), max(ends))))
    return joined(b, node, x, y, Row("mul32"), rows.rows)


def _matmul(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    x, y = views
    shape = b.shapes[node.name]
    if len(x.shape) < 2 or len(y.shape) < 2:
        raise UnsupportedError("a product with a vector", given=(x.shape, y.shape), where=node.name)
    out = b.output(node, tuple(range(len(shape))))
    lead = shape[:-2]
    of_x = broadcast(x.moved(x.shape[:-2], x.strides[:-2]), lead) if lead else ()
    of_y = broadcast(y.moved(y.shape[:-2], y.strides[:-2]), lead) if lead else ()
    fields = (
        padded(b, shape, 1),
        x.shape[-1],
        side(b, out, out.strides),
        side(b, x, (*of_x, x.strides[-2], 0)),
        side(b, y, (*of_y, 0, y.strides[-1])),
        x.strides[-1],
        y.strides[-2],
        op.shift,
        op.lo,
        op.hi,
    )
    b.emit("matmul", fields, views, out, macs=math.prod(shape) * x.shape[-1])
    return out


# --- sums of products, and over axes


def _accumulate(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    tensors = b.program.tensors
    weight = tensors[op.weight_tensor].numpy()
    bias = np.zeros(len(weight), np.int64) if op.bias_tensor is None else tensors[op.bias_tensor].numpy()
    padding = (0,) * len(op.stride)
    return weighted(b, node, views[0], Sums(op.kind, weight, bias, op.stride, padding, op.dilation, op.groups))


def over_axes(
    b: CBuilder, node: Node, view: View, dims: tuple[int, ...], keepdim: bool, largest: bool, rows: tuple[Row, ...]
) -> View:
    """Sum or maximum over whole axes."""
    if view.channel is not None:
        view = plain(b, view, node.inputs[0])
    rank = len(view.shape)
    gone = {dim % rank for dim in dims}
    windows = [(view.shape[d], view.strides[d], -1, 0, 0, 0, 0) for d in sorted(gone) if view.shape[d] > 1]
    if len(windows) > 3:
        raise UnsupportedError("a sum over more than three axes", given=dims, where=node.name)
    count = math.prod(view.shape[d] for d in gone)
    if not largest and max(abs(view.low), abs(view.high)) * count > INT32[1]:
        raise UnsupportedError("sums beyond 32 bits", given=count * max(-view.low, view.high), where=node.name)
    kept = [d for d in range(rank) if keepdim or d not in gone]
    strides = tuple(0 if d in gone else view.strides[d] for d in kept)
    like = [d for d in order_of(view) if d in kept]
    order = tuple(kept.index(d) for d in like)
    found, channel = b.tail(node, rows, None)
    b.last = b.last or node
    if b.shapes[b.last.name] != b.shapes[node.name]:
        raise UnsupportedError("a shape that changes", where=node.name)
    return reduce(b, view, strides, windows, largest, found, channel, order)


def _mean(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    view = views[0]
    count = math.prod(view.shape[d] for d in op.dims)
    lo, hi = max(op.sum_lo, INT32[0]), min(op.sum_hi, INT32[1])
    row = Row("quotient", count, lo=lo, hi=hi)
    return over_axes(b, node, view, op.dims, op.keepdim, False, (row,))


def _sum(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    return over_axes(b, node, views[0], op.dims, op.keepdim, False, ())


def _max(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    return over_axes(b, node, views[0], op.dims, op.keepdim, True, ())


def _pool(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    view, largest = views[0], isinstance(op, ops.MaxPool)
    if view.channel is not None:
        view = plain(b, view, node.inputs[0])
    count = math.prod(op.kernel)
    if not largest and max(abs(view.low), abs(view.high)) * count > INT32[1]:
        raise UnsupportedError("sums beyond 32 bits", given=count * max(-view.low, view.high), where=node.name)
    lead = len(view.shape) - len(op.kernel)
    padding = op.padding if largest else (0,) * len(op.kernel)
    dilation = op.dilation if largest else (1,) * len(op.kernel)
    strides, windows = list(view.strides), []
    for i, kernel in enumerate(op.kernel):
        axis = lead + i
        step, size = view.strides[axis], view.shape[axis]
        strides[axis] = step * op.stride[i]
        windows.append((kernel, step * dilation[i], axis, -padding[i], op.stride[i], dilation[i], size))
    rows, channel = b.tail(node, (), None)
    return reduce(b, view, strides, windows, largest, rows, channel, order_of(view))


_VIEW = ("view",)
WRITINGS: dict[type[ops.Op], Writing] = {
    ops.Quantise: Writing(rows=_quantise, takes=("pending",), code="float32"),
    ops.Dequantise: Writing(rows=_dequantise, takes=("pending",), code="float32"),
    ops.Rescale: Writing(rows=_rescale, takes=("pending",)),
    ops.Relu: Writing(rows=_relu, takes=("pending",)),
    ops.Clamp: Writing(rows=_clamp, takes=("pending",)),
    ops.LookUp: Writing(rows=_look_up, takes=("pending",), code="table"),
    ops.MultiplyAdd: Writing(rows=_multiply_add, takes=("pending",)),
    ops.Accumulate: Writing(_accumulate, takes=("border",)),
    ops.Constant: Writing(moves.constant),
    ops.Add: Writing(_add, takes=("pending",)),
    ops.Mul: Writing(_mul, takes=("pending",)),
    ops.MatMul: Writing(_matmul),
    ops.Mean: Writing(_mean, takes=("pending",)),
    ops.MaxPool: Writing(_pool, takes=("pending",)),
    ops.SumPool: Writing(_pool, takes=("pending",)),
    ops.Sum: Writing(_sum, takes=("pending",)),
    ops.Max: Writing(_max, takes=("pending",)),
    ops.Pad: Writing(moves.pad, takes=_VIEW),
    ops.Reshape: Writing(moves.reshape, takes=_VIEW),
    ops.Permute: Writing(moves.permute, takes=_VIEW),
    ops.Slice: Writing(moves.slice_, takes=_VIEW),
    ops.Select: Writing(moves.select, takes=_VIEW),
    ops.Flip: Writing(moves.flip, takes=_VIEW),
    ops.Cat: Writing(moves.cat, takes=("pending",)),
}
"""The column."""

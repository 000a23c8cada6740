"""Ingenic's operations as steps of C: the float32 after a sum as integers wherever it only ever rises or falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.chips.ingenic.program import ops, reference
from chipfit.chips.ingenic.program.ranges import requantised_range
from chipfit.errors import UnsupportedError
from chipfit.export.c.builder import CBuilder
from chipfit.export.c.core import joined, table_row, value_row
from chipfit.export.c.staircase import line_row, staircase
from chipfit.export.c.steps import copy, fill, padded, plain, side
from chipfit.export.c.views import View, order_of, reshaped, row_major, type_of
from chipfit.export.c.words import Row, Rows, Struct, Writing
from chipfit.program.core.ops import Accumulate
from chipfit.program.core.ranges import sum_ranges
from chipfit.program.dialect import Context, Range
from chipfit.program.grid import value
from chipfit.program.types import Node

_TEXT = (Path(__file__).parent / "kernels.c").read_text("utf-8")
_PAIRS = 1 << 18
"""Pairs of codes that are all tried."""
_BUT = 4096
"""Pairs that a list names at most."""
_BAND = 0.501
"""Up to where `tround` takes a fraction to the even neighbour."""
_TABLE = 512
"""Codes that a table has at most, where steps are no lines."""


def _per_channel(op: ops.Finish, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    names = []
    if op.affine is not None:
        names += [op.affine.scale_tensor, op.affine.bias_tensor]
    if op.norm is not None:
        names += [op.norm.mean_tensor, op.norm.gain_tensor, op.norm.shift_tensor]
    names.append(op.activation.slope_tensor)
    return [tensors[name] for name in names if name is not None]


def _finish(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows | None:
    op: Any = node.op
    rank = len(b.shapes[node.inputs[0]])
    values = _per_channel(op, context.tensors)
    channels = max([1, *(value.numel() for value in values)])
    axis = None if channels == 1 else op.axis % rank
    integer = op.requantise is not None and (op.grid is not None or not context.sources[0].real)
    if integer:
        row = _as_integers(b, node, context, codes, channels)
        if row is not None:
            return Rows((row,), axis)
    b.classes[node.name] = "float32"
    rows = [] if op.grid is None and context.sources[0].real else [value_row(b, op.grid)]
    tensors = context.tensors
    if op.affine is not None:
        rows.append(_constants(b, "soft_times", tensors[op.affine.scale_tensor]))
        if op.affine.bias_tensor is not None:
            rows.append(_constants(b, "soft_plus", tensors[op.affine.bias_tensor]))
    if op.norm is not None:
        rows.append(_constants(b, "soft_plus", -tensors[op.norm.mean_tensor]))
        rows.append(_constants(b, "soft_times", tensors[op.norm.gain_tensor]))
        rows.append(_constants(b, "soft_plus", tensors[op.norm.shift_tensor]))
    rows += _activation(b, op.activation, tensors)
    rows += _requantise(b, op.requantise)
    return Rows(tuple(rows), axis)


def _constants(b: CBuilder, kernel: str, values: Tensor) -> Row:
    return Row(kernel, c=int(values.numel() > 1), t=b.bits(*values.reshape(-1).tolist()))


def _activation(b: CBuilder, op: ops.Activation, tensors: Mapping[str, Tensor]) -> list[Row]:
    """The soft-float steps of an activation."""
    if op.kind == "none":
        return []
    if op.kind == "leaky":
        return [_constants(b, "soft_leaky", tensors[op.slope_tensor or ""])]
    if op.kind in ("relu", "relu6"):
        return [Row("soft_between", t=b.bits(0.0, np.inf if op.kind == "relu" else 6.0))]
    if op.kind == "shift":
        return [Row("soft_plus", t=b.bits(op.offset))]
    return [Row("soft_gate", int(op.kind == "hswish"), t=b.bits(op.offset, op.top))]


def _requantise(b: CBuilder, op: ops.Requantise | None) -> list[Row]:
    """The soft-float steps from a number to a code."""
    if op is None:
        return []
    clip, n = float(np.float32(op.clip)), float(op.n)
    rows = [] if op.divisor is None else [Row("soft_over", t=b.bits(op.divisor))]
    if op.kind == "unsigned":
        rows += [Row("soft_between", t=b.bits(0.0, clip)), Row("soft_over", t=b.bits(clip))]
        return [*rows, Row("soft_times", t=b.bits(n)), Row("soft_tround")]
    rows.append(Row("soft_between", t=b.bits(-clip, clip)))
    if op.kind == "signed":
        rows += [Row("soft_over", t=b.bits(clip)), Row("soft_times", t=b.bits(n)), Row("soft_tround")]
        return [*rows, Row("clamp", lo=-op.n, hi=op.n - 1, clips=True)]
    rows += [Row("soft_plus", t=b.bits(clip)), Row("soft_over", t=b.bits(2 * clip)), Row("soft_times", t=b.bits(n))]
    return [*rows, Row("soft_tround"), Row("affine", 2, -op.n)]


def _as_integers(b: CBuilder, node: Node, context: Context, codes: Range, channels: int) -> Row | None:
    """A table or lines that give what the float32 steps give; None where there are none."""
    op: Any = node.op
    odd = op.requantise.kind == "odd"
    low, high = _ranges(b, node, codes, channels)
    size = int(high.max()) - int(low.min()) + 1

    def function(x: Any) -> Any:
        x = torch.from_numpy(np.ascontiguousarray(x))
        if channels > 1 and x.shape[1] == 1:
            x = x.expand(-1, channels)
        return _steps(reference.finish(op, [x], context).numpy(), op.requantise)

    if reference.rises(op.activation, context.tensors) and size > 16:
        row = _lines(b, op, function, low, high, context.tensors)
        if row is not None:  # a line's k is the code 2 k - n on an odd grid
            return replace(row, kernel="line_odd", c=op.requantise.n) if odd else row
    if size <= _TABLE:
        x = np.arange(int(low.min()), int(high.max()) + 1)[:, None].repeat(channels, 1)
        made = function(x)
        table = (2 * made - op.requantise.n if odd else made).T
        if (table == table[:1]).all():
            table = table[:1]
        return table_row(b, table, int(low.min()), (int(low.min()), int(high.max())))
    return None


def _steps(codes: Any, requantise: ops.Requantise) -> Any:
    """The steps that codes are on a quantiser's grid: of an odd one, whose codes are two apart, from 0 on."""
    return (codes + requantise.n) // 2 if requantise.kind == "odd" else codes


def _lines(
    b: CBuilder, op: ops.Finish, function: Any, low: Any, high: Any, tensors: Mapping[str, Tensor]
) -> Row | None:
    stairs = staircase(function, low, high)
    if stairs is None:
        return None
    band = stairs.first >= 0  # `tround` takes what is just above a half to the even code
    row = line_row(b, stairs, low, high, band=band)
    if row is None and op.activation.kind == "leaky":
        row = line_row(b, stairs, low, high, _bend(op, low, high, tensors), band)
    return row


def _bend(op: ops.Finish, low: Any, high: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The first sum of each channel on the other side of zero, as far as float64 knows it."""
    scale, move = np.ones(len(low)), np.zeros(len(low))
    if op.grid is not None:
        scale = scale / op.grid.n
        move = move - op.grid.zero / op.grid.n if op.grid.kind == "plain" else move
    if op.affine is not None:
        factor = tensors[op.affine.scale_tensor].double().numpy()
        scale, move = scale * factor, move * factor
        move = move if op.affine.bias_tensor is None else move + tensors[op.affine.bias_tensor].double().numpy()
    if op.norm is not None:
        mean, gain, shift = (
            tensors[name].double().numpy() for name in (op.norm.mean_tensor, op.norm.gain_tensor, op.norm.shift_tensor)
        )
        scale, move = scale * gain, (move - mean) * gain + shift
    zero = np.where(scale == 0, 0.0, -move / np.where(scale == 0, 1.0, scale))
    return np.clip(np.ceil(zero), low.astype(np.float64), high.astype(np.float64)).astype(np.int64)


def _ranges(b: CBuilder, node: Node, codes: Range, channels: int) -> tuple[Any, Any]:
    """Range of what comes in, channel by channel where a sum says so."""
    source = next((entry for entry in b.program.nodes if entry.name == node.inputs[0]), None)
    low, high = np.full(channels, codes[0]), np.full(channels, codes[1])
    if source is not None and isinstance(source.op, Accumulate) and channels > 1:
        total = source.op
        inputs = b.ranges.get(source.inputs[0], codes)
        lowest, highest = sum_ranges(b.program.tensors[total.weight_tensor], inputs)
        bias = 0 if total.bias_tensor is None else b.program.tensors[total.bias_tensor]
        if len(lowest) == channels:
            low, high = (lowest + bias).numpy(), (highest + bias).numpy()
    return low.astype(np.int64), high.astype(np.int64)


def _combine(b: CBuilder, node: Node, views: list[View]) -> View:
    """Two codes as numbers, joined, and to a code again."""
    op: Any = node.op
    found = _in_codes(b, node, views)
    if found is not None:
        b.classes[node.name] = "integer"
        join, behind = found
        return joined(b, node, views[0], views[1], join, behind)
    sides = []
    for view, grid, edge in zip(views, (op.left, op.right), node.inputs, strict=True):
        real = b.program.type(edge).real
        sides.append(view if grid is None and real else _with(view, value_row(b, grid)))
    rows = [*_activation(b, op.activation, b.program.tensors), *_requantise(b, op.requantise)]
    if op.activation.slope_tensor is not None and b.program.tensors[op.activation.slope_tensor].numel() > 1:
        raise UnsupportedError("slopes a channel behind two inputs", where=node.name)
    join = Row("soft_sum_of" if op.kind == "add" else "soft_product_of")
    return joined(b, node, sides[0], sides[1], join, tuple(rows))


def _in_codes(b: CBuilder, node: Node, views: list[View]) -> tuple[Row, tuple[Row, ...]] | None:
    """A sum of codes as one line of fixed point, checked for every pair of codes; None where there is none."""
    op: Any = node.op
    if op.kind != "add" or op.left is None or op.right is None or op.requantise is None:
        return None
    if op.activation.kind not in ("none", "relu", "relu6"):
        return None
    requantise = op.requantise
    x, y = (np.arange(view.low, view.high + 1) for view in views)
    if len(x) * len(y) > _PAIRS:
        return None
    pairs = [torch.from_numpy(codes) for codes in (x[:, None].repeat(len(y), 1), y[None].repeat(len(x), 0))]
    wanted = _steps(reference.combine(op, pairs, Context(b.program.tensors)).numpy(), requantise)
    odd = requantise.kind == "odd"
    clip, n = float(np.float32(requantise.clip)), float(requantise.n)
    unit = (n / (2 * clip) if odd else n / clip) / (1.0 if requantise.divisor is None else requantise.divisor)
    a, c = unit / op.left.n, unit / op.right.n
    move = (n / 2 if odd else 0.0) - a * op.left.zero - c * op.right.zero
    largest = max(abs(a * i + c * j + move) for i in (x[0], x[-1]) for j in (y[0], y[-1])) + 2
    parts = sum(abs(k) * max(abs(int(e[0])), abs(int(e[-1]))) for k, e in ((a, x), (c, y))) + abs(move) + 2
    shift = min(24, 30 - int(np.ceil(np.log2(max(largest, parts)))))
    if shift < 12:
        return None
    low, high = _limits(op)
    best: tuple[int, Any, int, int, int] | None = None
    for nudge in (0, 1, -1, 2, -2, 4, -4, 8, -8):
        factors = round(a * 2**shift), round(c * 2**shift), round(move * 2**shift) + nudge
        got = _fixed(pairs[0].numpy(), pairs[1].numpy(), factors, shift, low, high)
        wrong = wanted - got
        count = int(np.count_nonzero(wrong))
        if best is None or count < best[0]:
            best = (count, wrong, *factors)
    assert best is not None
    count, wrong, *chosen = best
    if count > _BUT or np.abs(wrong).max() > 1:
        return None
    where = np.flatnonzero(wrong)
    but = where.astype(np.uint32) | np.where(wrong.reshape(-1)[where] > 0, 1 << 31, 0).astype(np.uint32)
    half, band = 1 << (shift - 1), int(_BAND * 2**shift)
    table = b.table(but, "uint32") if count else None
    struct = Struct("join_codes_t", (*chosen, shift, half, band, int(x[0]), int(y[0]), len(y), int(count), table))
    row = Row("join_codes", lo=low, hi=high, t=struct)
    return row, (Row("affine", 2, -requantise.n),) if odd else ()


def _limits(op: ops.Combine) -> tuple[int, int]:
    """Lowest and highest step of the quantiser, an activation that cuts included."""
    requantise: Any = op.requantise
    low, high = (_steps(code, requantise) for code in requantised_range(requantise))
    if op.activation.kind != "none":
        ends = [int(reference.requantise(torch.tensor([end]), requantise)) for end in (0.0, 6.0)]
        least, most = (_steps(code, requantise) for code in ends)
        low = max(low, least)
        high = min(high, most) if op.activation.kind == "relu6" else high
    return low, high


def _fixed(x: Any, y: Any, factors: tuple[int, int, int], shift: int, low: int, high: int) -> Any:
    """What the C of `join_codes` gives."""
    z = x * factors[0] + y * factors[1] + factors[2]
    m = np.abs(z)
    k, f = m >> shift, m & ((1 << shift) - 1)
    k = k + ((f > int(_BAND * 2**shift)) | ((f >= 1 << (shift - 1)) & (k % 2 == 1)))
    return np.clip(np.where(z < 0, -k, k), low, high)


def _with(view: View, row: Row) -> View:
    return replace(view, pending=(*view.pending, row))


def _average(b: CBuilder, node: Node, views: list[View]) -> View:
    """Each code by a table to the grid of the result, then their mean."""
    op: Any = node.op
    sides = []
    for view, grid in zip(views, (op.left, op.right), strict=True):
        codes = torch.arange(view.low, view.high + 1)
        table = (value(codes, grid) * float(op.n)).round().to(torch.int64).numpy()
        sides.append(_with(view, table_row(b, table[None], view.low, (view.low, view.high))))
    return joined(b, node, sides[0], sides[1], Row("average"))


def _float_mean(b: CBuilder, node: Node, views: list[View]) -> View:
    """Sums of float32 in the order of the reference, number by number, then over how many they are."""
    op: Any = node.op
    view, edge = views[0], node.inputs[0]
    if view.channel is not None:  # parameters would follow an axis of the input that a sum does not walk along
        view = plain(b, view, edge)
    _, _, height, width = view.shape
    flat = reshaped(view, (*view.shape[:2], height * width))
    if flat is None and not op.kernel:  # a sum of all positions walks along one stride
        view = _in_rows(b, view, edge)
        flat = (*view.strides[:2], 1)
    if op.grid is not None or not b.program.type(edge).real:
        view = _with(view, value_row(b, op.grid))
    count = math.prod(op.kernel) if op.kernel else height * width
    rows, channel = b.tail(node, (Row("soft_over", t=b.bits(count)),), None)
    assert b.last is not None
    shape = b.shapes[node.name]
    order = order_of(view) if len(shape) == len(view.shape) else range(len(shape))
    out = b.output(b.last, tuple(order))
    if op.kernel:
        down, across = view.strides[2:]
        strides = (*view.strides[:2], down * op.stride[0], across * op.stride[1])
        window = (*op.kernel, down, across)
    else:
        assert flat is not None
        strides = (*view.strides[:2], 0, 0)[: len(shape)]
        window = (0, count, 0, flat[2])
    ends = (side(b, out, out.strides), side(b, view, strides))
    fields = (padded(b, shape, 1), -1 if channel is None else channel, *ends, *window, tuple(rows))
    b.emit("float_sums", fields, [view], out)
    return out


def _in_rows(b: CBuilder, view: View, edge: str) -> View:
    """A copy whose rows lie one after the other."""
    type_ = "float32" if b.program.type(edge).real else type_of(view.low, view.high)
    out = View(b.buffer(type_, math.prod(view.shape), edge), 0, view.shape, row_major(view.shape), view.low, view.high)
    copy(b, view, out)
    return out


def _maximum(b: CBuilder, node: Node, views: list[View]) -> View:
    return joined(b, node, views[0], views[1], Row("largest"))


def _enlarge(b: CBuilder, node: Node, views: list[View]) -> View:
    """A patch for every number: the same number along two more axes, or filled around."""
    op: Any = node.op
    view = views[0]
    down, across = op.kernel
    out = b.output(node, order_of(view))
    batch, channels, height, width = view.shape
    strides = out.strides
    shape = (batch, channels, height, down, width, across)
    patches = (strides[0], strides[1], strides[2] * down, strides[2], strides[3] * across, strides[3])
    if op.mode == "nearest":
        own = view.strides
        copy(b, view.moved(shape, (own[0], own[1], own[2], 0, own[3], 0)), out.moved(shape, patches))
        return out
    fill(b, out, op.value)
    copy(b, view, out.moved(view.shape, (strides[0], strides[1], strides[2] * down, strides[3] * across)))
    return out


def _table_rows(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    view = views[0]
    table = b.program.tensors[op.table_tensor].numpy()
    if view.type != "int32":
        raise UnsupportedError("an index that is computed", where=node.name)
    out = b.output(node, tuple(range(len(b.shapes[node.name]))))
    count = int(np.prod(view.shape))
    kept = b.table(table)
    low, high = int(table.min()), int(table.max())
    rows = View(kept, 0, table.shape, (table.shape[1], 1), low, high)
    sides = (side(b, out, (table.shape[1], 1)), side(b, view, (1,)), side(b, rows, rows.strides))
    b.emit("table_rows", (count, len(table), table.shape[1], *sides), [view], out)
    return out


def _pixels(b: CBuilder, node: Node, context: Context, codes: Range) -> Rows | None:
    return None


PIXEL_CODES = Writing(rows=_pixels, code="float32")
FINISH = Writing(rows=_finish, takes=("pending",), text=_TEXT)
COMBINE = Writing(_combine, takes=("pending",), text=_TEXT, code="float32")
AVERAGE = Writing(_average, takes=("pending",), text=_TEXT, code="table")
FLOAT_MEAN = Writing(_float_mean, takes=("pending",), text=_TEXT, code="float32")
MAXIMUM = Writing(_maximum, takes=("pending",))
ENLARGE = Writing(_enlarge)
TABLE_ROWS = Writing(_table_rows, takes=("index",), text=_TEXT, code="table")

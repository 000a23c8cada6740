"""Witmem's operations as steps of C."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from chipfit.chips.witmem.program import ops
from chipfit.errors import UnsupportedError
from chipfit.export.c.builder import CBuilder
from chipfit.export.c.core import joined, shift_rows, tabled
from chipfit.export.c.steps import side
from chipfit.export.c.views import INT32, View
from chipfit.export.c.weighted import Cut, Sums, largest_sum, weighted
from chipfit.export.c.words import Row, Struct, Writing
from chipfit.program.types import Node

_TEXT = (Path(__file__).parent / "kernels.c").read_text("utf-8")


def _rounding(b: CBuilder, rule: str, log2_g: int, lo: int, hi: int, bound: int) -> tuple[Row, ...]:
    """From a sum to a code by the array's rounding rule."""
    if rule == "witin_nn" or log2_g < 0:
        return tabled(b, shift_rows(-log2_g, 0, lo, hi, (-bound, bound))).rows
    row = Row("wtm2101", log2_g, lo=lo, hi=hi, clips=True)
    if log2_g > 29:
        raise UnsupportedError("G beyond 2^29", given=f"2^{log2_g}", where="array")
    room = INT32[1] - (1 << log2_g)
    if bound <= room:
        return (row,)
    if (hi + 1) << log2_g > room or (-lo + 1) << log2_g > room:
        raise UnsupportedError("sums beyond 32 bits", given=bound, where="array")
    return (Row("clamp", lo=-room, hi=room), row)


def _array(b: CBuilder, node: Node, x: View, op: ops.Array) -> View:
    tensors = b.program.tensors
    geometry, split = op.geometry, op.split
    weight, bias = tensors[op.weight_tensor].numpy(), tensors[op.bias_tensor].numpy()
    negative = None if op.negative_weight_tensor is None else tensors[op.negative_weight_tensor].numpy()
    parts = (geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    sums = Sums(geometry.kind, weight, bias, *parts, negative=negative)
    bound = largest_sum(sums, x.low, x.high)
    if split is None:
        return weighted(b, node, x, sums, _rounding(b, op.rounding, op.log2_g, op.lo, op.hi, bound))
    high = tensors[split.digital_bias_tensor].numpy()
    low_bound = largest_sum(sums, -255 if negative is not None else 0, 255)
    digital = bound + int(np.abs(high).max())
    if digital > INT32[1] // 2:
        raise UnsupportedError("sums beyond 32 bits", given=digital, where=node.name)
    room = digital // (1 << max(op.log2_g, 0)) + 1 if op.log2_g >= 0 else digital << -op.log2_g
    if room > INT32[1] // 2:
        raise UnsupportedError("sums beyond 32 bits", given=room, where=node.name)
    low_rows = _rounding(b, op.rounding, op.log2_g, split.analog_lo, split.analog_hi, low_bound)
    lift = Row("affine", 256, 0)
    lifted = tabled(b, shift_rows(-op.log2_g, 0, -room, room, (-digital, digital))).rows
    if (high % 256).any():
        lift_bias: Any = np.zeros_like(high)
        adding = Row("channel_add", t=b.table(high, "int32"))
        cut = Cut(8, negative is not None, lift_bias, low_rows, (lift, adding, *lifted))
    else:
        cut = Cut(8, negative is not None, high // 256, low_rows, (lift, *lifted))
    return weighted(b, node, x, sums, (Row("clamp", lo=op.lo, hi=op.hi, clips=True),), cut)


def _write_array(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    return _array(b, node, views[0], op)


def _gru(b: CBuilder, node: Node, views: list[View]) -> View:
    """The input's part of all steps at once, then step by step the state's."""
    op: Any = node.op
    shape = b.shapes[node.name]
    steps, units = shape[op.time_dim], shape[2]
    x = views[0]
    gates = b.inner(node, ".input", (*shape[:2], 3 * units), (op.input.lo, op.input.hi))
    of_input = _array(b, gates, x, op.input)
    state = View(b.buffer("int8", units, f"{node.name}.state"), 0, (1, units), (units, 1), -128, 127)
    index = len(b.steps)
    hidden_node = b.inner(node, ".hidden", (1, 3 * units), (op.hidden.lo, op.hidden.hi))
    of_hidden = _array(b, hidden_node, state, op.hidden)
    hidden = b.steps.pop(index)
    b.last, b._now = node, [node.name]
    out = b.output(node, (1 - op.time_dim, op.time_dim, 2))
    widest = max(abs(op.input.lo) << op.input_shift, 0) + max(abs(op.hidden.lo) << op.hidden_shift, 0)
    if widest > 1 << 29:
        raise UnsupportedError("sums beyond 32 bits", given=widest, where=node.name)
    start = views[1] if len(views) > 1 else None
    fields = (
        Struct("conv_t", hidden.fields),
        side(b, of_input, (of_input.strides[op.time_dim], of_input.strides[2])),
        side(b, of_hidden, (0, 1)),
        side(b, state, (0, 1)),
        side(b, out, (out.strides[op.time_dim], out.strides[2])),
        side(b, start, (0, start.strides[-1])) if start is not None else Struct("view_t", (None, (0,), ())),
        steps,
        units,
        int(op.reverse),
        int(start is not None),
        op.input_shift,
        op.hidden_shift,
        op.gate_shift,
        op.candidate_shift,
        b.table(b.program.tensors[op.gate_table_tensor].numpy(), "int16"),
        b.table(b.program.tensors[op.candidate_table_tensor].numpy(), "int16"),
    )
    reads = [of_input, of_hidden, state, *([start] if start is not None else [])]
    b.emit("gru", fields, reads, out, macs=hidden.macs * steps)
    return out


def _divide(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    return joined(b, node, views[0], views[1], Row("divide", op.shift, lo=op.lo, hi=op.hi))


def _hypot(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    root = b.table([op.root_shift], "int32")
    return joined(b, node, views[0], views[1], Row("hypotenuse", op.shift, lo=op.lo, hi=op.hi, t=root))


def _layer_norm(b: CBuilder, node: Node, views: list[View]) -> View:
    op: Any = node.op
    view = views[0]
    b.last = node
    out = b.output(node, tuple(range(4)))
    b.rank = max(b.rank, 4)
    halves = [half for limit in (op.sum_lo, op.sum_hi) for half in (limit & 0xFFFFFFFF, limit >> 32)]
    signed = [half - (1 << 32) if half >= 1 << 31 else half for half in halves]
    fields = (
        view.shape,
        side(b, out, out.strides),
        side(b, view, view.strides),
        int(op.simple),
        op.root_shift,
        op.root_shift // 2 + op.log2_scale,
        op.lo,
        op.hi,
        b.table(signed, "int32"),
    )
    b.emit("layer_norm", fields, [view], out)
    return out


ARRAY = Writing(_write_array, takes=("border",), text=_TEXT)
GRU = Writing(_gru, text=_TEXT, code="table")
DIVIDE = Writing(_divide, takes=("pending",), text=_TEXT)
HYPOT = Writing(_hypot, takes=("pending",), text=_TEXT)
LAYER_NORM = Writing(_layer_norm, text=_TEXT)

"""Sums of products as steps of C: linear maps, convolutions, depthwise, grouped, transposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.export.c.builder import CBuilder
from chipfit.export.c.steps import plain, pointwise, side
from chipfit.export.c.views import INT32, View, collapsed, type_of
from chipfit.export.c.words import Function, Row
from chipfit.program.core import ops
from chipfit.program.types import Node

_WIDE_CUT = 15
"""Where codes beyond 16 bits are cut in two, each half of which a 16-bit row holds."""


@dataclass(frozen=True)
class Sums:
    """A weighted sum.

    Args:
        kind: 'linear', 'conv' or 'conv_transpose'.
        weight: int64, torch's layout.
        bias: int64, one an output.
        stride, padding, dilation: One number a spatial axis; padding adds code 0.
        groups: Groups of channels.
        negative: Weights of a second pass over the negative codes; None for none.
    """

    kind: str
    weight: Any
    bias: Any
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    negative: Any = None


@dataclass(frozen=True)
class Cut:
    """Inputs cut in two: low bits and the rest, each summed by itself.

    Args:
        at: Bits of the low part.
        signs: Whether negative codes are cut by magnitude.
        bias: Of the sum of the rest, before it is lifted.
        low, high: Steps on the two sums before they are added.
    """

    at: int
    signs: bool
    bias: Any
    low: tuple[Row, ...]
    high: tuple[Row, ...]


@dataclass(frozen=True)
class _Shape:
    """`conv_t` from the view of the input on: sizes, and weights in the order that rows are gathered in.

    Args:
        strides: Of the input and of the output: down, across, channel.
        numbers: h, w, oh, ow, kh, kw, sy, sx, dy, dx, py, px, uy, ux; then the channels of a group.
        weight, negative: Of both passes.
        groups: Groups of channels.
        outputs: Of a group; 0 where each channel is by itself.
    """

    strides: tuple[tuple[int, ...], tuple[int, ...]]
    numbers: tuple[int, ...]
    weight: Any
    negative: Any
    groups: int
    outputs: int

    @property
    def depthwise(self) -> bool:
        """Whether each channel is by itself."""
        return self.outputs == 0


def largest_sum(sums: Sums, low: int, high: int) -> int:
    """Largest magnitude of a sum, or of a part of it, for codes of a range.

    Example:
        >>> largest_sum(Sums("linear", np.array([[3, -1]]), np.array([5])), -2, 9)
        41
    """
    low, high = min(low, 0), max(high, 0)
    weight = np.abs(sums.weight)
    if sums.negative is not None:
        weight = np.maximum(weight, np.abs(sums.negative))
    if sums.kind == "conv_transpose":  # an output of each group adds up all of its inputs
        inputs = weight.shape[0] // sums.groups
        grouped = weight.reshape(sums.groups, inputs, -1, *weight.shape[2:])
        each = grouped.reshape(sums.groups, inputs, weight.shape[1], -1).sum((1, 3)).reshape(-1)
    else:
        each = weight.reshape(len(weight), -1).sum(1)
    return int((each * max(-low, high) + np.abs(sums.bias)).max())


def weighted(b: CBuilder, node: Node, x: View, sums: Sums, rows: Sequence[Row] = (), cut: Cut | None = None) -> View:
    """Write a weighted sum, with its own steps, those of the nodes behind it and a maximum over windows.

    Raises:
        UnsupportedError: sums beyond 32 bits, or weights beyond 16.
    """
    if x.pending or (x.border is not None and sums.kind != "conv"):
        x = plain(b, x, node.inputs[0])
    low, high = x.low, x.high
    if x.border is not None:
        low, high = min(low, x.border.value), max(high, x.border.value)
    bound = largest_sum(sums, low, high)
    if bound > INT32[1]:
        raise UnsupportedError("sums beyond 32 bits", given=bound, allowed="2^31 - 1", where=node.name)
    if cut is None and (low < -(1 << 15) or high >= 1 << 15):
        cut = Cut(_WIDE_CUT, False, np.zeros_like(sums.bias), (), (Row("affine", 1 << _WIDE_CUT, 0),))
    axis = len(b.shapes[node.name]) - 1 if sums.kind == "linear" else 1
    found, _ = b.tail(node, rows, axis, fixed=True)
    assert b.last is not None
    pool = _pool(b, b.last) if sums.kind != "linear" else None
    if pool is not None:
        b.absorbed.add(pool.name)
        b._now.append(pool.name)
        b.classes[pool.name] = "integer"
        b.last = pool
    order = range(axis + 1) if sums.kind == "linear" else b.conv_order(len(b.shapes[node.name]))
    out = b.output(b.last, tuple(order))
    x, shape = (_linear if sums.kind == "linear" else _conv)(b, node, x, sums, out)
    kernel = getattr(pool.op, "kernel", (1, 1)) if pool is not None else (1, 1)
    window = (1, *kernel) if len(kernel) == 1 else kernel
    total = len(sums.bias)
    type_ = _weight_type(b, shape.weight, node.name)
    row = shape.weight.size if shape.depthwise else shape.weight[0].size
    dots = ("taps" if shape.depthwise else "dots") + ("8" if type_ == "int8" else "16")
    b.rows_needed = max(b.rows_needed, 2 * row)
    b.wide_needed = max(b.wide_needed, total * (5 if cut else 3 if window != (1, 1) else 2))
    bytes_of_group = shape.outputs * row * (1 if type_ == "int8" else 2)
    extra = _extras(shape)
    numbers = shape.numbers
    fill = x.border.value if x.border is not None else 0
    fields = (
        side(b, x, shape.strides[0]),
        side(b, out, shape.strides[1]),
        *numbers,
        shape.groups,
        shape.outputs,
        fill,
        *window,
        Function(dots),
        b.table(shape.weight, type_),
        bytes_of_group,
        b.table(sums.bias, "int32"),
        b.table(extra, "extra_t") if len(extra) else None,
        len(extra),
        tuple(found),
        cut.at if cut else 0,
        int(cut.signs) if cut else 0,
        b.table(cut.bias, "int32") if cut else None,
        cut.low if cut else (),
        cut.high if cut else (),
    )
    pixels = numbers[2] * numbers[3] * window[0] * window[1]
    b.emit("conv", fields, [x], out, macs=pixels * row * (1 if shape.depthwise else total))
    return out


def _weight_type(b: CBuilder, weight: Any, where: str) -> str:
    low, high = int(weight.min()), int(weight.max())
    if low < -(1 << 15) or high >= 1 << 15:
        raise UnsupportedError("weights beyond 16 bits", given=(low, high), where=where)
    return "int8" if type_of(low, high) == "int8" and b.weights == "int8" else "int16"


def _pool(b: CBuilder, node: Node) -> Node | None:
    """A maximum over windows that do not overlap, behind a node that nothing else reads."""
    readers = b.readers(node.name)
    if len(readers) != 1 or node.name in b.kept or node.output.real:
        return None
    op = readers[0].op
    if not isinstance(op, ops.MaxPool) or op.stride != op.kernel or any(op.padding) or op.ceil_mode:
        return None
    return readers[0] if set(op.dilation) == {1} else None


def _linear(b: CBuilder, node: Node, x: View, sums: Sums, out: View) -> tuple[View, _Shape]:
    """Rows of numbers by rows of weights; the axes before them are pixels."""
    lead = len(x.shape) - 1
    loop = collapsed(x.shape[:-1], [out.strides[:lead], x.strides[:lead]]) if lead else None
    if loop is not None and len(loop.shape) > 2:
        x = _packed(b, node, x)
        loop = collapsed(x.shape[:-1], [out.strides[:lead], x.strides[:lead]])
    sizes = (1, *loop.shape)[-2:] if loop is not None else (1, 1)
    of_out, of_x = ((0, *loop.strides[0])[-2:], (0, *loop.strides[1])[-2:]) if loop is not None else ((0, 0), (0, 0))
    strides = ((*of_x, x.strides[-1]), (*of_out, out.strides[-1]))
    numbers = (*sizes, *sizes, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, sums.weight.shape[1])
    return x, _Shape(strides, numbers, sums.weight, sums.negative, 1, len(sums.weight))


def _packed(b: CBuilder, node: Node, x: View) -> View:
    out = b.room(node.inputs[0], x.type, x.shape, range(len(x.shape)), x.low, x.high)
    pointwise(b, x, out=out)
    return out


def _conv(b: CBuilder, node: Node, x: View, sums: Sums, out: View) -> tuple[View, _Shape]:
    """Sizes and strides of a convolution; a transposed one reads an input that is spread out."""
    rank = len(x.shape) - 2
    if rank not in (1, 2) or x.shape[0] != 1:
        raise UnsupportedError("a convolution over more than two axes", given=x.shape, where=node.name)
    stride, dilation, padding = sums.stride, sums.dilation, sums.padding
    weight, negative, up = sums.weight, sums.negative, (1,) * rank
    kernel = weight.shape[2:]
    if sums.kind == "conv_transpose":
        weight, negative = _turned(weight, sums.groups), None if negative is None else _turned(negative, sums.groups)
        padding = tuple(d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True))
        up, stride = stride, (1,) * rank
    if x.border is not None:
        padding = tuple(p + before for p, before in zip(padding, x.border.before, strict=True))

    def two(values: Sequence[int], fill: int) -> tuple[int, ...]:
        return (fill, *values) if rank == 1 else tuple(values)

    sizes = (*two(x.shape[2:], 1), *two(out.shape[2:], 1), *two(kernel, 1), *two(stride, 1))
    numbers = (*sizes, *two(dilation, 1), *two(padding, 0), *two(up, 1))
    strides = (
        (*two(x.strides[2:], 0), x.strides[1]),
        (*two(out.strides[2:], 0), out.strides[1]),
    )
    each = weight.shape[1]
    outputs = len(weight) // sums.groups
    if each == 1 and outputs == 1 and sums.groups > 1:
        flat = [None if w is None else np.ascontiguousarray(w.reshape(len(w), -1).T) for w in (weight, negative)]
        return x, _Shape(strides, (*numbers, 1), flat[0], flat[1], sums.groups, 0)
    moved = [None if w is None else np.ascontiguousarray(np.moveaxis(w, 1, -1)) for w in (weight, negative)]
    return x, _Shape(strides, (*numbers, each), moved[0], moved[1], sums.groups, outputs)


def _turned(weight: Any, groups: int) -> Any:
    """The weights of the plain convolution that a transposed one is on an input that is spread out."""
    inputs, outputs = weight.shape[:2]
    grouped = weight.reshape(groups, inputs // groups, outputs, *weight.shape[2:]).swapaxes(1, 2)
    turned = grouped.reshape(groups * outputs, inputs // groups, *weight.shape[2:])
    return np.flip(turned, tuple(range(2, turned.ndim)))


def _extras(shape: _Shape) -> Any:
    """Where the weights of the two passes are not opposite: output, place in the row, sum of both."""
    dtype = np.dtype([("out", "u2"), ("at", "u2"), ("by", "i4")])
    if shape.negative is None:
        return np.zeros(0, dtype)
    both = shape.weight + shape.negative
    if shape.depthwise:
        taps, channels = np.nonzero(both)
        outs, places, by = channels, taps * both.shape[1] + channels, both[taps, channels]
    else:
        flat = both.reshape(len(both), -1)
        outs, places = np.nonzero(flat)
        by = flat[outs, places]
    found = np.zeros(len(outs), dtype)
    found["out"], found["at"], found["by"] = outs, places, by
    return found

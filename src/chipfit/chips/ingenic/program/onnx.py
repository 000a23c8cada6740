"""The operations of Ingenic programs in ONNX, in the float32 order of `chipfit.chips.ingenic.program.ops`.

Sums are exact integers. What follows them rounds once an operation, so every operation is a node of its own, and no two
may be merged: onnxruntime multiplies a Mul behind a Conv into its weights, and one behind a MatMul into its product. A
sum therefore passes through an integer type, which changes no sum. It also leaves no negative zero, which codes do not
have and whose sign real numbers would keep.

Source: spec/ingenic.md, sections 1.1 to 1.7 and 5; the ONNX operator specification, opset 21.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TypeGuard

import numpy as np
from torch import Tensor

from chipfit.chips.ingenic.program import ops
from chipfit.chips.ingenic.program.float_sums import positions_sum
from chipfit.chips.ingenic.program.reference import BELOW
from chipfit.errors import UnsupportedError
from chipfit.export.onnx.arithmetic import (
    Edge,
    clip,
    codes_constant,
    dequantise_linear,
    fits_quantise_linear,
    held,
    integral,
    quantise_linear,
    rank,
    scalar,
)
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program.dialect import Context
from chipfit.program.grid import Grid
from chipfit.program.types import ValueType

Tensors = Mapping[str, Tensor]


# --- codes and sums


def pixel_codes(b: GraphBuilder, op: ops.PixelCodes, args: list[Edge], context: Context) -> Edge:
    """`PixelCodes`."""
    x, bound = args[0], max(abs(op.lo), abs(op.hi))
    if fits_quantise_linear(op.lo, op.hi):
        # An input lies within 0.002 of its code: its quotient by float32(1 / n) finds it as its product with n does.
        return Edge(quantise_linear(b, x.name, 1 / op.n, op.lo, op.hi), bound)
    rounded = b.add("Round", b.add("Mul", x.name, scalar(b, op.n)))
    return Edge(clip(b, integral(b, rounded), op.lo, op.hi), bound)


# --- real numbers


def real_value(b: GraphBuilder, x: Edge, grid: Grid | None) -> str:
    """The float32 numbers that codes stand for; sums and real numbers as they are."""
    real = held(b, x, False)
    if grid is None:
        return real
    if grid.kind == "plain":
        return divided(b, real, grid.n)
    n = scalar(b, grid.n)
    return b.add("Sub", b.add("Div", b.add("Add", real, n), n), scalar(b, 1.0))


def divided(b: GraphBuilder, v: str, by: float) -> str:
    """The float32 quotient by a number; by 1 it is what it was."""
    return v if by == 1.0 else b.add("Div", v, scalar(b, by))


def raised(b: GraphBuilder, v: str) -> str:
    """`v + 0`, which makes -0 to +0: onnxruntime leaves out an Add of 0, and with it that."""
    zero = scalar(b, 0.0)
    return b.add("Where", b.add("Equal", v, zero), zero, v)


def finish(b: GraphBuilder, op: ops.Finish, args: list[Edge], context: Context) -> Edge:
    """`Finish`."""
    x, source, tensors = args[0], context.sources[0], context.tensors

    def each(name: str) -> str:
        return _per_channel(b, name, op.axis, source, tensors)

    def plus(v: str, name: str) -> str:
        return raised(b, v) if not tensors[name].any() else b.add("Add", v, each(name))

    if op == ops.Finish(op.grid, axis=op.axis) and _is_product(op.grid) and fits_quantise_linear(source.lo, source.hi):
        return Edge(dequantise_linear(b, x.name, 1 / op.grid.n, source.lo, source.hi), 0)
    v = real_value(b, x, op.grid)
    if op.affine is not None:
        v = b.add("Mul", v, each(op.affine.scale_tensor))
        if op.affine.bias_tensor is not None:
            v = plus(v, op.affine.bias_tensor)
    if op.norm is not None:
        v = b.add("Sub", v, each(op.norm.mean_tensor))
        v = b.add("Mul", v, each(op.norm.gain_tensor))
        v = plus(v, op.norm.shift_tensor)
    v = _activated(b, v, op.activation, op.axis, source, tensors)
    return Edge(v, 0) if op.requantise is None else requantised(b, v, op.requantise)


def combine(b: GraphBuilder, op: ops.Combine, args: list[Edge], context: Context) -> Edge:
    """`Combine`."""
    kind = "Add" if op.kind == "add" else "Mul"
    v = b.add(kind, real_value(b, args[0], op.left), real_value(b, args[1], op.right))
    v = _activated(b, v, op.activation, 1, context.sources[0], context.tensors)
    return Edge(v, 0) if op.requantise is None else requantised(b, v, op.requantise)


def _is_product(grid: Grid | None) -> TypeGuard[Grid]:
    """Whether the number that a code stands for is its product with float32(1 / n), as DequantizeLinear has it."""
    return grid is not None and grid.kind == "plain" and math.frexp(grid.n)[0] == 0.5


def _per_channel(b: GraphBuilder, name: str, axis: int, source: ValueType, tensors: Tensors) -> str:
    """A float32 tensor of the program, one value a channel or one in all, so that it broadcasts over an edge."""
    values = tensors[name].numpy()
    if axis != -1 and values.size > 1:
        values = values.reshape(-1, *[1] * (rank(b, source) - 2))
    label = f"float32/{name}"
    return b.constant(values, "" if label in b.constants else label)


def _activated(b: GraphBuilder, v: str, op: ops.Activation, axis: int, source: ValueType, tensors: Tensors) -> str:
    if op.kind == "none":
        return v
    if op.kind == "relu":
        return b.add("Relu", v)
    if op.kind == "relu6":
        return clip(b, v, 0.0, 6.0)
    if op.kind == "leaky":
        scaled = b.add("Mul", v, _per_channel(b, op.slope_tensor or "", axis, source, tensors))
        return b.add("Where", b.add("Greater", v, scalar(b, 0.0)), v, scaled)
    moved = b.add("Add", v, scalar(b, op.offset)) if op.offset else raised(b, v)
    if op.kind == "shift":
        return moved
    gate = divided(b, clip(b, moved, 0.0, op.top), op.top)
    return gate if op.kind == "hsigmoid" else b.add("Mul", v, gate)


# --- real numbers to codes


def rounded_magnitude(b: GraphBuilder, v: str) -> str:
    """Round numbers that are not negative to nearest, from `k + 0.5` to before `float32(k + 0.501)` to the even one.

    Round gives ties to the even neighbour. In the band above one, where it may go up, half a code less is a tie again.
    """
    code = b.add("Round", v)
    in_band = b.add("Less", v, b.add("Add", code, scalar(b, BELOW)))
    half = b.add("Where", in_band, scalar(b, 0.5), scalar(b, 0.0))
    return b.add("Round", b.add("Sub", code, half))


def requantised(b: GraphBuilder, v: str, op: ops.Requantise) -> Edge:
    """Codes of real numbers; see `Requantise`."""
    n = scalar(b, op.n)
    if op.divisor is not None:
        v = divided(b, v, op.divisor)
    if op.kind == "unsigned":
        scaled = b.add("Mul", divided(b, clip(b, v, 0.0, op.clip), op.clip), n)
        return Edge(integral(b, rounded_magnitude(b, scaled)), op.n)
    clipped = clip(b, v, -op.clip, op.clip)
    if op.kind == "signed":
        scaled = b.add("Mul", divided(b, clipped, op.clip), n)
        code = b.add("Mul", rounded_magnitude(b, b.add("Abs", scaled)), b.add("Sign", scaled))
        return Edge(clip(b, integral(b, code), -op.n, op.n - 1), op.n)
    lifted = b.add("Add", clipped, scalar(b, op.clip))
    scaled = b.add("Mul", divided(b, lifted, 2 * op.clip), n)  # twice a number rounds as the number does
    return Edge(b.add("Sub", b.add("Mul", rounded_magnitude(b, scaled), scalar(b, 2.0)), n), op.n)


def average_codes(b: GraphBuilder, op: ops.AverageCodes, args: list[Edge], context: Context) -> Edge:
    """`AverageCodes`."""
    left, right = (
        b.add("Round", b.add("Mul", real_value(b, edge, grid), scalar(b, op.n)))
        for edge, grid in zip(args, (op.left, op.right), strict=True)
    )
    # both lie within [-1, 1], so their codes do within [-n, n]
    mean = b.add("Round", b.add("Mul", b.add("Add", left, right), scalar(b, 0.5)))
    return Edge(integral(b, mean), max(op.n, 1))


def float_mean(b: GraphBuilder, op: ops.FloatMean, args: list[Edge], context: Context) -> Edge:
    """`FloatMean`: sums of slices, a node an addition; the pooling nodes of a runtime add in an order of their own."""
    return Edge(_mean(b, op, args[0], context.sources[0]), 0)


def _mean(b: GraphBuilder, op: ops.FloatMean, x: Edge, source: ValueType) -> str:
    v = real_value(b, x, op.grid)
    if source.shape is None:
        raise UnsupportedError("a mean needs to know the input's size", where=b.scope)
    channels, height, width = source.shape

    def plus(left: str, right: str) -> str:
        return b.add("Add", left, right)

    if op.kernel:
        places = [(row, column) for row in range(op.kernel[0]) for column in range(op.kernel[1])]
        total = reduce(plus, (_window_numbers(b, v, op, place, (height, width)) for place in places))
        return divided(b, total, len(places))
    flat = b.add("Reshape", v, _positions(b, -1, channels, height * width))
    total = positions_sum(height * width, flat, lambda v, start, stop: _sliced(b, v, (start,), (stop,), (2,)), plus)
    shape = (-1, channels, 1, 1) if op.keepdim else (-1, channels)
    return divided(b, b.add("Reshape", total, _positions(b, *shape)), height * width)


def _window_numbers(b: GraphBuilder, v: str, op: ops.FloatMean, place: tuple[int, int], size: tuple[int, int]) -> str:
    """The numbers at one place of each window."""
    stops = [
        at + (length - kernel) // stride * stride + 1
        for at, length, kernel, stride in zip(place, size, op.kernel, op.stride, strict=True)
    ]
    return _sliced(b, v, place, stops, (2, 3), op.stride)


def _sliced(
    b: GraphBuilder,
    v: str,
    starts: Sequence[int],
    stops: Sequence[int],
    axes: Sequence[int],
    steps: Sequence[int] | None = None,
) -> str:
    given = (starts, stops, axes, steps or (1,) * len(axes))
    return b.add("Slice", v, *(_positions(b, *numbers) for numbers in given))


# --- moving


def maximum(b: GraphBuilder, op: ops.Maximum, args: list[Edge], context: Context) -> Edge:
    """`Maximum`."""
    wide = args[0].wide or args[1].wide
    name = b.add("Max", held(b, args[0], wide), held(b, args[1], wide))
    return Edge(name, max(edge.largest for edge in args), wide)


def enlarge(b: GraphBuilder, op: ops.Enlarge, args: list[Edge], context: Context) -> Edge:
    """`Enlarge`."""
    x, source, (down, across) = args[0], context.sources[0], op.kernel
    if op.mode == "nearest":
        scales = b.constant(np.array([1, 1, down, across], dtype=np.float32))
        mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return Edge(b.add("Resize", x.name, "", scales, **mode), x.largest, x.wide)
    if source.shape is None:
        raise UnsupportedError("enlarging needs to know the input's size", where=b.scope)
    channels, height, width = source.shape
    patches = b.add("Unsqueeze", x.name, _positions(b, 3, 5))
    pads = [0, 0, 0, 0, 0, 0, 0, 0, 0, down - 1, 0, across - 1]
    filled = b.add("Pad", patches, _positions(b, *pads), scalar(b, op.value, x.wide))
    shape = _positions(b, -1, channels, height * down, width * across)
    return Edge(b.add("Reshape", filled, shape), max(x.largest, abs(op.value)), x.wide)


def _positions(b: GraphBuilder, *values: int) -> str:
    return b.constant(np.array(values, dtype=np.int64))


def table_rows(b: GraphBuilder, op: ops.TableRows, args: list[Edge], context: Context) -> Edge:
    """`TableRows`."""
    from onnx import TensorProto

    index, tensors = args[0], context.tensors
    label = f"codes/{op.table_tensor}"
    table = codes_constant(b, tensors[op.table_tensor].numpy(), "" if label in b.constants else label)
    rows = b.add("Cast", index.name, to=TensorProto.INT64)
    return Edge(b.add("Gather", table.name, rows, axis=0), table.largest, table.wide)

"""The core operations in ONNX, and their table; those that move, select or pool codes are in `moves.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.export.onnx import moves
from chipfit.export.onnx.arithmetic import (
    Edge,
    added,
    clip,
    codes_constant,
    dequantise_linear,
    fits_quantise_linear,
    gathered,
    held,
    integral,
    multiplied,
    needs_wide,
    numbers_constant,
    quantise_linear,
    rank,
    real_dtype,
    requantise,
    scalar,
    summed,
)
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.export.onnx.linear import linear_map, shaped_bias
from chipfit.program.core import ops
from chipfit.program.core.base import Op
from chipfit.program.dialect import Context
from chipfit.program.types import ValueType

_DIVIDEND_LIMIT = 1 << 52  # below, a float64 quotient of integers is a tie only where the exact one is
_RADICAND_LIMIT = 1 << 50


def quotient(b: GraphBuilder, dividend: Edge, divisor: str) -> Edge:
    """`half_even(dividend / divisor)` in float64; the divisor is a float64 edge of integers above 0."""
    _check_limit(b, dividend.largest, _DIVIDEND_LIMIT)
    return Edge(b.add("Round", b.add("Div", held(b, dividend, True), divisor)), dividend.largest, True)


def root(b: GraphBuilder, value: Edge, log2_factor: int) -> Edge:
    """`floor(sqrt(value * 2^log2_factor))` in float64."""
    radicand = multiplied(b, value, Edge(scalar(b, 2.0**log2_factor), 1 << log2_factor))
    _check_limit(b, radicand.largest, _RADICAND_LIMIT)
    found = b.add("Floor", b.add("Sqrt", held(b, radicand, True)))
    return Edge(found, math.isqrt(radicand.largest), True)


def _check_limit(b: GraphBuilder, largest: int, limit: int) -> None:
    if largest > limit:
        raise UnsupportedError(
            "a quotient or root of codes this large is not exact in float64",
            given=largest,
            allowed=f"up to {limit}",
            where=b.scope,
        )


# --- numbers in and out


def quantise(b: GraphBuilder, op: ops.Quantise, args: list[Edge], context: Context) -> Edge:
    """`Quantise`."""
    x, bound, output = args[0].name, max(abs(op.lo), abs(op.hi)), f"{context.name}/out"
    if not op.zero and fits_quantise_linear(op.lo, op.hi):
        return Edge(quantise_linear(b, x, 1 / op.scale, op.lo, op.hi, output), bound)
    # QuantizeLinear adds the zero point after it rounds, the program before.
    v = b.add("Round", b.add("Add", b.add("Mul", x, scalar(b, op.scale)), scalar(b, op.zero)))
    return Edge(b.add("Clip", v, scalar(b, op.lo), scalar(b, op.hi), output=output), bound, needs_wide(bound))


def dequantise(b: GraphBuilder, op: ops.Dequantise, args: list[Edge], context: Context) -> Edge:
    """`Dequantise`, under the program's output name."""
    from onnx import TensorProto

    codes, kind, name = args[0], context.sources[0], context.name
    shifted = b.add("Sub", codes.name, scalar(b, kind.zero, codes.wide)) if kind.zero else codes.name
    lowest, highest = (kind.lo - kind.zero, kind.hi - kind.zero)
    if not fits_quantise_linear(lowest, highest):
        exact = b.add("Mul", shifted, scalar(b, 1 / kind.scale, codes.wide))
        return Edge(b.add("Cast", exact, output=name, to=TensorProto.FLOAT), 0)
    return Edge(dequantise_linear(b, shifted, 1 / kind.scale, lowest, highest, name), 0)


# --- codes to codes


def rescale(b: GraphBuilder, op: ops.Rescale, args: list[Edge], context: Context) -> Edge:
    """`Rescale`."""
    return requantise(b, args[0], -op.shift, op.lo, op.hi, offset=op.zero)


def accumulate(b: GraphBuilder, op: ops.Accumulate, args: list[Edge], context: Context) -> Edge:
    """`Accumulate`."""
    axes = len(op.stride)
    geometry = ops.Geometry(op.kind, op.stride, (0,) * axes, op.dilation, (), op.groups)
    total = linear_map(b, geometry, args[0], context.tensors[op.weight_tensor], op.weight_tensor)
    if op.bias_tensor is not None:
        total = added(b, total, shaped_bias(b, geometry, context.tensors[op.bias_tensor]))
    return Edge(integral(b, total.name, total.wide), total.largest, total.wide)


def add(b: GraphBuilder, op: ops.Add, args: list[Edge], context: Context) -> Edge:
    """`Add`."""
    return requantise(b, added(b, args[0], args[1]), -op.shift, op.lo, op.hi)


def mul(b: GraphBuilder, op: ops.Mul, args: list[Edge], context: Context) -> Edge:
    """`Mul`."""
    return requantise(b, multiplied(b, args[0], args[1]), -op.shift, op.lo, op.hi)


def constant(b: GraphBuilder, op: ops.Constant, args: list[Edge], context: Context) -> Edge:
    """`Constant`."""
    return codes_constant(b, context.tensors[op.codes_tensor].numpy(), f"codes/{op.codes_tensor}")


def matmul(b: GraphBuilder, op: ops.MatMul, args: list[Edge], context: Context) -> Edge:
    """`MatMul`; where the inner size is not known it is computed in float64."""
    first = context.sources[0]
    largest = args[0].largest * args[1].largest * (first.shape[-1] if first.shape else 1 << 16)
    wide = needs_wide(largest, args[0].largest, args[1].largest)
    product = b.add("MatMul", held(b, args[0], wide), held(b, args[1], wide))
    return requantise(b, Edge(product, largest, wide), -op.shift, op.lo, op.hi)


def multiply_add(b: GraphBuilder, op: ops.MultiplyAdd, args: list[Edge], context: Context) -> Edge:
    """`MultiplyAdd`."""
    weight = _per_channel(b, context.tensors[op.weight_tensor], context.sources[0])
    bias = _per_channel(b, context.tensors[op.bias_tensor], context.sources[0])
    return requantise(b, added(b, multiplied(b, args[0], weight), bias), -op.shift, op.lo, op.hi)


def _per_channel(b: GraphBuilder, values: Tensor, source: ValueType) -> Edge:
    """One number for each index of axis 1, so that it broadcasts over an edge."""
    return numbers_constant(b, values.numpy().reshape(-1, *[1] * (rank(b, source) - 2)))


def look_up(b: GraphBuilder, op: ops.LookUp, args: list[Edge], context: Context) -> Edge:
    """`LookUp`, of one row or one for each index of axis 1."""
    x, table = args[0], context.tensors[op.table_tensor].numpy()
    if len(table) == 1:
        return gathered(b, x, table, op.first)
    # All rows stand one after the other; each channel's codes are moved to its own.
    starts = np.arange(len(table)).reshape(-1, *[1] * (rank(b, context.sources[0]) - 2)) * table.shape[1]
    wide = needs_wide(x.largest + table.size)
    offset = b.constant((starts - op.first).astype(real_dtype(wide)))
    moved = b.add("Add", held(b, x, wide), offset)
    return gathered(b, Edge(moved, x.largest + table.size, wide), table, 0)


def mean_code(b: GraphBuilder, x: Edge, dims: tuple[int, ...], keepdim: bool, lo: int, hi: int) -> Edge:
    """`half_even(clip(sum) / n)`, n counted from the shape at run time."""
    from onnx import TensorProto

    total = clip(b, summed(b, x, dims, keepdim), lo, hi, wide=True)
    sizes = b.add("Gather", b.add("Shape", x.name), b.constant(np.array(dims, dtype=np.int64)), axis=0)
    count = b.add("Cast", b.add("ReduceProd", sizes, keepdims=0), to=TensorProto.DOUBLE)
    # A mean is no larger than its largest term, and the sum no larger than what float64 holds: see the clip.
    bound = min(max(abs(lo), abs(hi)), _DIVIDEND_LIMIT)
    found = quotient(b, Edge(total, bound, True), count)
    return Edge(found.name, x.largest, True)


def mean(b: GraphBuilder, op: ops.Mean, args: list[Edge], context: Context) -> Edge:
    """`Mean`."""
    found = mean_code(b, args[0], op.dims, op.keepdim, op.sum_lo, op.sum_hi)
    return Edge(held(b, found, needs_wide(found.largest)), found.largest, needs_wide(found.largest))


CORE: dict[type[Op], Callable[[GraphBuilder, Any, list[Edge], Context], Edge]] = {
    ops.Quantise: quantise,
    ops.Dequantise: dequantise,
    ops.Rescale: rescale,
    ops.Accumulate: accumulate,
    ops.Relu: moves.relu,
    ops.Clamp: moves.clamp,
    ops.LookUp: look_up,
    ops.Constant: constant,
    ops.Add: add,
    ops.Mul: mul,
    ops.MatMul: matmul,
    ops.MultiplyAdd: multiply_add,
    ops.Mean: mean,
    **moves.MOVES,
}
"""What adds each core operation to a graph; a vendor's own stand in its dialect's table."""

"""Operations of the digital unit of an integer program in ONNX: exact quotients, roots, tables."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.export.onnx.arithmetic import Edge, added, clip, held, multiplied, needs_wide, requantise, scalar
from chipfit.export.onnx.array import gathered
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program import ops
from chipfit.program.types import ValueType

Tensors = Mapping[str, Tensor]
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


def emit_elementwise(b: GraphBuilder, op: ops.Add | ops.Mul | ops.Divide | ops.Hypot, args: list[Edge]) -> Edge:
    """Add, Mul, Divide and Hypot."""
    first, second = args
    if isinstance(op, ops.Divide):
        return _divide(b, op, first, second)
    if isinstance(op, ops.Hypot):
        total = added(b, multiplied(b, first, first), multiplied(b, second, second))
        return requantise(b, root(b, total, op.root_shift), -op.shift, op.lo, op.hi)
    total = added(b, first, second) if isinstance(op, ops.Add) else multiplied(b, first, second)
    return requantise(b, total, -op.shift, op.lo, op.hi)


def _divide(b: GraphBuilder, op: ops.Divide, first: Edge, second: Edge) -> Edge:
    zero, one = scalar(b, 0.0, True), scalar(b, 1.0, True)
    a, d = held(b, first, True), held(b, second, True)
    by_zero = b.add("Equal", d, zero)
    # The quotient of magnitudes and signs: the tie goes to the even neighbour either way.
    safe = b.add("Where", by_zero, one, b.add("Abs", d))
    signed = Edge(b.add("Mul", a, b.add("Sign", d)), first.largest, True)
    result = requantise(b, quotient(b, signed, safe), -op.shift, op.lo, op.hi)
    highest, lowest = scalar(b, op.hi, result.wide), scalar(b, op.lo, result.wide)
    below = b.add("Where", b.add("Less", a, zero), lowest, scalar(b, 0.0, result.wide))
    limit = b.add("Where", b.add("Greater", a, zero), highest, below)
    return Edge(b.add("Where", by_zero, limit, result.name), result.largest, result.wide)


def emit_matmul(b: GraphBuilder, op: ops.MatMul, args: list[Edge], first: ValueType) -> Edge:
    """Matrix product of two edges; where the inner size is not known it is computed in float64."""
    largest = args[0].largest * args[1].largest * (first.shape[-1] if first.shape else 1 << 16)
    wide = needs_wide(largest, args[0].largest, args[1].largest)
    product = b.add("MatMul", held(b, args[0], wide), held(b, args[1], wide))
    return requantise(b, Edge(product, largest, wide), -op.shift, op.lo, op.hi)


def emit_multiply_add(b: GraphBuilder, op: ops.MultiplyAdd, x: Edge, source: ValueType, tensors: Tensors) -> Edge:
    """Batch norm."""
    weight = _per_channel(b, tensors[op.weight_tensor], source)
    bias = _per_channel(b, tensors[op.bias_tensor], source)
    return requantise(b, added(b, multiplied(b, x, weight), bias), -op.shift, op.lo, op.hi)


def _per_channel(b: GraphBuilder, values: Tensor, source: ValueType) -> Edge:
    """One number for each index of axis 1, so that it broadcasts over an edge."""
    array = values.numpy().reshape(-1, *[1] * (rank(b, source) - 2))
    largest = int(np.abs(array).max())
    wide = needs_wide(largest)
    return Edge(b.constant(array.astype(np.float64 if wide else np.float32)), largest, wide)


def rank(b: GraphBuilder, source: ValueType) -> int:
    """Number of axes of an edge, the batch included.

    Raises:
        UnsupportedError: it is not known.
    """
    if source.shape is None:
        raise UnsupportedError(
            "this operation needs to know how many axes its input has",
            where=b.scope,
            hint="Let the batch be the first axis of the network's input.",
        )
    return len(source.shape) + 1


def emit_look_up(b: GraphBuilder, op: ops.LookUp, x: Edge, source: ValueType, tensors: Tensors) -> Edge:
    """A table of output codes, of one row or one for each index of axis 1."""
    table = tensors[op.table_tensor].numpy()
    if len(table) == 1:
        return gathered(b, x, table, op.first)
    # All rows stand one after the other; each channel's codes are moved to its own.
    starts = np.arange(len(table)).reshape(-1, *[1] * (rank(b, source) - 2)) * table.shape[1]
    wide = needs_wide(x.largest + table.size)
    offset = b.constant((starts - op.first).astype(np.float64 if wide else np.float32))
    moved = b.add("Add", held(b, x, wide), offset)
    return gathered(b, Edge(moved, x.largest + table.size, wide), table, 0)


def summed(b: GraphBuilder, x: Edge, dims: tuple[int, ...], keepdim: bool) -> str:
    """Sum over axes in float64."""
    axes = b.constant(np.array(dims, dtype=np.int64))
    return b.add("ReduceSum", held(b, x, True), axes, keepdims=int(keepdim))


def _mean_code(b: GraphBuilder, x: Edge, dims: tuple[int, ...], keepdim: bool, lo: int, hi: int) -> Edge:
    """`half_even(clip(sum) / n)`, n counted from the shape at run time."""
    from onnx import TensorProto

    total = clip(b, summed(b, x, dims, keepdim), lo, hi, wide=True)
    sizes = b.add("Gather", b.add("Shape", x.name), b.constant(np.array(dims, dtype=np.int64)), axis=0)
    count = b.add("Cast", b.add("ReduceProd", sizes, keepdims=0), to=TensorProto.DOUBLE)
    # A mean is no larger than its largest term, and the sum no larger than what float64 holds: see the clip.
    bound = min(max(abs(lo), abs(hi)), _DIVIDEND_LIMIT)
    found = quotient(b, Edge(total, bound, True), count)
    return Edge(found.name, x.largest, True)


def emit_mean(b: GraphBuilder, op: ops.Mean, x: Edge) -> Edge:
    """Mean over axes; the scale stays."""
    mean = _mean_code(b, x, op.dims, op.keepdim, op.sum_lo, op.sum_hi)
    return Edge(held(b, mean, needs_wide(mean.largest)), mean.largest, needs_wide(mean.largest))


def emit_layer_norm(b: GraphBuilder, op: ops.LayerNorm, x: Edge) -> Edge:
    """Layer norm over axes 1 and 3."""
    deviation = x
    if not op.simple:
        mean = _mean_code(b, x, (1, 3), True, op.sum_lo, op.sum_hi)
        deviation = added(b, Edge(held(b, x, True), x.largest, True), mean, "Sub")
    wide = Edge(held(b, deviation, True), deviation.largest, True)
    square = Edge(b.add("Mul", wide.name, wide.name), deviation.largest**2, True)
    variance = _mean_code(b, square, (1, 3), True, op.sum_lo, op.sum_hi)
    deviation_root = root(b, variance, op.root_shift)
    power = op.root_shift // 2 + op.log2_scale
    left, right = max(power, 0), max(-power, 0)
    dividend = Edge(b.add("Mul", wide.name, scalar(b, 2.0**left, True)), wide.largest << left, True)
    is_zero = b.add("Equal", deviation_root.name, scalar(b, 0.0, True))
    safe = b.add("Where", is_zero, scalar(b, 1.0, True), deviation_root.name)
    divisor = b.add("Mul", safe, scalar(b, 2.0**right, True))
    clipped = clip(b, quotient(b, dividend, divisor).name, op.lo, op.hi, wide=True)
    result = Edge(b.add("Where", is_zero, scalar(b, 0.0, True), clipped), max(abs(op.lo), abs(op.hi)), True)
    return Edge(held(b, result, False), result.largest, False)

"""Operations that move, select or pool codes, in ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.export.onnx.arithmetic import Edge, clip, held, integral, needs_wide, scalar
from chipfit.export.onnx.digital import summed
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program import ops
from chipfit.program.types import ValueType

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def emit_simple(b: GraphBuilder, op: ops.Op, x: Edge) -> Edge | None:
    """An operation of one input that keeps its codes; None where `op` is none of them."""
    if isinstance(op, ops.Relu):
        name = b.add("Relu", x.name)
    elif isinstance(op, ops.Max):
        name = b.add("ReduceMax", x.name, _positions(b, *op.dims), keepdims=int(op.keepdim))
    elif isinstance(op, ops.Clamp):
        name = clip(b, x.name, op.lo, op.hi, x.wide)
    elif isinstance(op, ops.Reshape):
        name = b.add("Reshape", x.name, _positions(b, *op.shape))
    elif isinstance(op, ops.Permute):
        name = b.add("Transpose", x.name, perm=list(op.dims))
    elif isinstance(op, ops.Slice):
        stop = np.iinfo(np.int64).max if op.stop is None else op.stop
        bounds = [_positions(b, value) for value in (op.start, stop, op.dim, op.step)]
        name = b.add("Slice", x.name, *bounds)
    elif isinstance(op, ops.Select):
        name = b.add("Gather", x.name, b.constant(np.array(op.index, dtype=np.int64)), axis=op.dim)
    elif isinstance(op, ops.Flip):
        axes = len(op.dims)
        bounds = [_positions(b, *[value] * axes) for value in (-1, np.iinfo(np.int64).min)]
        name = b.add("Slice", x.name, *bounds, _positions(b, *op.dims), _positions(b, *[-1] * axes))
    elif isinstance(op, ops.Pad):
        axes = len(op.pads) // 2
        begins, ends = op.pads[0::2], op.pads[1::2]
        inputs = [x.name, _positions(b, *begins, *ends), scalar(b, op.value, x.wide)]
        name = b.add("Pad", *inputs, _positions(b, *range(-1, -axes - 1, -1)), mode=_PAD_MODES[op.mode])
        return Edge(name, max(x.largest, abs(op.value)), x.wide)
    else:
        return None
    return Edge(name, x.largest, x.wide)


def _positions(b: GraphBuilder, *values: int) -> str:
    return b.constant(np.array(values, dtype=np.int64))


def emit_cat(b: GraphBuilder, op: ops.Cat, args: list[Edge]) -> Edge:
    """Concatenation."""
    wide = any(edge.wide for edge in args)
    name = b.add("Concat", *(held(b, edge, wide) for edge in args), axis=op.dim)
    return Edge(name, max(edge.largest for edge in args), wide)


def emit_sum(b: GraphBuilder, op: ops.Sum, x: Edge, bound: int) -> Edge:
    """Sum over axes; `bound` is what its register holds."""
    total = Edge(summed(b, x, op.dims, op.keepdim), bound, True)
    return Edge(held(b, total, needs_wide(bound)), bound, needs_wide(bound))


def emit_sum_pool(b: GraphBuilder, op: ops.SumPool, x: Edge, source: ValueType) -> Edge:
    """Sum of each window: the average of a power of two of codes, exactly undone; else a convolution with ones."""
    count = int(np.prod(op.kernel))
    largest = x.largest * count
    if needs_wide(largest):
        raise UnsupportedError("a window's sum may pass 2^24", given=largest, where=b.scope)
    options: dict[str, Any] = {"kernel_shape": list(op.kernel), "strides": list(op.stride)}
    if count & (count - 1) == 0:
        return Edge(b.add("Mul", b.add("AveragePool", x.name, **options), scalar(b, count)), largest)
    if source.shape is None:
        raise UnsupportedError("a sum over windows needs to know the number of channels", where=b.scope)
    ones = b.constant(np.ones((source.shape[0], 1, *op.kernel), dtype=np.float32))
    return Edge(integral(b, b.add("Conv", x.name, ones, group=source.shape[0], **options)), largest)


def emit_max_pool(b: GraphBuilder, op: ops.MaxPool, x: Edge, source: ValueType) -> Edge:
    """Largest code of each window; `ceil_mode` as padding at the end, since ONNX rounds sizes up by another rule."""
    ends = list(op.padding)
    if op.ceil_mode:
        if source.shape is None:
            raise UnsupportedError("ceil_mode needs to know the input's size", where=b.scope)
        sizes = source.shape[-len(op.kernel) :]
        ends = [_end_padding(op, axis, size) for axis, size in enumerate(sizes)]
    name = b.add(
        "MaxPool",
        x.name,
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=[*op.padding, *ends],
        dilations=list(op.dilation),
    )
    return Edge(name, x.largest, x.wide)


def _end_padding(op: ops.MaxPool, axis: int, size: int) -> int:
    """Padding after the last element for as many windows as torch makes with `ceil_mode`."""
    padding, stride = op.padding[axis], op.stride[axis]
    reach = op.dilation[axis] * (op.kernel[axis] - 1) + 1
    windows = -(-(size + 2 * padding - reach) // stride) + 1
    if (windows - 1) * stride >= size + padding:
        windows -= 1  # torch drops a window that would start beyond the input and its left padding
    return max((windows - 1) * stride + reach - size - padding, 0)

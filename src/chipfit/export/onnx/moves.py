"""Operations that move, select or pool codes, in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.export.onnx.arithmetic import Edge, clip, held, integral, needs_wide, scalar, summed
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program.core import ops
from chipfit.program.core.base import Op
from chipfit.program.dialect import Context

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _kept(x: Edge, name: str) -> Edge:
    """An edge of the same codes, or some of them."""
    return Edge(name, x.largest, x.wide)


def relu(b: GraphBuilder, op: ops.Relu, args: list[Edge], context: Context) -> Edge:
    """`Relu`."""
    return _kept(args[0], b.add("Relu", args[0].name))


def clamp(b: GraphBuilder, op: ops.Clamp, args: list[Edge], context: Context) -> Edge:
    """`Clamp`."""
    return _kept(args[0], clip(b, args[0].name, op.lo, op.hi, args[0].wide))


def amax(b: GraphBuilder, op: ops.Max, args: list[Edge], context: Context) -> Edge:
    """`Max`."""
    return _kept(args[0], b.add("ReduceMax", args[0].name, _positions(b, *op.dims), keepdims=int(op.keepdim)))


def reshape(b: GraphBuilder, op: ops.Reshape, args: list[Edge], context: Context) -> Edge:
    """`Reshape`."""
    return _kept(args[0], b.add("Reshape", args[0].name, _positions(b, *op.shape)))


def permute(b: GraphBuilder, op: ops.Permute, args: list[Edge], context: Context) -> Edge:
    """`Permute`."""
    return _kept(args[0], b.add("Transpose", args[0].name, perm=list(op.dims)))


def slice_(b: GraphBuilder, op: ops.Slice, args: list[Edge], context: Context) -> Edge:
    """`Slice`."""
    stop = np.iinfo(np.int64).max if op.stop is None else op.stop
    bounds = [_positions(b, value) for value in (op.start, stop, op.dim, op.step)]
    return _kept(args[0], b.add("Slice", args[0].name, *bounds))


def select(b: GraphBuilder, op: ops.Select, args: list[Edge], context: Context) -> Edge:
    """`Select`."""
    index = b.constant(np.array(op.index, dtype=np.int64))
    return _kept(args[0], b.add("Gather", args[0].name, index, axis=op.dim))


def flip(b: GraphBuilder, op: ops.Flip, args: list[Edge], context: Context) -> Edge:
    """`Flip`."""
    axes = len(op.dims)
    bounds = [_positions(b, *[value] * axes) for value in (-1, np.iinfo(np.int64).min)]
    steps = _positions(b, *[-1] * axes)
    return _kept(args[0], b.add("Slice", args[0].name, *bounds, _positions(b, *op.dims), steps))


def pad(b: GraphBuilder, op: ops.Pad, args: list[Edge], context: Context) -> Edge:
    """`Pad`."""
    x, axes = args[0], len(op.pads) // 2
    begins, ends = op.pads[0::2], op.pads[1::2]
    inputs = [x.name, _positions(b, *begins, *ends), scalar(b, op.value, x.wide)]
    name = b.add("Pad", *inputs, _positions(b, *range(-1, -axes - 1, -1)), mode=_PAD_MODES[op.mode])
    return Edge(name, max(x.largest, abs(op.value)), x.wide)


def _positions(b: GraphBuilder, *values: int) -> str:
    return b.constant(np.array(values, dtype=np.int64))


def cat(b: GraphBuilder, op: ops.Cat, args: list[Edge], context: Context) -> Edge:
    """`Cat`."""
    wide = any(edge.wide for edge in args)
    name = b.add("Concat", *(held(b, edge, wide) for edge in args), axis=op.dim)
    return Edge(name, max(edge.largest for edge in args), wide)


def sum_(b: GraphBuilder, op: ops.Sum, args: list[Edge], context: Context) -> Edge:
    """`Sum`; it is no larger than what its register holds."""
    bound = 0 if context.output is None else max(-context.output.lo, context.output.hi)
    total = Edge(summed(b, args[0], op.dims, op.keepdim), bound, True)
    return Edge(held(b, total, needs_wide(bound)), bound, needs_wide(bound))


def sum_pool(b: GraphBuilder, op: ops.SumPool, args: list[Edge], context: Context) -> Edge:
    """`SumPool`: the average of a power of two of codes, exactly undone; else a convolution with ones."""
    x, source, count = args[0], context.sources[0], int(np.prod(op.kernel))
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


def max_pool(b: GraphBuilder, op: ops.MaxPool, args: list[Edge], context: Context) -> Edge:
    """`MaxPool`; `ceil_mode` as padding at the end, since ONNX rounds sizes up by another rule."""
    x, source, ends = args[0], context.sources[0], list(op.padding)
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


MOVES: dict[type[Op], Callable[[GraphBuilder, Any, list[Edge], Context], Edge]] = {
    ops.MaxPool: max_pool,
    ops.SumPool: sum_pool,
    ops.Sum: sum_,
    ops.Max: amax,
    ops.Pad: pad,
    ops.Reshape: reshape,
    ops.Permute: permute,
    ops.Slice: slice_,
    ops.Select: select,
    ops.Flip: flip,
    ops.Cat: cat,
}
"""What adds each of them to a graph."""

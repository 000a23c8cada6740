"""The fast path of the operations that only Witmem programs have.

Array operations run as float32 matrix products and convolutions where the accumulator's bound says that they are exact,
else in float64; G is folded into their weights, which is exact because it is a power of two. A ReLU and a max pooling
that alone read an array operation are done before its rounding: rounding is monotone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.chips.witmem.program import ops
from chipfit.chips.witmem.program.ranges import array_bounds
from chipfit.chips.witmem.program.reference import Tensors, gru_states, linear_map
from chipfit.program.core.fast import extremes, max_pool
from chipfit.program.dialect import Context, Step, following
from chipfit.program.types import Node, Program


def fuse(node: Node, program: Program) -> tuple[Step, list[Node]] | None:
    """An array operation with the ReLU and the max pooling behind it."""
    if not isinstance(node.op, ops.Array):
        return None
    tail = following(node, program, ops.Relu, ops.MaxPool)
    return _array_step(node.op, tail[1:], program.tensors), tail


def array(op: ops.Array, context: Context) -> Step:
    """`Array` by itself."""
    return _array_step(op, [], context.tensors)


def gru(op: ops.Gru, context: Context) -> Step:
    """`Gru`: its array operations in floating point, the rest in int64."""
    halves = {id(half): _array_step(half, [], context.tensors) for half in (op.input, op.hidden)}

    def run_array(codes: Tensor, half: ops.Array, _: Any) -> Tensor:
        return halves[id(half)]([codes.to(torch.float32)]).to(torch.int64)

    return lambda args: gru_states(op, [x.to(torch.int64) for x in args], context.tensors, run_array).to(torch.float32)


def _exact_in_float32(op: ops.Array, tensors: Tensors) -> bool:
    """Whether float32 counts the sums: within the certified bound, or within one that knows the signs."""
    bounds = array_bounds(op, tensors)
    if bounds.exact_in_float32 or op.split is not None or op.negative_weight_tensor is not None:
        return bounds.exact_in_float32
    weight = tensors[op.weight_tensor]
    if op.geometry.kind == "conv_transpose":
        weight = weight.transpose(0, 1)
    sums = extremes(weight, *op.x_range).sum(2).abs() + tensors[op.bias_tensor].abs()
    return int(sums.max()) + bounds.rounding_room <= FLOAT32_EXACT


def _array_step(op: ops.Array, tail: list[Node], tensors: Tensors) -> Step:
    """An array operation, and the ReLU and max pooling behind it."""
    dtype = torch.float32 if _exact_in_float32(op, tensors) else torch.float64
    g = 2.0**-op.log2_g
    weight = tensors[op.weight_tensor].to(dtype) * g
    bias = tensors[op.bias_tensor].to(dtype) * g
    other: Tensor | None = None
    if op.negative_weight_tensor is not None:
        negative = tensors[op.negative_weight_tensor]
        if not torch.equal(negative, -tensors[op.weight_tensor]):  # else the two passes are one on signed codes
            other = negative.to(dtype) * g
    pools = [node.op for node in tail if isinstance(node.op, ops.MaxPool)]
    lo, hi = op.lo, op.hi
    if any(isinstance(node.op, ops.Relu) for node in tail):
        lo, hi = max(lo, 0), max(hi, 0)

    def accumulated(codes: Tensor, bias: Tensor) -> Tensor:
        if other is None:
            return linear_map(codes, weight, op.geometry, bias)
        total = linear_map(codes.clamp(min=0), weight, op.geometry, bias)
        return total.add_(linear_map(codes.neg().clamp_(min=0), other, op.geometry))

    def step(args: list[Tensor]) -> Tensor:
        v = accumulated(args[0].to(dtype), bias)
        for pool in pools:
            v = max_pool(v, pool)
        return _rounded(v, op.rounding, lo, hi).to(torch.float32)

    if op.split is None:
        return step
    split, digital_bias = op.split, tensors[op.split.digital_bias_tensor].to(dtype) * g

    def split_step(args: list[Tensor]) -> Tensor:
        codes = args[0].to(dtype)
        high = (codes / 256).trunc_().mul_(256)  # toward zero: each pass of 'pn' splits its own, positive codes
        analog = _rounded(accumulated(codes - high, bias), op.rounding, split.analog_lo, split.analog_hi)
        digital = accumulated(high, digital_bias).round_()
        v = analog.add_(digital).clamp_(op.lo, op.hi)
        for pool in pools:
            v = max_pool(v, pool)
        return v.clamp_(lo, hi).to(torch.float32)

    return split_step


def _rounded(v: Tensor, rounding: str, lo: int, hi: int) -> Tensor:
    """Round by the array's rule and clip, in place."""
    if rounding == "witin_nn":
        return v.clamp_(lo, hi).round_()
    if lo >= 0:
        return v.add_(0.5).floor_().clamp_(lo, hi)
    v = v.clamp_(lo - 1, hi + 1)
    below = v.sub(0.25).ceil_().clamp_(max=0)
    return v.add_(0.5).floor_().clamp_(min=0).add_(below).clamp_(lo, hi)

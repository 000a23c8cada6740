"""The fast path: a program on codes held in floating point, equal to the reference in every code.

Array operations run as float32 matrix products and convolutions where the accumulator's bound says that they are exact,
else in float64; G is folded into their weights, which is exact because it is a power of two. A ReLU and a max pooling
that alone read an array operation are done before its rounding: rounding is monotone. What is not worth a form of its
own goes through the reference's functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.chips.ingenic.program import fast as fast_ingenic
from chipfit.chips.ingenic.program import ops as ops_ingenic
from chipfit.program import ops
from chipfit.program.fast_parts import extremes, max_pool
from chipfit.program.grid import value
from chipfit.program.ranges import array_bounds
from chipfit.program.reference import compute, gru, linear_map, quantise, real_inputs
from chipfit.program.types import Node, Program

Step = Callable[[list[Tensor]], Tensor]
_FLOAT32_BITS = 24
_MOVING = (ops.Pad, ops.Reshape, ops.Permute, ops.Slice, ops.Select, ops.Flip, ops.Cat)
"""Operations whose reference form takes codes in any dtype."""


class FastProgram:
    """A program prepared for speed.

    Args:
        program: From `lower` or `load_program`.

    Example:
        >>> from chipfit.program.types import VERSION, Input, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> y = Node("y", ops.Dequantise(), ("q",), real)
        >>> program = Program(VERSION, "wtm2101", (q, y), (Input("x", real),), ("y",), {})
        >>> FastProgram(program)(torch.tensor([[0.49, 9.0]]))
        tensor([[0.5000, 7.9375]])
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._steps: list[tuple[str, tuple[str, ...], Step]] = []
        self._types = {node.name: node.output for node in program.nodes}
        done: set[str] = set()
        for node in program.nodes:
            if node.name not in done:
                name, step, fused = self._prepared(node)
                self._steps.append((name, node.inputs, step))
                done |= fused
        last_use = {edge: i for i, (_, inputs, _) in enumerate(self._steps) for edge in inputs}
        self._free = [
            [edge for edge in set(inputs) if last_use[edge] == i and edge not in program.outputs]
            for i, (_, inputs, _) in enumerate(self._steps)
        ]

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the program; arguments, result and errors as `run`."""
        with torch.no_grad():
            edges = dict(real_inputs(self.program, inputs))
            for (name, sources, step), free in zip(self._steps, self._free, strict=True):
                edges[name] = step([edges[source] for source in sources])
                for edge in free:
                    del edges[edge]
        outputs = tuple(edges[name] for name in self.program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _prepared(self, node: Node) -> tuple[str, Step, set[str]]:
        """A node's step, the edge that it makes, and the nodes that it makes superfluous."""
        op = node.op
        if isinstance(op, ops.Array):
            tail = self._tail(node, ops.Relu, ops.MaxPool)
            return tail[-1].name, _array_step(op, tail[1:], self.program), {entry.name for entry in tail}
        if isinstance(op, (ops.Pad, ops_ingenic.Accumulate)):
            found = fast_ingenic.summed(
                self._tail(node, ops_ingenic.Accumulate, ops_ingenic.Finish, ops.MaxPool), self.program
            )
            if found is not None:
                step, nodes = found
                return nodes[-1].name, step, {entry.name for entry in nodes}
        return node.name, self._step(node), {node.name}

    def _tail(self, node: Node, *kinds: type[Any]) -> list[Node]:
        """The node, and those of `kinds`, in this order, that alone read what comes before them."""
        tail = [node]
        for kind in kinds:
            readers = self.program.readers(tail[-1].name)
            if len(readers) == 1 and isinstance(readers[0].op, kind) and tail[-1].name not in self.program.outputs:
                tail.append(readers[0])
        return tail

    def _step(self, node: Node) -> Step:
        op, program = node.op, self.program
        if isinstance(op, ops.Quantise):
            return lambda args: quantise(args[0], op, node.name, torch.float32)
        if isinstance(op, ops.Dequantise):
            grid = program.type(node.inputs[0]).grid
            return lambda args: value(args[0], grid)
        dtype = _dtype(node.output.bits)
        if isinstance(op, ops.Rescale) and (not op.zero or self._narrow(node, -op.shift)):
            return lambda args: _rescaled(args[0], op).to(dtype)
        if isinstance(op, ops.Relu):
            return lambda args: args[0].clamp(min=0)
        if isinstance(op, ops.Clamp):
            return lambda args: args[0].clamp(op.lo, op.hi)
        if isinstance(op, ops.MaxPool):
            return lambda args: max_pool(args[0], op)
        if isinstance(op, _MOVING) and all(_dtype(program.type(edge).bits) == dtype for edge in node.inputs):
            return lambda args: compute(node, args, program)
        if isinstance(op, ops.Gru):
            halves = {id(half): _array_step(half, [], program) for half in (op.input, op.hidden)}

            def run_array(codes: Tensor, half: ops.Array, _: Any) -> Tensor:
                return halves[id(half)]([codes.to(torch.float32)]).to(torch.int64)

            return lambda args: gru(op, [_integer(x) for x in args], program.tensors, run_array).to(dtype)
        if type(op) in fast_ingenic.STEPS:
            return fast_ingenic.STEPS[type(op)](op, program.tensors, node.exact_in_float32, dtype)
        return lambda args: compute(node, [_integer(x) for x in args], program).to(dtype)

    def _narrow(self, node: Node, right_shift: int) -> bool:
        """Whether a rescaling is exact in float32: no code, lifted by `zero`, has more bits than that."""
        bits = self.program.type(node.inputs[0]).bits or 0
        return max(bits, node.output.bits or 0) + 1 + max(right_shift, 0) <= _FLOAT32_BITS


def _dtype(bits: int | None) -> torch.dtype:
    return torch.float64 if bits is not None and bits > _FLOAT32_BITS else torch.float32


def _integer(codes: Tensor) -> Tensor:
    return codes.to(torch.int64)


def _rescaled(codes: Tensor, op: ops.Rescale) -> Tensor:
    scaled = codes * 2.0**op.shift if op.shift else codes.clone()
    if op.zero:
        scaled.add_(op.zero)
    return scaled.round_().clamp_(op.lo, op.hi) if op.shift < 0 else scaled.clamp_(op.lo, op.hi)


def _exact_in_float32(op: ops.Array, tensors: Mapping[str, Tensor]) -> bool:
    """Whether float32 counts the sums: within the certified bound, or within one that knows the signs."""
    bounds = array_bounds(op, tensors)
    if bounds.exact_in_float32 or op.split is not None or op.negative_weight_tensor is not None:
        return bounds.exact_in_float32
    weight = tensors[op.weight_tensor]
    if op.geometry.kind == "conv_transpose":
        weight = weight.transpose(0, 1)
    sums = extremes(weight, *op.x_range).sum(2).abs() + tensors[op.bias_tensor].abs()
    return int(sums.max()) + bounds.rounding_room <= FLOAT32_EXACT


def _array_step(op: ops.Array, tail: list[Node], program: Program) -> Step:
    """An array operation, and the ReLU and max pooling behind it."""
    tensors = program.tensors
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

"""How large a program's accumulators and codes can become, from its tensors alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT, AccumulatorBound, accumulator_bound
from chipfit.errors import UnsupportedError
from chipfit.integer import interpreter_ingenic, ops, ops_ingenic
from chipfit.integer.program import Node, Program

Range = tuple[int, int]
"""Lowest and highest code."""


@dataclass(frozen=True)
class ArrayBounds:
    """Bounds of one array operation.

    Args:
        array: `max|x| * sum|w| + |bias|` for each output channel, of what goes through the array.
        digital: The same of the digital half of a split operation, or None.
        rounding_room: What the rounding rule adds to the accumulator before it cuts.
    """

    array: AccumulatorBound
    digital: AccumulatorBound | None
    rounding_room: int

    @property
    def exact_in_float32(self) -> bool:
        """Whether float32 computes the operation exactly, whatever the order of summation."""
        # all that the digital half adds up are multiples of 128, so it has seven bits more
        digital = self.digital is None or self.digital.largest <= FLOAT32_EXACT * 128
        return digital and self.array.largest + self.rounding_room <= FLOAT32_EXACT


def array_bounds(op: ops.Array, tensors: Mapping[str, Tensor]) -> ArrayBounds:
    """Bounds of an array operation for any input codes within its range.

    Example:
        >>> geometry = ops.Geometry("linear")
        >>> op = ops.Array(geometry, "w", None, "b", "e", "unsigned", 0, 8, "witin_nn", -128, 127, 8, 8)
        >>> array_bounds(op, {"w": torch.tensor([[127, -128]]), "b": torch.tensor([128])}).array.per_channel
        tensor([65153])
    """
    weight = tensors[op.weight_tensor].abs()
    if op.negative_weight_tensor is not None:
        weight = torch.maximum(weight, tensors[op.negative_weight_tensor].abs())
    if op.geometry.kind == "conv_transpose":
        weight = weight.transpose(0, 1)
    largest = max(abs(code) for code in op.x_range)
    digital = None
    if op.split is not None:
        digital = accumulator_bound(weight, largest - largest % 256, tensors[op.split.digital_bias_tensor])
        largest = min(largest, 255)
    room = 1 << max(op.log2_g, 0) if op.rounding == "wtm2101" else 0
    return ArrayBounds(accumulator_bound(weight, largest, tensors[op.bias_tensor]), digital, room)


def requantised_range(op: ops_ingenic.Requantise) -> Range:
    """Lowest and highest code of a feature quantiser.

    Example:
        >>> [requantised_range(ops_ingenic.Requantise(kind, 8, 1.0)) for kind in ("unsigned", "signed", "odd")]
        [(0, 8), (-8, 7), (-8, 8)]
    """
    return (0 if op.kind == "unsigned" else -op.n), (op.n - 1 if op.kind == "signed" else op.n)


def sum_ranges(weight: Tensor, inputs: Range) -> tuple[Tensor, Tensor]:
    """Lowest and highest sum of products of each output channel, for input codes within a range.

    Args:
        weight: Weight codes, output channels first.
        inputs: The range.

    Example:
        >>> sum_ranges(torch.tensor([[3, -1], [2, 2]]), (0, 10))
        (tensor([-10,   0]), tensor([30, 40]))
    """
    positive = weight.clamp(min=0).flatten(1).sum(1)
    negative = weight.clamp(max=0).flatten(1).sum(1)
    return positive * inputs[0] + negative * inputs[1], positive * inputs[1] + negative * inputs[0]


def code_ranges(program: Program) -> dict[str, Range]:
    """Lowest and highest code of every integer edge of an Ingenic program, sums included.

    Example:
        >>> from chipfit.integer.program import VERSION, Input, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True)
        >>> q = Node("q", ops_ingenic.PixelCodes(128.0, -128, 127), ("x",), codes)
        >>> total = Node("sum", ops_ingenic.Accumulate("linear", "w", 128), ("q",), ValueType((1,), 12, True))
        >>> tensors = {"w": torch.tensor([[3, -1]])}
        >>> code_ranges(Program(VERSION, "t40", (q, total), (Input("x", real),), (), tensors))["sum"]
        (-511, 509)
    """
    found: dict[str, Range] = {}
    for node in program.nodes:
        if not node.output.real:
            found[node.name] = _code_range(node, [found.get(name, (0, 0)) for name in node.inputs], program)
    return found


def _code_range(node: Node, inputs: list[Range], program: Program) -> Range:
    op, tensors = node.op, program.tensors
    if isinstance(op, ops_ingenic.PixelCodes):
        return op.lo, op.hi
    if isinstance(op, (ops_ingenic.Finish, ops_ingenic.Combine)) and op.requantise is not None:
        return requantised_range(op.requantise)
    if isinstance(op, ops_ingenic.Accumulate):
        lowest, highest = sum_ranges(tensors[op.weight_tensor], inputs[0])
        return int(lowest.min()), int(highest.max())
    if isinstance(op, (ops.Sum, ops.SumPool)):
        count = summands(node, program)
        return count * inputs[0][0], count * inputs[0][1]
    if isinstance(op, ops_ingenic.TableRows):
        return int(tensors[op.table_tensor].min()), int(tensors[op.table_tensor].max())
    if isinstance(op, (ops_ingenic.AverageCodes, ops_ingenic.Maximum)):  # neither falls where an input rises
        compute = interpreter_ingenic.COMPUTE[type(op)]
        ends = [compute(op, [torch.tensor([codes[i]]) for codes in inputs], tensors) for i in (0, 1)]
        return int(ends[0]), int(ends[1])
    if isinstance(op, ops.Pad) or (isinstance(op, ops_ingenic.Enlarge) and op.mode == "zero"):
        inputs = [*inputs, (op.value, op.value)]
    return min(low for low, _ in inputs), max(high for _, high in inputs)


def summands(node: Node, program: Program) -> int:
    """How many codes one output of an `Accumulate`, `Mean`, `Sum` or `SumPool` adds up.

    Raises:
        UnsupportedError: the shape that says so is not known.
    """
    op, shape = node.op, program.type(node.inputs[0]).shape
    if isinstance(op, ops_ingenic.Accumulate):
        return program.tensors[op.weight_tensor][0].numel()
    if isinstance(op, ops.SumPool):
        return math.prod(op.kernel)
    if isinstance(op, ops.Sum) and shape is not None and 0 not in op.dims:
        return math.prod(shape[dim - 1] if dim > 0 else shape[dim] for dim in op.dims)
    if isinstance(op, ops_ingenic.Mean) and (op.kernel or shape is not None):
        return math.prod(op.kernel or (shape or ())[1:])
    raise UnsupportedError("the number of summands is not known", given=type(op).__name__, where=node.name)

"""How large the accumulators and codes of Witmem's operations can become, from the program's tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT, AccumulatorBound, accumulator_bound
from chipfit.chips.witmem.program import ops
from chipfit.program.dialect import Context, Range


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


def states(op: ops.Gru, inputs: list[Range], context: Context) -> Range:
    """Of a GRU's states: 8 bits."""
    return -128, 127

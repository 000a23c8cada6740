"""How large the codes of the core operations can become, from those of their inputs and the program's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.program.core import ops
from chipfit.program.dialect import Context, Range, meaning_of


def hull(inputs: list[Range]) -> Range:
    """Range of what only moves or selects codes.

    Example:
        >>> hull([(-3, 2), (0, 9)])
        (-3, 9)
    """
    return min(low for low, _ in inputs), max(high for _, high in inputs)


def limits(op: Any, inputs: list[Range], context: Context) -> Range:
    """The operation's own `lo` and `hi`."""
    return op.lo, op.hi


def at_the_ends(op: ops.Op, inputs: list[Range], context: Context) -> Range:
    """Of an operation that never falls where an input rises: what it gives at the ends."""
    reference = meaning_of(op).reference
    ends = [reference(op, [torch.tensor([codes[i]]) for codes in inputs], context) for i in (0, 1)]
    return int(ends[0].min()), int(ends[1].max())


def of_tensor(field: str) -> Callable[[Any, list[Range], Context], Range]:
    """Of an operation that gives entries of a tensor, whose name stands in a field."""

    def ranges(op: Any, inputs: list[Range], context: Context) -> Range:
        values = context.tensors[getattr(op, field)]
        return int(values.min()), int(values.max())

    return ranges


def look_up(op: ops.LookUp, inputs: list[Range], context: Context) -> Range:
    """Entries of the codes that can come in."""
    lowest, highest = (code - op.first for code in inputs[0])
    entries = context.tensors[op.table_tensor][:, max(lowest, 0) : highest + 1]
    return int(entries.min()), int(entries.max())


def pad(op: ops.Pad, inputs: list[Range], context: Context) -> Range:
    """The border's code too."""
    return hull([*inputs, (op.value, op.value)]) if op.mode == "constant" else hull(inputs)


def mean(op: ops.Mean, inputs: list[Range], context: Context) -> Range:
    """No mean lies beyond its summands, and a clipped sum lies nearer to 0."""
    return hull([*inputs, (0, 0)])


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


def accumulate(op: ops.Accumulate, inputs: list[Range], context: Context) -> Range:
    """Of the channels with the largest sums."""
    lowest, highest = sum_ranges(context.tensors[op.weight_tensor], inputs[0])
    bias = 0 if op.bias_tensor is None else context.tensors[op.bias_tensor]
    return int((lowest + bias).min()), int((highest + bias).max())


def total(op: ops.Sum | ops.SumPool, inputs: list[Range], context: Context) -> Range:
    """As many times the summands' range as there are summands."""
    count = summands(op, context)
    return count * inputs[0][0], count * inputs[0][1]


def summands(op: ops.Op, context: Context) -> int:
    """How many codes one output of an `Accumulate`, `Sum` or `SumPool` adds up.

    Raises:
        UnsupportedError: the shape that says so is not known.
    """
    shape = context.sources[0].shape
    if isinstance(op, ops.Accumulate):
        return context.tensors[op.weight_tensor][0].numel()
    if isinstance(op, ops.SumPool):
        return math.prod(op.kernel)
    if isinstance(op, ops.Sum) and shape is not None and 0 not in op.dims:
        return math.prod(shape[dim - 1] if dim > 0 else shape[dim] for dim in op.dims)
    raise UnsupportedError("the number of summands is not known", given=type(op).__name__, where=context.name)

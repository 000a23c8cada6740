"""What makes no sense in a Witmem program that was read from a file."""

from __future__ import annotations

import math
from collections.abc import Iterator

from chipfit.chips.witmem.program import ops
from chipfit.program.dialect import Context
from chipfit.program.types import Program

_ROUNDINGS = ("witin_nn", "wtm2101")
_GATE_ENTRIES = 1024


def array_problems(op: ops.Array, context: Context) -> Iterator[str]:
    """An array operation: its rounding rule, its codes, its bias."""
    if op.rounding not in _ROUNDINGS:
        yield f"unknown rounding rule {op.rounding!r}; allowed: {', '.join(_ROUNDINGS)}"
    if (op.negative == "pn") != (op.negative_weight_tensor is not None):
        yield "the weights of a second pass go with 'pn', and with it alone"
    if op.bias_rows < 0:
        yield f"{op.bias_rows} bias rows"
    weights = [name for name in (op.weight_tensor, op.negative_weight_tensor) if name is not None]
    for name in weights:
        weight = context.tensors[name]
        most = 128 if name == op.negative_weight_tensor else 127  # the second pass may be the first one negated
        low, high = int(weight.min()), int(weight.max())
        if low < -128 or high > most:
            yield f"tensor {name}: weight codes from {low} to {high}; allowed: -128 to {most}"
    if len({tuple(context.tensors[name].shape) for name in weights}) > 1:
        yield "the weights of the two passes differ in shape"
    weight = context.tensors[op.weight_tensor]
    out = weight.shape[0]
    if op.geometry.kind == "conv_transpose":
        out = weight.shape[1] * op.geometry.groups if weight.dim() > 1 else 0
    biases = [op.bias_tensor, op.exact_bias_tensor]
    for name in (*biases, *(() if op.split is None else (op.split.digital_bias_tensor,))):
        bias = context.tensors[name]
        if tuple(bias.shape) != (out,):
            yield f"tensor {name}: shape {tuple(bias.shape)}; allowed: {(out,)}"
        if bias.dtype.is_floating_point != (name == op.exact_bias_tensor):
            yield f"tensor {name}: {bias.dtype}"


def gru_problems(op: ops.Gru, context: Context) -> Iterator[str]:
    """A GRU: both array operations, and its tables."""
    for part in (op.input, op.hidden):
        yield from array_problems(part, context)
    if op.time_dim not in (0, 1):
        yield f"time_dim is {op.time_dim}; allowed: 0, 1"
    for name in (op.gate_table_tensor, op.candidate_table_tensor):
        if tuple(context.tensors[name].shape) != (_GATE_ENTRIES,):
            yield f"tensor {name}: shape {tuple(context.tensors[name].shape)}; allowed: {(_GATE_ENTRIES,)}"


def scale_problems(program: Program) -> Iterator[tuple[str, str]]:
    """Scales: the chip only shifts."""
    for node in program.nodes:
        grid = node.output.grid
        if grid is not None and math.frexp(grid.n)[0] != 0.5:
            yield node.name, f"{grid.n:g} codes a unit; allowed: a power of two, since the chip only shifts"

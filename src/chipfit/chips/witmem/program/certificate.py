"""Rows of the certificate for the operations of the array: what the multiple-of-128 rule took, what saturates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from chipfit.chips.witmem.program import ops
from chipfit.chips.witmem.program.ranges import array_bounds
from chipfit.chips.witmem.program.reference import array
from chipfit.program.reference import compute
from chipfit.program.rows import Column, Counting, Ranges, Row, Seen, exact_cell, sum_cell, use_cell
from chipfit.program.types import Node, Program

_WIDE = 1 << 40
"""A limit that no output reaches."""


def of_array(node: Node, program: Program, ranges: Ranges) -> list[Counting]:
    """The row of an `Array`."""
    assert isinstance(node.op, ops.Array)  # the table's
    return [ArrayCount(node.name, node, node.op, program)]


def of_gru(node: Node, program: Program, ranges: Ranges) -> list[Counting]:
    """The two rows of a `Gru`."""
    assert isinstance(node.op, ops.Gru)  # the table's
    return [
        ArrayCount(f"{node.name}.input", node, node.op.input, program),
        HiddenCount(f"{node.name}.hidden", node, node.op.hidden, program),
    ]


class ArrayCount:
    """Counts of one array operation over batches, and its row.

    Besides what every row has, it says: `g`, accumulator codes per output code; `rounding`, the rule; `can_saturate`,
    channels whose bound reaches beyond the output range; `bias_lost`, the largest difference that the multiple-of-128
    rule and the limit of the bias rows made to a bias, in output codes; `bias_clipped`, channels whose bias lies beyond
    what the bias rows hold; `weight_code_use`, the share of a cell's 256 weight codes that occur. Of data it says
    `clipped`, the share of the outputs that were clipped to the output range, and `input_clipped`, that of the values
    that were clipped when they were brought to the input grid (None where nothing was brought anywhere).
    """

    def __init__(self, name: str, node: Node, op: ops.Array, program: Program) -> None:
        self.name, self.node, self.op, self.program = name, node, op, program
        self.outputs = self.clipped = self.values = self.values_clipped = 0
        self.used = torch.zeros(op.hi - op.lo + 1, dtype=torch.bool)

    def add(self, edges: Mapping[str, Tensor]) -> None:
        """Take a batch's edges into account."""
        self.count(edges[self.node.inputs[0]])
        for before, wide in _regridded(self.node.inputs[0], self.program):
            unclipped = compute(wide, [edges[name] for name in wide.inputs], self.program)
            self.values += unclipped.numel()
            self.values_clipped += int((unclipped != edges[before]).sum())

    def count(self, codes: Tensor) -> None:
        """Take input codes into account."""
        op, tensors = self.op, self.program.tensors
        split = None if op.split is None else replace(op.split, analog_lo=-_WIDE, analog_hi=_WIDE)
        free = array(codes, replace(op, lo=-_WIDE, hi=_WIDE, split=split), tensors)
        limited = array(codes, op, tensors)
        self.outputs += limited.numel()
        self.clipped += int((free != limited).sum())
        self.used[(limited - op.lo).flatten()] = True

    def row(self) -> Row:
        """The row."""
        op, tensors = self.op, self.program.tensors
        bounds, weight, bias = array_bounds(op, tensors), tensors[op.weight_tensor], tensors[op.bias_tensor]
        reach = bounds.array.per_channel
        if bounds.digital is not None:
            reach = reach + bounds.digital.per_channel
        outputs = weight.shape[1 if op.geometry.kind == "conv_transpose" else 0]
        lost, used = (tensors[op.exact_bias_tensor] - bias).abs(), len(torch.unique(weight))
        own = {
            "g": op.g,
            "rounding": op.rounding,
            "can_saturate": int((reach.double() > min(-op.lo, op.hi) * op.g).sum()),
            "bias_lost": float(lost.max()) / op.g,
            # rounding moves a bias by half a unit at the most, by a whole one where the split rounds twice
            "bias_clipped": int((lost > (64 if op.split is None else 128)).sum()),
            "weight_code_use": used / 256,
        }
        return Row(
            self.name,
            op.geometry.kind,
            weight.numel() // outputs,
            outputs,
            bounds.array.largest,
            bounds.array.bits,
            bounds.exact_in_float32,
            op.lo,
            op.hi,
            used,
            self._seen(),
            own,
        )

    def _seen(self) -> Seen | None:
        if not self.outputs:
            return None
        clipped = self.values_clipped / self.values if self.values else None
        own = {"clipped": self.clipped / self.outputs, "input_clipped": clipped}
        return Seen(self.outputs, float(self.used.double().mean()), own)


class HiddenCount(ArrayCount):
    """As `ArrayCount`, of the operation on a GRU's state, whose codes are those of the step before."""

    def add(self, edges: Mapping[str, Tensor]) -> None:
        """Take a batch's edges into account."""
        gru = self.node.op
        assert isinstance(gru, ops.Gru)  # only a GRU has a state
        states = edges[self.node.name].movedim(gru.time_dim, 0)
        states = states.flip(0) if gru.reverse else states
        first = edges[self.node.inputs[1]] if len(self.node.inputs) == 2 else torch.zeros_like(states[0])
        self.count(torch.cat([first.unsqueeze(0), states[:-1]]))


def _regridded(edge: str, program: Program) -> Iterator[tuple[str, Node]]:
    """The node that brought an edge to its grid, without its limits."""
    for node in program.nodes:
        if node.name == edge and isinstance(node.op, (ops.Quantise, ops.Rescale)):
            yield edge, replace(node, op=replace(node.op, lo=-_WIDE, hi=_WIDE))
        elif node.name == edge and isinstance(node.op, ops.Pad):
            yield from _regridded(node.inputs[0], program)


def _bias_cell(row: Row) -> str:
    clipped = f", [red]✗ {row.bias_clipped} of {row.channels} bias clipped[/]" if row.bias_clipped else ""
    return f"{row.bias_lost:.2f} LSB{clipped}"


def _input_cell(row: Row) -> str:
    return "" if row.seen is None or row.seen.input_clipped is None else f"{row.seen.input_clipped:.2%}"


COLUMNS = (
    Column("inputs", lambda row: str(row.inputs)),
    Column("sum", sum_cell),
    Column("exact in", exact_cell),
    Column("G", lambda row: f"{row.g:g}"),
    Column("can clip", lambda row: f"{row.can_saturate} of {row.channels}"),
    Column("bias lost", _bias_cell),
    Column("weights used", lambda row: f"{row.weight_code_use:.0%}"),
    Column("input clipped", _input_cell, of_data=True),
    Column("output clipped", lambda row: "" if row.seen is None else f"{row.seen.clipped:.2%}", of_data=True),
    Column("codes used", use_cell, of_data=True),
)
"""Columns of the certificate's table."""

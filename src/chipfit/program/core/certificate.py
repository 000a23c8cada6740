"""Rows of the certificate for core operations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT, accumulator_bound
from chipfit.program.core.ops import Accumulate
from chipfit.program.core.ranges import summands
from chipfit.program.dialect import context_of, meaning_of
from chipfit.program.rows import Counting, Ranges, Row, Seen
from chipfit.program.types import Node, Program


class SumCount:
    """A sum of products whose layer has no row of its own."""

    def __init__(self, node: Node, op: Accumulate, program: Program, ranges: Ranges) -> None:
        self.node, self.op, self.program, self.ranges = node, op, program, ranges
        self.outputs = 0
        self.used: set[int] = set()

    def add(self, edges: Mapping[str, Tensor]) -> None:
        """Take a batch's edges into account."""
        codes = edges[self.node.name]
        self.outputs += codes.numel()
        self.used.update(torch.unique(codes).tolist())

    def row(self) -> Row:
        """The row."""
        tensors, op = self.program.tensors, self.op
        weight = tensors[op.weight_tensor]
        bound = accumulator_bound(weight, op.largest, None if op.bias_tensor is None else tensors[op.bias_tensor])
        lo, hi = self.ranges()[self.node.name]
        seen = Seen(self.outputs, len(self.used) / (hi - lo + 1)) if self.outputs else None
        inputs, codes = summands(op, context_of(self.node, self.program)), len(torch.unique(weight))
        exact = bound.largest <= FLOAT32_EXACT
        return Row(self.node.name, op.kind, inputs, len(weight), bound.largest, bound.bits, exact, lo, hi, codes, seen)


def accumulate(node: Node, program: Program, ranges: Ranges) -> list[Counting]:
    """Of an `Accumulate`: none where the operation that reads it speaks for the layer."""
    if not isinstance(node.op, Accumulate) or any(meaning_of(r.op).row for r in program.readers(node.name)):
        return []
    return [SumCount(node, node.op, program, ranges)]

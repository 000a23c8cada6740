"""Rows of the certificate for Ingenic's layers: one for every layer that sums, combines or requantises.

What holds for any input comes from the ranges of the codes: how wide the sums become, and whether the real number
behind them can lie beyond either end of the layer's grid. Data says how often it did, and how many codes occurred. At
the low end of an unsigned grid that is the ReLU at work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT, accumulator_bound
from chipfit.chips.ingenic.program.ops import Activation, AverageCodes, Combine, Finish, FloatMean, Requantise
from chipfit.chips.ingenic.program.ranges import requantised_range
from chipfit.chips.ingenic.program.reference import activated, tround
from chipfit.errors import UnsupportedError
from chipfit.program.core import ops
from chipfit.program.core.ops import Accumulate
from chipfit.program.core.ranges import sum_ranges, summands
from chipfit.program.dialect import Range, context_of
from chipfit.program.reference import apply
from chipfit.program.rows import (
    Column,
    Counting,
    Ranges,
    Row,
    Seen,
    codes_cell,
    exact_cell,
    sum_cell,
    use_cell,
    weights_cell,
)
from chipfit.program.types import Node, Program


def of_layer(node: Node, program: Program, ranges: Ranges) -> list[Counting]:
    """The row of a `Finish`, `Combine` or `AverageCodes`; none of one that only says what codes stand for."""
    return [] if node.op == Finish(getattr(node.op, "grid", None)) else [LayerCount(node, program, ranges)]


class LayerCount:
    """A layer of a program, counts of its outputs over batches, and its row.

    Its kind is that of the sum, or 'mean', 'normalise', 'pointwise', 'add', 'mul', or 'average', the shortcut of Txx,
    Xs1 and Xs2. Besides what every row has, it says `can_clip_below` and `can_clip_above`: channels in which some input
    within range leads below the lowest code, or above the highest. Of data it says `below` and `above`: the share of
    the outputs that were clipped up to the lowest code, and down to the highest.

    Args:
        node: Its node: `Finish`, `Combine` or `AverageCodes`.
        program: The program.
        ranges: Gives the ranges of its codes.
    """

    def __init__(self, node: Node, program: Program, ranges: Ranges) -> None:
        self.node, self.program, self.ranges = node, program, ranges()
        self.requantise = None if isinstance(node.op, AverageCodes) else _finishing(node).requantise
        self.grid = None if node.output.real else self.ranges[node.name]
        self.outputs = self.below = self.above = 0
        self.used = torch.zeros(0 if self.grid is None else self.grid[1] - self.grid[0] + 1, dtype=torch.bool)

    def add(self, edges: Mapping[str, Tensor]) -> None:
        """Take one batch's edges into account."""
        codes = edges[self.node.name]
        self.outputs += codes.numel()
        if self.grid is None:
            return
        self.used[(codes - self.grid[0]).flatten()] = True
        if self.requantise is not None:
            free = replace(_finishing(self.node), requantise=None)
            real = apply(free, [edges[name] for name in self.node.inputs], self.program.tensors)
            below, above = beyond(real, self.requantise)
            self.below += int(below.sum())
            self.above += int(above.sum())

    def row(self) -> Row:
        """The layer's row."""
        source = next((n for n in self.program.nodes if n.name == self.node.inputs[0]), None)
        kind, inputs, bound, weight = _sum(self.node, source, self.program, self.ranges)
        channels = len(weight) if weight is not None else (self.node.output.shape or (1,))[0]
        lo, hi = self.grid or (None, None)
        below = above = 0
        if self.requantise is not None:
            clipped = beyond(torch.stack(self._reach(source)), self.requantise)
            below, above = (int(side.any(0).expand(1, channels).sum()) for side in clipped)
        weights = None if weight is None else len(torch.unique(weight))
        bits, exact = bound.bit_length() + 1, bound <= FLOAT32_EXACT
        own = {"can_clip_below": below, "can_clip_above": above}
        return Row(self.node.name, kind, inputs, channels, bound, bits, exact, lo, hi, weights, self._seen(), own)

    def _seen(self) -> Seen | None:
        if not self.outputs:
            return None
        use = None
        if self.grid is not None:
            step = 2 if self.requantise is not None and self.requantise.kind == "odd" else 1
            use = int(self.used.sum()) / ((self.grid[1] - self.grid[0]) // step + 1)
        return Seen(self.outputs, use, {"below": self.below / self.outputs, "above": self.above / self.outputs})

    def _reach(self, source: Node | None) -> tuple[Tensor, ...]:
        """Numbers among which are the least and the greatest that are requantised, shape `(1, channels)` or `(1, 1)`.

        Every step before the activation rises or falls throughout, rounding included, so it has its extremes at the
        ends of a range, and a combination of two at the corners.
        """
        tensors = self.program.tensors
        if source is not None and isinstance(source.op, FloatMean):  # it rises with each number
            side = _averaged(source, self.program)
            whole = [torch.full((1, 1, *side), code) for code in self.ranges[source.inputs[0]]]
            return tuple(apply(source.op, [codes], tensors).view(1, 1) for codes in whole)
        if any(self.program.type(name).real for name in self.node.inputs):
            return torch.tensor([[-torch.inf]]), torch.tensor([[torch.inf]])
        ranges = [[torch.tensor([[code]]) for code in self.ranges[name]] for name in self.node.inputs]
        before: Finish | Combine = replace(_finishing(self.node), activation=Activation(), requantise=None)
        if isinstance(before, Combine):
            corners = [[a, b] for a in ranges[0] for b in ranges[1]]
        elif source is not None and isinstance(source.op, Accumulate):
            sums = sum_ranges(tensors[source.op.weight_tensor], self.ranges[source.inputs[0]])
            corners = [[codes.unsqueeze(0)] for codes in sums]
        else:
            corners = [[codes] for codes in ranges[0]]
        if isinstance(before, Finish):
            before = replace(before, axis=-1)
        ends = torch.stack([apply(before, args, tensors) for args in corners])
        lo, hi = ends.amin(0), ends.amax(0)
        activation = _finishing(self.node).activation
        # hswish is least here; a leaky slope turns at 0, which no grid clips
        turn = torch.minimum(torch.maximum(torch.tensor(-activation.offset / 2), lo), hi)
        return tuple(activated(v, activation, tensors, axis=-1) for v in (lo, hi, turn))


def _finishing(node: Node) -> Finish | Combine:
    if isinstance(node.op, (Finish, Combine)):
        return node.op
    raise UnsupportedError("the node requantises nothing", given=type(node.op).__name__, where=node.name)


def _averaged(node: Node, program: Program) -> tuple[int, ...]:
    """Height and width that a mean is taken over.

    Raises:
        UnsupportedError: the shape that says so is not known.
    """
    shape = program.type(node.inputs[0]).shape
    if isinstance(node.op, FloatMean) and (node.op.kernel or shape is not None):
        return node.op.kernel or (shape or ())[1:]
    raise UnsupportedError("the number of summands is not known", given=type(node.op).__name__, where=node.name)


def _sum(
    node: Node, source: Node | None, program: Program, ranges: Mapping[str, Range]
) -> tuple[str, int, int, Tensor | None]:
    """What a layer sums: kind, summands, bound and weight codes."""
    if isinstance(node.op, AverageCodes):
        return "average", 2, 2 * node.op.n, None
    if isinstance(node.op, Combine):
        return node.op.kind, 2, 0, None
    if source is not None and isinstance(source.op, Accumulate):
        weight = program.tensors[source.op.weight_tensor]
        bound = accumulator_bound(weight, source.op.largest).largest
        return source.op.kind, summands(source.op, context_of(source, program)), bound, weight
    if source is not None and isinstance(source.op, (ops.Sum, ops.SumPool)):
        return (
            "mean",
            summands(source.op, context_of(source, program)),
            max(abs(code) for code in ranges[source.name]),
            None,
        )
    if source is not None and isinstance(source.op, FloatMean):
        return "mean", math.prod(_averaged(source, program)), 0, None
    normalises = isinstance(node.op, Finish) and node.op.norm is not None
    return "normalise" if normalises else "pointwise", 1, 0, None


def beyond(real: Tensor, op: Requantise) -> tuple[Tensor, Tensor]:
    """Where numbers lie below the lowest code and above the highest, half a code included as `tround` has it.

    Example:
        >>> beyond(torch.tensor([-0.3, 6.1, 6.3]), Requantise("unsigned", 15, 6.0))
        (tensor([ True, False, False]), tensor([False, False,  True]))
    """
    v = real if op.divisor is None else real / torch.tensor(op.divisor, dtype=torch.float32)
    c, n = torch.tensor(op.clip, dtype=torch.float32), float(op.n)
    v = torch.minimum(torch.maximum(v, -4 * c), 4 * c)  # keeps infinity a number
    codes = 2 * tround((v + c) / (2 * c) * n) - op.n if op.kind == "odd" else tround(v / c * n)
    lo, hi = requantised_range(op)
    return codes < lo, codes > hi


def _clipped_cell(row: Row) -> str:
    return "" if row.lo is None else f"{row.can_clip_below}, {row.can_clip_above}"


def _seen_cell(row: Row) -> str:
    if row.seen is None or row.seen.code_use is None:
        return ""
    return f"{row.seen.below:.1%}, {row.seen.above:.1%}"


COLUMNS = (
    Column("inputs", lambda row: f"{row.kind} {row.inputs}"),
    Column("outputs", lambda row: str(row.channels)),
    Column("sum", sum_cell),
    Column("exact in", exact_cell),
    Column("codes", codes_cell),
    Column("can clip low, high", _clipped_cell),
    Column("weight codes", weights_cell),
    Column("clipped low, high", _seen_cell, of_data=True),
    Column("codes used", use_cell, of_data=True),
)
"""Columns of the certificate's table."""

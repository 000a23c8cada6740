"""The certificate of Ingenic programs: one row for every layer that sums, combines or requantises.

What holds for any input comes from the ranges of the codes: how wide the sums become, and whether the real number
behind them can lie beyond either end of the layer's grid. Data says how often it did, and how many codes occurred. At
the low end of an unsigned grid that is the ReLU at work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from rich.table import Table
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT, accumulator_bound
from chipfit.errors import UnsupportedError
from chipfit.integer import ops
from chipfit.integer.bounds import Range, code_ranges, requantised_range, sum_ranges, summands
from chipfit.integer.interpreter import apply
from chipfit.integer.interpreter_ingenic import activated, tround
from chipfit.integer.ops_ingenic import Accumulate, Activation, AverageCodes, Combine, Finish, Mean, Requantise
from chipfit.integer.program import Node, Program

Kind = Literal["conv", "linear", "mean", "normalise", "pointwise", "add", "mul", "average"]


@dataclass(frozen=True)
class IngenicSeen:
    """What data showed of one layer.

    Args:
        outputs: Outputs counted.
        below: Share of the outputs that were clipped up to the lowest code.
        above: Share that were clipped down to the highest code.
        code_use: Share of the grid's codes that occurred; None for real outputs.
    """

    outputs: int
    below: float
    above: float
    code_use: float | None


@dataclass(frozen=True)
class IngenicRow:
    """One layer; at its second call it has a row of its own.

    Args:
        name: The layer, as its edge in the program is named.
        kind: What it computes; 'average' is the shortcut of Txx, Xs1 and Xs2.
        inputs: Codes that one sum adds up; 1 for 'normalise'.
        channels: Output channels.
        bound: Largest magnitude of a sum of codes for any input, `max|x| * sum|w|` with weights; 0 where there is none.
        bits: Width of a signed register that holds it.
        exact_in_float32: Whether float32 sums exactly; if not, the exact path takes float64.
        lo, hi: Lowest and highest output code; None for real outputs.
        can_clip_below, can_clip_above: Channels in which some input within range leads below the lowest code, or above
            the highest.
        weight_codes: Different weight codes that occur; None without weights.
        seen: What data showed, or None.
    """

    name: str
    kind: Kind
    inputs: int
    channels: int
    bound: int
    bits: int
    exact_in_float32: bool
    lo: int | None
    hi: int | None
    can_clip_below: int
    can_clip_above: int
    weight_codes: int | None
    seen: IngenicSeen | None = None


class LayerCount:
    """A layer of a program, and counts of its outputs over batches.

    Args:
        node: Its node: `Finish`, `Combine` or `AverageCodes`.
        program: The program.
        ranges: `code_ranges(program)`.
    """

    def __init__(self, node: Node, program: Program, ranges: Mapping[str, Range]) -> None:
        self.node, self.program, self.ranges = node, program, ranges
        self.requantise = None if isinstance(node.op, AverageCodes) else _finishing(node).requantise
        self.grid = None if node.output.real else ranges[node.name]
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

    def row(self) -> IngenicRow:
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
        return IngenicRow(
            self.node.name, kind, inputs, channels, bound, bits, exact, lo, hi, below, above, weights, self._seen()
        )

    def _seen(self) -> IngenicSeen | None:
        if not self.outputs:
            return None
        use = None
        if self.grid is not None:
            step = 2 if self.requantise is not None and self.requantise.kind == "odd" else 1
            use = int(self.used.sum()) / ((self.grid[1] - self.grid[0]) // step + 1)
        return IngenicSeen(self.outputs, self.below / self.outputs, self.above / self.outputs, use)

    def _reach(self, source: Node | None) -> tuple[Tensor, ...]:
        """Numbers among which are the least and the greatest that are requantised, shape `(1, channels)` or `(1, 1)`.

        Every step before the activation rises or falls throughout, rounding included, so it has its extremes at the
        ends of a range, and a combination of two at the corners.
        """
        tensors = self.program.tensors
        if source is not None and isinstance(source.op, Mean):  # it rises with each number
            side = source.op.kernel or self.program.type(source.inputs[0]).shape[1:]  # type: ignore[index]  # `summands` saw it
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


def _sum(
    node: Node, source: Node | None, program: Program, ranges: Mapping[str, Range]
) -> tuple[Kind, int, int, Tensor | None]:
    """What a layer sums: kind, summands, bound and weight codes."""
    if isinstance(node.op, AverageCodes):
        return "average", 2, 2 * node.op.n, None
    if isinstance(node.op, Combine):
        return node.op.kind, 2, 0, None
    if source is not None and isinstance(source.op, Accumulate):
        weight = program.tensors[source.op.weight_tensor]
        bound = accumulator_bound(weight, source.op.largest).largest
        return source.op.kind, summands(source, program), bound, weight
    if source is not None and isinstance(source.op, (ops.Sum, ops.SumPool)):
        return "mean", summands(source, program), max(abs(code) for code in ranges[source.name]), None
    if source is not None and isinstance(source.op, Mean):
        return "mean", summands(source, program), 0, None
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


def ingenic_counts(program: Program) -> list[LayerCount]:
    """A count for every layer of an Ingenic program, in the program's order; none for other programs."""
    kinds = (Finish, Combine, AverageCodes)
    nodes = [n for n in program.nodes if isinstance(n.op, kinds) and n.op != Finish(getattr(n.op, "grid", None))]
    ranges = code_ranges(program) if nodes else {}
    return [LayerCount(node, program, ranges) for node in nodes]


def ingenic_table(rows: tuple[IngenicRow, ...], title: str) -> Table:
    """The rows as a table to print with rich."""
    table = Table(title=title, title_justify="left")
    table.add_column("layer", no_wrap=True)
    headings = ["inputs", "outputs", "sum", "exact in", "codes", "can clip low, high", "weight codes"]
    if any(row.seen for row in rows):
        headings += ["clipped low, high", "codes used"]
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    for row in rows:
        cells = [row.name, f"{row.kind} {row.inputs}", str(row.channels)]
        cells += [f"{row.bits} bits", "float32" if row.exact_in_float32 else "float64"] if row.bound else ["", ""]
        if row.lo is None:
            cells += ["real", ""]
        else:
            cells += [f"{row.lo} to {row.hi}", f"{row.can_clip_below}, {row.can_clip_above}"]
        cells.append("" if row.weight_codes is None else str(row.weight_codes))
        if row.seen is not None and row.seen.code_use is not None:
            cells += [f"{row.seen.below:.1%}, {row.seen.above:.1%}", f"{row.seen.code_use:.0%}"]
        table.add_row(*cells)
    return table

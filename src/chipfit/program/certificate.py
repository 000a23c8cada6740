"""What a program needs and where it loses: one row for every array operation, proven from its tensors, seen on data.

Ingenic programs have rows of another kind: see `certify_ingenic`.

The static part holds for any input: how wide the accumulators become, whether float32 counts them exactly, which
outputs can saturate at all, what the bias lost when it became a multiple of 128. The part that needs data says how
often inputs and outputs were clipped and how many of the codes were used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from chipfit.chips.ingenic.program.certificate import IngenicRow, ingenic_counts, ingenic_table
from chipfit.chips.ingenic.program.ops import Accumulate
from chipfit.errors import CalibrationError
from chipfit.program import ops
from chipfit.program.proof import batch_inputs
from chipfit.program.ranges import array_bounds
from chipfit.program.reference import array, compute, trace
from chipfit.program.types import Node, Program

_WIDE = 1 << 40
"""A limit that no output reaches."""


@dataclass(frozen=True)
class Seen:
    """What data showed of one array operation.

    Args:
        outputs: Outputs counted.
        clipped: Share of the outputs that were clipped to the output range.
        input_clipped: Share of the values that were clipped when they were brought to the input grid; None where
            nothing was brought anywhere (the codes came as they are).
        code_use: Share of the output codes that occurred.
    """

    outputs: int
    clipped: float
    input_clipped: float | None
    code_use: float


@dataclass(frozen=True)
class Row:
    """One array operation; a cell of a GRU has two.

    Args:
        name: The operation, as `Program.arrays` names it.
        inputs: Inputs that one output adds up, both passes of 'pn' counted once.
        channels: Output channels.
        bound: Largest magnitude of an accumulator for any input: `max|x| * sum|w| + |bias|`, the worst channel.
        bits: Width of a signed register that holds it.
        exact_in_float32: Whether float32 computes the operation exactly; if not, the exact path takes float64.
        g: Accumulator codes per output code.
        rounding: Rounding rule.
        can_saturate: Channels whose bound reaches beyond the output range.
        bias_lost: Largest difference that the multiple-of-128 rule and the limit of the bias rows made to a bias, in
            output codes.
        bias_clipped: Channels whose bias lies beyond what the bias rows hold.
        weight_code_use: Share of a cell's 256 weight codes that occur.
        seen: What data showed, or None.
    """

    name: str
    inputs: int
    channels: int
    bound: int
    bits: int
    exact_in_float32: bool
    g: float
    rounding: str
    can_saturate: int
    bias_lost: float
    bias_clipped: int
    weight_code_use: float
    seen: Seen | None = None


@dataclass(frozen=True)
class Certificate:
    """The rows of a program.

    Args:
        rows: One for each array operation, or for each layer of an Ingenic program, in the program's order.
        in_float64: Layers and operations that float32 is not sure to compute exactly, those of the digital unit
            included: the exact path computes them in pieces, or in float64.
        samples: Samples seen.
    """

    rows: tuple[Row | IngenicRow, ...]
    in_float64: tuple[str, ...]
    samples: int

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [asdict(row) for row in self.rows]

    def table(self) -> Table:
        """The rows as a table to print with rich."""
        ingenic = tuple(row for row in self.rows if isinstance(row, IngenicRow))
        if ingenic:
            return ingenic_table(ingenic, self._title())
        table = Table(title=self._title(), title_justify="left")
        table.add_column("layer", overflow="fold")
        headings = ["inputs", "sum", "exact in", "G", "can clip", "bias lost", "weights used"]
        headings += ["input clipped", "output clipped", "codes used"] if self.samples else []
        for heading in headings:
            table.add_column(heading, justify="right", overflow="fold")
        for row in (row for row in self.rows if isinstance(row, Row)):
            lost = f"{row.bias_lost:.2f} LSB" + (f", {row.bias_clipped} clipped" if row.bias_clipped else "")
            cells = [
                row.name,
                str(row.inputs),
                f"{row.bits} bits",
                "float32" if row.exact_in_float32 else "float64",
                f"{row.g:g}",
                f"{row.can_saturate} of {row.channels}",
                lost,
                f"{row.weight_code_use:.0%}",
            ]
            if row.seen is not None:
                clipped = row.seen.input_clipped
                cells += ["" if clipped is None else f"{clipped:.2%}", f"{row.seen.clipped:.2%}"]
                cells.append(f"{row.seen.code_use:.0%}")
            table.add_row(*cells)
        return table

    def _title(self) -> str:
        if not self.in_float64:
            return "Every layer is exact in float32, whatever the order of summation"
        return f"One float32 sum may not be exact; computed in pieces or in float64: {', '.join(self.in_float64)}"


def certify(program: Program, loader: Iterable[Any] | None = None) -> Certificate:
    """Say what each array operation of a program, or each Ingenic layer, needs, and with data what it does.

    Args:
        program: From `lower` or `load_program`.
        loader: Batches as for `verify`; None leaves out what only data can show.

    Returns:
        The certificate; `certificate.table()` prints with rich, `certificate.as_dicts()` is plain data.

    Raises:
        CalibrationError: the loader gives no sample.

    Example:
        >>> from chipfit.program.lowering.engine import lower
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=64, scale_weight=64)
        >>> config.scale_y = 32
        >>> layer = WitinLinear(2, 1, layer_config=config)
        >>> _ = torch.nn.init.constant_(layer.weight, 1.0), torch.nn.init.constant_(layer.bias, 0.01)
        >>> (row,) = certify(lower(torch.nn.Sequential(layer), torch.zeros(1, 2))).rows
        >>> row.bound, row.bits, row.g, row.can_saturate, round(row.bias_lost, 3)
        (32640, 16, 128.0, 1, 0.32)
    """
    counts = {name: _Count(node, op, name) for name, node, op in program.arrays()}
    layers = ingenic_counts(program)
    samples = 0
    for batch in loader if loader is not None else ():
        inputs = batch_inputs(batch, len(program.inputs))
        edges = trace(program, *inputs)
        for count in counts.values():
            count.add(edges, program)
        for layer in layers:
            layer.add(edges)
        samples += len(inputs[0])
    if loader is not None and not samples:
        raise CalibrationError("the loader gave no sample", where="certify")
    rows: tuple[Row | IngenicRow, ...] = tuple(_row(n, op, program, counts[n]) for n, _, op in program.arrays())
    rows += tuple(layer.row() for layer in layers)
    wide = [row.name for row in rows if not row.exact_in_float32]
    rowed = (ops.Array, ops.Gru, Accumulate)
    others = [n.name for n in program.nodes if not n.exact_in_float32 and not isinstance(n.op, rowed)]
    return Certificate(rows, tuple([*wide, *others]), samples)


def _row(name: str, op: ops.Array, program: Program, count: _Count) -> Row:
    tensors, bounds = program.tensors, array_bounds(op, program.tensors)
    weight, bias = tensors[op.weight_tensor], tensors[op.bias_tensor]
    reach = bounds.array.per_channel
    if bounds.digital is not None:
        reach = reach + bounds.digital.per_channel
    exact = tensors[op.exact_bias_tensor]
    outputs = weight.shape[1 if op.geometry.kind == "conv_transpose" else 0]
    return Row(
        name,
        weight.numel() // outputs,
        outputs,
        bounds.array.largest,
        bounds.array.bits,
        bounds.exact_in_float32,
        op.g,
        op.rounding,
        int((reach.double() > min(-op.lo, op.hi) * op.g).sum()),
        float((exact - bias).abs().max()) / op.g,
        # rounding moves a bias by half a unit at the most, by a whole one where the split rounds twice
        int(((exact - bias).abs() > (64 if op.split is None else 128)).sum()),
        len(torch.unique(weight)) / 256,
        count.seen(),
    )


class _Count:
    """Counts of one array operation over batches."""

    def __init__(self, node: Node, op: ops.Array, name: str) -> None:
        self.node, self.op, self.hidden = node, op, isinstance(node.op, ops.Gru) and name.endswith(".hidden")
        self.outputs = self.clipped = self.values = self.values_clipped = 0
        self.used = torch.zeros(op.hi - op.lo + 1, dtype=torch.bool)

    def add(self, edges: dict[str, Tensor], program: Program) -> None:
        """Take one batch's edges into account."""
        codes = self._input(edges)
        split = None if self.op.split is None else replace(self.op.split, analog_lo=-_WIDE, analog_hi=_WIDE)
        free = array(codes, replace(self.op, lo=-_WIDE, hi=_WIDE, split=split), program.tensors)
        limited = array(codes, self.op, program.tensors)
        self.outputs += limited.numel()
        self.clipped += int((free != limited).sum())
        self.used[(limited - self.op.lo).flatten()] = True
        if self.hidden:
            return
        for before, wide in _regridded(self.node.inputs[0], program):
            unclipped = compute(wide, [edges[name] for name in wide.inputs], program)
            self.values += unclipped.numel()
            self.values_clipped += int((unclipped != edges[before]).sum())

    def _input(self, edges: dict[str, Tensor]) -> Tensor:
        if not self.hidden or not isinstance(self.node.op, ops.Gru):
            return edges[self.node.inputs[0]]
        gru = self.node.op
        states = edges[self.node.name].movedim(gru.time_dim, 0)
        states = states.flip(0) if gru.reverse else states
        first = edges[self.node.inputs[1]] if len(self.node.inputs) == 2 else torch.zeros_like(states[0])
        return torch.cat([first.unsqueeze(0), states[:-1]])

    def seen(self) -> Seen | None:
        """The shares, or None before any data."""
        if not self.outputs:
            return None
        clipped = self.values_clipped / self.values if self.values else None
        return Seen(self.outputs, self.clipped / self.outputs, clipped, float(self.used.double().mean()))


def _regridded(edge: str, program: Program) -> Iterator[tuple[str, Node]]:
    """The node that brought an edge to its grid, without its limits."""
    for node in program.nodes:
        if node.name == edge and isinstance(node.op, (ops.Quantise, ops.Rescale)):
            yield edge, replace(node, op=replace(node.op, lo=-_WIDE, hi=_WIDE))
        elif node.name == edge and isinstance(node.op, ops.Pad):
            yield from _regridded(node.inputs[0], program)

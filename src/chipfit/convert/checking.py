"""`check`: what of a network maps to a chip, within which limits, and what to do about the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from torch import nn

from chipfit.convert.check_table import report_lines
from chipfit.convert.plan import make_plan
from chipfit.convert.steps import Step, has_weights
from chipfit.convert.trace import Range
from chipfit.hardware import ArrayGeometry, Chip
from chipfit.vendor import chip as chip_named


@dataclass(frozen=True)
class Row:
    """One operation.

    Args:
        name: Its name in the converted network.
        kind: What it computes.
        operator: The chip's operator; empty on the CPU core.
        unit: 'array', 'digital', 'npu' or 'cpu'.
        macs: Multiplications with addition, for one sample.
        parameters: Its learned numbers.
        bytes: What these take on the chip: weights at the chip's width, every other number 4 bytes.
        rows: Rows of the analog array, doubled where the input is signed.
        columns: Columns of the analog array.
        problems: Limits that it breaks, or why it runs on the CPU core.
        suggestions: What to do about them.
        line: The user's line that asks for it.
    """

    name: str
    kind: str
    operator: str
    unit: str
    macs: int
    parameters: int
    bytes: int
    rows: int
    columns: int
    problems: tuple[str, ...]
    suggestions: tuple[str, ...]
    line: str


@dataclass(frozen=True)
class Report:
    """What `check` found; `print` shows it as a table as wide as the terminal, and so does `rich`, with colours.

    Args:
        chip: Name of the chip.
        rows: Every operation, in order; those that only move values too.
        folded: Batch norms that fold into the layer before them.
        array: Geometry of the analog array, where there is one.
    """

    chip: str
    rows: tuple[Row, ...]
    folded: tuple[str, ...]
    array: ArrayGeometry | None = None

    @property
    def macs(self) -> int:
        """Multiplications of the network for one sample."""
        return sum(row.macs for row in self.rows)

    @property
    def parameters(self) -> int:
        """Learned numbers of the network."""
        return sum(row.parameters for row in self.rows)

    @property
    def bytes(self) -> int:
        """What these take on the chip."""
        return sum(row.bytes for row in self.rows)

    @property
    def coverage(self) -> float:
        """Share of the multiplications that run on the chip, 0 to 1; 1 where there are none."""
        on_chip = sum(row.macs for row in self.rows if row.unit != "cpu")
        return on_chip / self.macs if self.macs else 1.0

    @property
    def problems(self) -> tuple[Row, ...]:
        """Operations that break a limit or run on the CPU core."""
        return tuple(row for row in self.rows if row.problems)

    @property
    def ok(self) -> bool:
        """Whether everything runs on the chip within its limits."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        totals = {"macs": self.macs, "parameters": self.parameters, "bytes": self.bytes}
        rows = [asdict(row) for row in self.rows]
        return {"chip": self.chip, "ok": self.ok, "coverage": self.coverage, **totals, "operations": rows}

    def summary(self) -> str:
        """The coverage line."""
        text = f"{100 * self.coverage:.1f} % of {self.macs:,} MACs on the chip"
        text += f"; {len(self.rows)} operations, {len(self.problems)} with problems"
        if self.array:
            cells = sum(row.rows * row.columns for row in self.rows)
            text += f"; {cells:,} of {self.array.rows * self.array.columns:,} cells (an estimate)"
        return text + (f"; {len(self.folded)} batch norms folded" if self.folded else "")

    def text(self, width: int | None = None) -> str:
        """The table as plain text.

        Args:
            width: Characters a line may have; None takes the terminal's, and 80 where there is none.
        """
        lines = report_lines(self, Console().width if width is None else width)
        return "\n".join(line.plain for line in lines)

    def __str__(self) -> str:
        return self.text()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from report_lines(self, options.max_width)


def check(
    model: nn.Module, chip: Chip | str, example: Any, *, input_range: Range | Sequence[Range] | None = None
) -> Report:
    """Say what of a network maps to a chip.

    Args:
        model: Any network that torch.fx can trace; it is not changed.
        chip: The chip, or its name.
        example: An input batch, or a tuple of the network's inputs.
        input_range: The smallest and the largest value that the inputs may have, or such a pair for each input; None
            for those of the example.

    Returns:
        The report.

    Raises:
        InvalidValueError: a range that is none.
        UnsupportedError: the network cannot be traced; the error names the line of the user's code.

    Source:
        docs/convert.md.

    Example:
        >>> import torch
        >>> from chipfit.vendor import chip
        >>> report = check(nn.Sequential(nn.Linear(1200, 10), nn.Softmax(1)), chip("wtm2101"), torch.rand(1, 1200))
        >>> report.summary()
        '100.0 % of 12,000 MACs on the chip; 2 operations, 2 with problems; 12,000 of 1,835,008 cells (an estimate)'
        >>> report.rows[0].suggestions
        ('Split the inputs in two and add the results.',)
    """
    chip = chip_named(chip)
    plan = make_plan(model, chip, example, input_range=input_range)
    counted: set[int] = set()
    rows = []
    for step in plan.steps:
        module = step.operation.module
        first = module is None or id(module) not in counted
        counted.add(id(module))
        rows.append(_row(step, chip, count_weights=first and has_weights(module)))
    return Report(chip.name, tuple(rows), plan.folded, chip.array)


def _row(step: Step, chip: Chip, count_weights: bool) -> Row:
    operation, mapped = step.operation, step.mapped
    weights = list(operation.module.parameters()) if operation.module is not None and count_weights else []
    parameters = sum(weight.numel() for weight in weights)
    wide = sum(weight.numel() for weight in weights if weight.dim() > 1)
    problems = mapped.problems if mapped.unit != "cpu" else (f"{mapped.reason}: runs on the CPU core",)
    return Row(
        operation.name,
        operation.kind,
        mapped.operator,
        mapped.unit,
        _macs(step),
        parameters,
        wide * max(chip.weight_bits) // 8 + 4 * (parameters - wide),
        mapped.rows if count_weights else 0,
        mapped.columns if count_weights else 0,
        problems,
        mapped.suggestions,
        step.line,
    )


def _macs(step: Step) -> int:
    """Multiplications with addition for one sample; those of activations and sums do not count."""
    operation, module = step.operation, step.operation.module
    output, batch = operation.output.shape, operation.shape[0] if operation.output.batched else 1
    if operation.kind in ("linear", "conv1d", "conv2d") and module is not None:
        return _per_sample(output, batch) * _weights_each(module)
    if operation.kind == "conv_transpose2d" and module is not None:
        return _per_sample(operation.shape, batch) * _weights_each(module)
    if operation.kind in ("gru", "gru_cell", "lstm", "LSTMCell", "RNN", "RNNCell") and module is not None:
        wide = sum(weight.numel() for weight in module.parameters() if weight.dim() == 2)
        first = bool(getattr(module, "batch_first", True))
        return wide * (operation.shape[1 if first else 0] if len(operation.shape) == 3 else 1)
    if operation.kind == "matmul":
        return _per_sample(output, batch) * operation.shape[-1]
    return 0


def _per_sample(shape: Sequence[int], batch: int) -> int:
    return math.prod(shape) // batch


def _weights_each(module: Any) -> int:
    """Weights of one output channel; of a transposed convolution, of one input channel."""
    return math.prod(int(size) for size in module.weight.shape[1:])

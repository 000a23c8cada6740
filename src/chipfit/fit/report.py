"""What `chipfit.calibrate` gives back: the choices, what quantisation cost, where, why, and what to do."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from torch import nn

from chipfit.fit.contract import ScaleChoice
from chipfit.fit.figures import LayerFigures

ENOUGH_DB = 20.0
"""An output below this is worth a warning."""
LEAST_DB = 15.0
"""An output below this is an error where the user asks for strictness."""
_SATURATED, _UNUSED, _SPREAD, _NOTABLE_DB, _FINE_DB = 0.01, 0.75, 16.0, 3.0, 30.0
_SHOWN, _WIDTH = 8, 140


@dataclass(frozen=True)
class Finding:
    """Something that a user should know of a calibrated network.

    Args:
        layer: Where; '' for the whole network.
        what: The figure.
        cause: Why, in a line.
        remedy: What to do, in a line.
        severe: Whether `strict=True` makes it an error.
    """

    layer: str
    what: str
    cause: str
    remedy: str
    severe: bool = True

    def __str__(self) -> str:
        """One line."""
        return f"{self.layer or 'whole network'}: {self.what}; {self.cause}. {self.remedy}"


@dataclass(frozen=True, eq=False)
class CalibrationReport(Sequence[ScaleChoice]):
    """The choices of a calibration in network order, as a sequence, and what they cost. `print` shows the cost.

    Args:
        choices: One entry per tensor.
        sqnr_db: Signal to quantisation-noise ratio of the network's output, in dB: the chip's arithmetic against float;
            NaN where it was not measured or something is not finite.
        layers: Figures of each layer, worst first.
        findings: What deserves a warning.
        samples: Samples that were compared.

    Example:
        >>> report = CalibrationReport((ScaleChoice("fc", "x", 3.0, 3.0, 64.0, 40.0),), 36.5, (), (), 64)
        >>> len(report), report[0].scale
        (1, 64.0)
        >>> print(report)
        Output against float: 36.5 dB (64 samples)
        1 scale set; nothing to warn of
    """

    choices: tuple[ScaleChoice, ...]
    sqnr_db: float = math.nan
    layers: tuple[LayerFigures, ...] = ()
    findings: tuple[Finding, ...] = ()
    samples: int = 0

    @overload
    def __getitem__(self, index: int) -> ScaleChoice: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[ScaleChoice, ...]: ...

    def __getitem__(self, index: int | slice) -> ScaleChoice | tuple[ScaleChoice, ...]:
        """A choice, or several."""
        return self.choices[index]

    def __len__(self) -> int:
        """Number of choices."""
        return len(self.choices)

    def __iter__(self) -> Iterator[ScaleChoice]:
        """The choices in network order."""
        return iter(self.choices)

    def __eq__(self, other: object) -> bool:
        """Whether the choices are the same, also those of a list."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        """By the choices."""
        return hash(self.choices)

    @property
    def biases_clipped(self) -> int:
        """Biases that the chip cannot hold, in all layers."""
        return sum(row.biases_clipped for row in self.layers)

    def table(self, most: int | None = _SHOWN) -> Table:
        """The layers, worst first.

        Args:
            most: Number of rows to show; None for all.
        """
        table = Table(box=None, pad_edge=False, header_style="")
        table.add_column("layer", no_wrap=True)
        for heading in ("SQNR dB", "lost here", "saturated", "bias clipped", "dead", "codes unused"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("likely cause; what helps", overflow="fold")
        for row in self.layers[:most]:
            cause, remedy = cause_of(row)
            table.add_row(
                row.layer,
                f"{row.sqnr_db:.1f}",
                f"{row.lost_db:.1f}" if row.lost_db else "",
                f"{row.saturated:.1%}",
                f"{row.biases_clipped} of {row.biases}" if row.biases else "",
                f"{row.dead} of {row.channels}" if row.channels else "",
                f"{row.unused:.0%}",
                f"{cause}; {remedy}" if cause else "",
            )
        return table

    def _head(self) -> str:
        if not self.samples:
            return "Not measured"
        return f"Output against float: {self.sqnr_db:.1f} dB ({self.samples} samples)"

    def _tail(self) -> list[str]:
        hidden = len(self.layers) - _SHOWN
        lines = [f"... and {hidden} better ones: report.table(None)"] if hidden > 0 else []
        count = f"{len(self)} scale{'' if len(self) == 1 else 's'} set"
        lines.append(f"{count}; {'to look at:' if self.findings else 'nothing to warn of'}")
        return lines + [f"  {'✗' if finding.severe else '!'} {finding}" for finding in self.findings]

    def __rich__(self) -> RenderableType:
        """The report for a terminal."""
        return Group(self._head(), *([self.table()] if self.layers else []), *map(escape, self._tail()))

    def __str__(self) -> str:
        """The report as plain text."""
        lines = [self._head()]
        if self.layers:
            console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
            with console.capture() as capture:
                console.print(self.table())
            lines += [line.rstrip() for line in capture.get().splitlines()]
        return "\n".join([*lines, *self._tail()])

    __repr__ = __str__


def cause_of(row: LayerFigures) -> tuple[str, str]:
    """The likely cause of a layer's noise, and what helps; '' where nothing stands out.

    Example:
        >>> cause_of(LayerFigures("fc", 12.0, saturated=0.2))[0]
        '20.0% of its outputs are clipped'
    """
    if math.isnan(row.sqnr_db):
        return "it gives NaN or infinity", "look at the data and at the parameters before it"
    if row.biases_clipped:
        return (
            "no scales hold its bias beside its weights",
            "train with the bias kept smaller (weight decay), or bring the layer's weights and bias closer in size",
        )
    if row.negatives:
        return (
            f"{row.negatives:.1%} of its inputs are negative, which it takes as 0",
            "convert with an example that has negative values, or put a ReLU before it",
        )
    if row.trouble is not None and row.sqnr_db <= _FINE_DB:
        return row.trouble
    if row.saturated > _SATURATED:
        return f"{row.saturated:.1%} of its outputs are clipped", "calibrate with more data, or with method='max'"
    if row.sqnr_db > _FINE_DB:
        return "", ""
    if row.lost_db and row.lost_db < _NOTABLE_DB:
        return ("", "") if row.sqnr_db > ENOUGH_DB else ("noise of the layers before it", "mend those first")
    if row.spread > _SPREAD:
        return (
            f"channels of its weight differ {row.spread:.0f}-fold in size",
            "chipfit.equalise(model) before calibrate, or train (QAT)",
        )
    if row.channels and row.dead > row.channels / 4:
        return f"{row.dead} of {row.channels} channels always give one code", "equalise, or train (QAT)"
    if row.unused > _UNUSED:
        return f"{row.unused:.0%} of its codes never occur", "few outliers widen the grid: method='percentile', or QAT"
    return "rounding of its own weight, input and output", "train (QAT), or more bits where the chip has them"


def findings_of(sqnr_db: float, layers: Sequence[LayerFigures], not_finite: Sequence[str]) -> tuple[Finding, ...]:
    """What deserves a warning: of the parameters, of single layers, of the whole.

    Args:
        sqnr_db: Of the whole; NaN where nothing finite was measured.
        layers: Figures of each layer.
        not_finite: Parameters with NaN or infinity.
    """
    found = [
        Finding(name, "NaN or infinite values", "training diverged, or the file is damaged", "Load other weights.")
        for name in not_finite
    ]
    for row in layers:
        cause, remedy = cause_of(row)
        if row.biases_clipped and row.worst_bias is not None:
            wanted, held = row.worst_bias
            what = f"{row.biases_clipped} of {row.biases} biases clipped, the worst from {wanted:.4g} to {held:.4g}"
            found.append(Finding(row.layer, what, cause, _sentence(remedy)))
        elif row.negatives:
            what = f"{row.negatives:.1%} of its inputs are negative"
            found.append(Finding(row.layer, what, "the converter saw none and takes them as 0", _sentence(remedy)))
    if layers and not sqnr_db >= ENOUGH_DB:
        worst = max(layers, key=_blame)
        cause, remedy = cause_of(worst)
        found.append(
            Finding(
                "",
                f"{sqnr_db:.1f} dB against float",
                f"most is lost in {worst.layer}: {cause or 'rounding'}",
                _sentence(remedy or "train (QAT)"),
                severe=not sqnr_db >= LEAST_DB,
            )
        )
    return tuple(found)


def _blame(row: LayerFigures) -> tuple[bool, bool, float]:
    """How much of the output's noise is likely to come from a layer; a known cause comes first."""
    known = row.biases_clipped or row.negatives or (row.trouble is not None and row.sqnr_db < ENOUGH_DB)
    return math.isnan(row.sqnr_db), bool(known), row.added


def _sentence(text: str) -> str:
    return f"{text}." if text.startswith("chipfit.") else f"{text[:1].upper()}{text[1:]}."


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that hold NaN or infinity, but for those that scales are kept in.

    Example:
        >>> fc = nn.Linear(2, 1)
        >>> fc.weight.data[0, 0] = math.nan
        >>> not_finite(fc)
        ['weight']
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, t in named if t.is_floating_point() and not bool(torch.isfinite(t).all())]

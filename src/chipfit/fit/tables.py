"""The recipe's results as tables for a terminal."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping

from rich.console import Console, RenderableType
from rich.table import Table

from chipfit.fit.evaluate import Evaluation, Score


def matrix_table(rows: Mapping[str, Evaluation], notes: Mapping[str, str] | None = None) -> Table:
    """The manual's matrix: rows = trained as, columns = evaluated as (manual section 2.7).

    Args:
        rows: Evaluation of each trained network, by its name.
        notes: A remark per row, shown under its name.
    """
    first = next(iter(rows.values()))
    table = Table(title="Loss and accuracy in %", show_lines=True)
    table.add_column("trained as")
    table.add_column("evaluated as:\nfloat", justify="right", no_wrap=True)
    table.add_column("\nquantised", justify="right", no_wrap=True)
    for level, score in first.noisy.items():
        table.add_column(f"+ noise {level:g}\n{len(score.metrics)} chips", justify="right", no_wrap=True)
    for name, row in rows.items():
        letter = name[0].lower()
        cells = [(f"{letter}1", row.in_float), (f"{letter}2", row.quantised)]
        cells += [(f"{letter}3", score) for score in row.noisy.values()]
        note = f"\n[dim]{notes[name]}" if notes and name in notes else ""
        texts = [_cell(label, score) for label, score in cells]
        if not math.isnan(row.sqnr_db):
            texts[1] += f"\n[dim]SQNR[/] {row.sqnr_db:.1f} dB"
        table.add_row(name + note, *texts)
    return table


def _cell(label: str, score: Score) -> str:
    text = f"[dim]L{label}[/] {score.loss:.4f}\n[dim]P{label}[/] [bold]{100 * score.metric:.2f}[/]"
    if len(score.metrics) > 1:
        text += f" ±{100 * score.std:.2f}\n[dim]worst[/] {100 * score.worst:.2f}"
    return text


def picture(*tables: RenderableType, title: str, width: int = 84) -> str:
    """Draw tables as an SVG picture that needs nothing from outside (no web fonts).

    Args:
        *tables: What to draw, one below the other.
        title: Shown in the frame.
        width: Width in characters.
    """
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    for table in tables:
        console.print(table)
    svg = console.export_svg(title=title)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)

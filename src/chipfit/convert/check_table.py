"""How a report of `check` looks in a terminal: a line an operation, totals, and below them each problem once.

Names of one module stand together under it where the terminal is too narrow for whole names. What is wrong with an
operation is a number in the last column; the notes below say what it stands for, for which operations, and what helps.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from chipfit.convert.checking import Report, Row

_WIDE = 100
"""Width from which there is room to say what each operation computes."""
_NAMED = 4
"""Operations that a note names; the others are found by its number in the table."""
_GAP = "  "


def compact(number: int) -> str:
    """A number with three digits; nothing for 0.

    Example:
        >>> compact(0), compact(999), compact(9_472), compact(118_013_952), compact(999_700)
        ('', '999', '9.47k', '118M', '1.00M')
    """
    if number < 1000:
        return str(number or "")
    value, unit = number / 1000, "k"
    for larger in ("M", "G", "T"):
        if value >= 999.5:
            value, unit = value / 1000, larger
    return f"{value:#.3g}".rstrip(".") + unit


@dataclass
class _Note:
    """A suggestion, or a problem without one, and the operations that it is for, by problem."""

    suggestion: str
    problems: dict[str, list[str]] = field(default_factory=dict)


def report_lines(report: Report, width: int) -> list[Text]:
    """The report as lines to print.

    Args:
        report: From `check`.
        width: Characters a line may have, 60 or more; long words of the report can still exceed it.

    Returns:
        The lines, without line ends.
    """
    notes, marks = _notes(report.rows)
    lines = [Text(line, "bold") for line in _wrapped(f"{report.chip}: {report.summary()}", width)]
    lines += [Text(), *_table(report, marks, width), Text()]
    for number, note in enumerate(notes, 1):
        lines += _note_lines(f"[{number}] ", note, width)
    return lines if notes else lines[:-1]


def _notes(rows: Sequence[Row]) -> tuple[list[_Note], list[str]]:
    """The notes, and the numbers of those of each row. The i-th suggestion of a row belongs to its i-th problem."""
    notes: dict[tuple[str, str], _Note] = {}
    marks = []
    for row in rows:
        mine = []
        for problem, suggestion in zip_longest(row.problems, row.suggestions, fillvalue=""):
            key = ("", suggestion) if suggestion else (problem, "")
            notes.setdefault(key, _Note(suggestion)).problems.setdefault(problem, []).append(row.name)
            mine.append(list(notes).index(key) + 1)
        marks.append(" ".join(map(str, dict.fromkeys(mine))))
    return list(notes.values()), marks


def _note_lines(number: str, note: _Note, width: int) -> Iterator[Text]:
    indent = " " * len(number)
    for problem, names in note.problems.items():
        more = len(names) - _NAMED
        listed = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        text = f"{problem}: {listed}" if problem else listed
        for line in _wrapped(text, width, number, indent):
            yield Text(line)
        number = indent
    if note.suggestion:
        for line in _wrapped(note.suggestion, width, f"{indent}→ ", f"{indent}  "):
            yield Text(line, "green")


def _wrapped(text: str, width: int, first: str = "", then: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=then, break_long_words=False, break_on_hyphens=False
    )


def _table(report: Report, marks: Sequence[str], width: int) -> Iterator[Text]:
    rows = report.rows
    operators = [row.operator or f"({row.kind})" for row in rows]
    columns = {
        "computes": [row.kind for row in rows],
        "chip operator": operators,
        "unit": [row.unit for row in rows],
        "MACs": [compact(row.macs) for row in rows],
        "params": [compact(row.parameters) for row in rows],
        "bytes": [compact(row.bytes) for row in rows],
        "array": [f"{row.rows}x{row.columns}" if row.rows else "" for row in rows],
        "see": list(marks),
    }
    totals = {"MACs": report.macs, "params": report.parameters, "bytes": report.bytes}
    sums = {heading: compact(total) for heading, total in totals.items()}
    unused = {"computes"} if width < _WIDE else set()
    unused |= {heading for heading in ("array", "see") if not any(columns[heading])}
    columns = {heading: cells for heading, cells in columns.items() if heading not in unused}
    sizes = {heading: max(map(len, (heading, sums.get(heading, ""), *cells))) for heading, cells in columns.items()}
    words = max((len(word) for operator in operators for word in operator.split()), default=0)
    whole, sizes["chip operator"] = sizes["chip operator"], max(words, len("chip operator"))
    room = width - sum(sizes.values()) - len(_GAP) * len(sizes)
    names = _under_headings([row.name for row in rows], room)
    longest = max(map(len, ("operation", *(tail for _, tail in names))))
    sizes["chip operator"] += max(0, min(whole - sizes["chip operator"], room - longest))

    def line(name: str, cells: dict[str, str], style: str = "") -> Text:
        text = name.ljust(longest)
        for heading, size in sizes.items():
            cell = cells.get(heading, "")
            number = heading in ("MACs", "params", "bytes", "array")
            text += _GAP + (cell.rjust(size) if number else cell.ljust(size))
        return Text(text.rstrip(), style)

    rule = Text("─" * (longest + sum(sizes.values()) + len(_GAP) * len(sizes)), "dim")
    yield line("operation", {heading: heading for heading in sizes}, "bold")
    yield rule
    shown = ""
    for i, (heading, name) in enumerate(names):
        if heading and heading != shown:
            yield Text(heading, "dim")
        shown = heading
        cells = {column: values[i] for column, values in columns.items()}
        first, *rest = _wrapped(cells["chip operator"], sizes["chip operator"]) or [""]
        yield line(name, cells | {"chip operator": first}, "red" if rows[i].unit == "cpu" else "")
        for part in rest:
            yield line("", {"chip operator": part})
    yield rule
    yield line("total", sums, "bold")


def _under_headings(names: Sequence[str], width: int) -> list[tuple[str, str]]:
    """Each name as heading and rest, indented below it: with as few levels in the heading as the width allows.

    Example:
        >>> _under_headings(["stem.conv", "stage.unit.conv"], 12)
        [('stem', '  conv'), ('stage', '  unit.conv')]
        >>> _under_headings(["stem.conv", "stage.unit.conv"], 20)
        [('', 'stem.conv'), ('', 'stage.unit.conv')]
    """
    paths = [name.split(".") for name in names]
    split: list[tuple[str, str]] = []
    for depth in range(max(map(len, paths), default=0)):
        split = []
        for path in paths:
            cut = min(depth, len(path) - 1)
            split.append((".".join(path[:cut]), ("  " if cut else "") + ".".join(path[cut:])))
        if all(len(tail) <= width for _, tail in split):
            break
    return split

"""Where the compiler put each layer on the array: `layers.txt`, read and held against the layers of a program.

A line is `x_start,x_end,y_start,y_end,bias_start,bias_end,G`: columns (outputs), weight rows and logical bias rows of
an array layer, ends included. A layer whose input has a sign has its rows twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chipfit.chips.witmem.mapper.rules import BIAS_UNIT, CELL_LIMIT
from chipfit.errors import FileFormatError
from chipfit.export.onnx.graph import refuse_broken

COLUMNS, WEIGHT_ROWS, BIAS_ROWS = 1024, 1792, 16
_FIELDS = ("x_start", "x_end", "y_start", "y_end", "bias_start", "bias_end", "G")
_LINE = re.compile(r"\s*-?\d{1,9}\s*(,\s*-?\d{1,9}\s*){6}")


@dataclass(frozen=True)
class SimulatedLayer:
    """An array layer as the simulator computes it.

    Args:
        name: The program's node.
        weight: Codes, int64, shape `(inputs, outputs)`.
        bias: Codes, multiples of 128, shape `(outputs,)`.
        g: What its sums are divided by.
        signed: Whether the layer can be driven in two passes, one on the negative codes of its input.
        lowest, highest: Range of its input codes.
    """

    name: str
    weight: Any
    bias: Any
    g: int
    signed: bool
    lowest: int
    highest: int


@dataclass(frozen=True)
class Place:
    """One line of `layers.txt`: columns, weight rows, bias rows and G of a layer, ends included.

    Example:
        >>> place = Place(0, 9, 896, 1791, 0, 3, 1024)
        >>> place.width, place.height, place.bias_count
        (10, 896, 4)
    """

    x_start: int
    x_end: int
    y_start: int
    y_end: int
    bias_start: int
    bias_end: int
    g: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.x_end - self.x_start + 1

    @property
    def height(self) -> int:
        """Weight rows."""
        return self.y_end - self.y_start + 1

    @property
    def bias_count(self) -> int:
        """Bias rows."""
        return self.bias_end - self.bias_start + 1


def read_placement(layers: str | Path, wanted: Sequence[SimulatedLayer]) -> list[Place]:
    """Read `layers.txt` for the layers of a program, in their order.

    Args:
        layers: The file, or its text (a str with a comma in it that names no file).
        wanted: The program's array layers.

    Returns:
        A place for each.

    Raises:
        FileFormatError: no such file, or lines that are broken, do not fit their layer or lie over one another; all of
            them are listed.
    """
    text, where = _text(layers)
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    found: list[str] = []
    places: list[tuple[str, Place]] = []
    for position, (number, line) in enumerate(numbered):
        if not _LINE.fullmatch(line):
            found.append(f"line {number}: {line.strip()[:60]!r}; allowed: seven integers {','.join(_FIELDS)}")
            continue
        place = Place(*(int(part) for part in line.split(",")))
        label = f"line {number}"
        problems = list(_range_problems(place))
        if position < len(wanted):
            label += f" ({wanted[position].name})"
            problems = problems or list(_layer_problems(place, wanted[position]))
        found += [f"{label}: {problem}" for problem in problems]
        found += [f"{label}: {problem}" for problem in _overlaps(place, places)]
        places.append((label, place))
    if len(numbered) != len(wanted):
        names = ", ".join(layer.name for layer in wanted)
        found.append(f"{len(numbered)} lines; allowed: {len(wanted)}, one for each array layer of the program: {names}")
    refuse_broken(found, "a placement of this program", where)
    return [place for _, place in places]


def _text(layers: str | Path) -> tuple[str, str]:
    """The text of a placement, and what to call it in errors."""
    if isinstance(layers, str) and ("\n" in layers or ("," in layers and not Path(layers).is_file())):
        return layers, "layers"
    try:
        return Path(layers).read_text(encoding="utf-8"), str(layers)
    except (OSError, ValueError) as error:
        raise FileFormatError(
            "cannot read the placement",
            given=str(error),
            allowed="layers.txt of the compiled network, or its text",
            where=str(layers),
        ) from error


def _range_problems(place: Place) -> Iterator[str]:
    """What lies outside the array."""
    for name, start, end, count in (
        ("x", place.x_start, place.x_end, COLUMNS),
        ("y", place.y_start, place.y_end, WEIGHT_ROWS),
        ("bias", place.bias_start, place.bias_end, BIAS_ROWS),
    ):
        if not 0 <= start <= end < count:
            yield f"{name}_start {start}, {name}_end {end}; allowed: 0 to {count - 1}, start before end"


def _layer_problems(place: Place, layer: SimulatedLayer) -> Iterator[str]:
    """What does not fit the layer."""
    inputs, outputs = layer.weight.shape
    if place.width != outputs:
        yield f"x {place.x_start} to {place.x_end} are {place.width} columns; allowed: {outputs}, the layer's outputs"
    heights = _heights(layer)
    if place.height not in heights:
        allowed = " or ".join(f"{height} ({why})" for height, why in heights.items())
        yield f"y {place.y_start} to {place.y_end} are {place.height} rows; allowed: {allowed}"
    elif place.height == inputs and layer.lowest < 0:
        yield f"{inputs} rows take no negative codes, and the layer's input has codes from {layer.lowest}"
    elif place.height == 2 * inputs and layer.highest > 127:
        yield f"{2 * inputs} rows take int8, and the layer's input has codes up to {layer.highest}"
    if place.g != layer.g:
        yield f"G {place.g}; allowed: {layer.g}, the program's"
    largest = max((abs(cell) for row in bias_rows(layer.bias, place.bias_count) for cell in row), default=0)
    if largest > CELL_LIMIT:
        needed = next(
            (
                str(rows)
                for rows in range(place.bias_count + 1, BIAS_ROWS + 1)
                if max(abs(cell) for row in bias_rows(layer.bias, rows) for cell in row) <= CELL_LIMIT
            ),
            f"more than {BIAS_ROWS}",
        )
        yield (
            f"bias {place.bias_start} to {place.bias_end} are {place.bias_count} rows, in which a cell would hold "
            f"{largest}; allowed: up to {CELL_LIMIT}, {needed} rows"
        )


def _heights(layer: SimulatedLayer) -> dict[int, str]:
    inputs = layer.weight.shape[0]
    heights = {inputs: "the layer's inputs"} if layer.lowest >= 0 or not layer.signed else {}
    return heights | ({2 * inputs: "[W; -W] of a signed input"} if layer.signed else {})


def _overlaps(place: Place, before: list[tuple[str, Place]]) -> Iterator[str]:
    def meet(first: tuple[int, int], second: tuple[int, int]) -> bool:
        return first[0] <= second[1] and second[0] <= first[1]

    for label, other in before:
        if not meet((place.x_start, place.x_end), (other.x_start, other.x_end)):
            continue
        if meet((place.y_start, place.y_end), (other.y_start, other.y_end)):
            yield f"its weights lie over those of {label}"
        if meet((place.bias_start, place.bias_end), (other.bias_start, other.bias_end)):
            yield f"its bias rows lie over those of {label}"


def bias_rows(bias: Any, count: int) -> list[list[int]]:
    """Cells of a bias spread over rows that are each driven with 128: equal shares, the remainder in the last.

    Args:
        bias: Codes, multiples of 128, shape `(outputs,)`.
        count: Rows.

    Example:
        >>> bias_rows([128 * 7, -128 * 7], 3)
        [[2, -2], [2, -2], [3, -3]]
    """
    units = [int(code) // BIAS_UNIT for code in bias]
    shares = [_half_away(unit, count) for unit in units]
    last = [unit - (count - 1) * share for unit, share in zip(units, shares, strict=True)]
    return [*([shares] * (count - 1)), last]


def _half_away(unit: int, count: int) -> int:
    """`unit / count` to the nearest integer, halves away from zero."""
    share = (2 * abs(unit) + count) // (2 * count)
    return share if unit >= 0 else -share

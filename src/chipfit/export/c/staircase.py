"""Functions of one integer that only ever rise, or only ever fall, as lines: a multiplication, a shift, a short list.

Float arithmetic turns a sum into a code by a staircase. Its steps are found on the function itself, by bisection; a
line whose steps come where these come, or a little earlier, is the staircase, but for the steps that are listed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from chipfit.export.c.builder import CBuilder
from chipfit.export.c.words import Row, Struct

Codes = Callable[[Any], Any]
"""From integers, one column a channel, to codes of the same shape."""
_MOST_STEPS = 1023
_MOST_MOVED = 63
_BAND = 4294967
"""LINE_BAND of the kernel."""
_NUDGES = (0.0, 0.25, 0.5, 0.75)
_PART = 22
"""Fraction bits of an origin, in slopes: a slope is 2^29 to 2^30."""


@dataclass(frozen=True)
class Staircase:
    """The steps of a function, channel by channel.

    Args:
        first: Lowest code.
        falls: Whether a channel's codes fall.
        steps: Where code `first + k` is reached, shape (steps, channels), in the direction in which codes rise; beyond
            the range where never.
    """

    first: int
    falls: Any
    steps: Any


def staircase(codes: Codes, low: Any, high: Any) -> Staircase | None:
    """Find every step of a function that is monotone in each channel.

    Args:
        codes: The function.
        low: Lowest number of each channel, int64.
        high: Highest, likewise.

    Returns:
        None where it has too many steps.

    Example:
        >>> found = staircase(lambda x: x // 4, np.array([0]), np.array([9]))
        >>> found.first, found.steps.ravel().tolist()
        (0, [4, 8])
    """
    ends = [codes(edge[None, :])[0] for edge in (low, high)]
    falls = ends[0] > ends[1]
    begin, end = np.where(falls, -high, low), np.where(falls, -low, high)
    sign = np.where(falls, -1, 1)
    first, last = int(np.minimum(*ends).min()), int(np.maximum(*ends).max())
    if last - first > _MOST_STEPS:
        return None
    wanted = np.arange(first + 1, last + 1)[:, None]
    below = np.broadcast_to(begin - 1, (len(wanted), len(begin))).copy()
    above = np.broadcast_to(end + 1, below.shape).copy()
    while (above - below > 1).any():
        middle = (above + below) >> 1
        reached = codes(np.clip(middle, begin, end) * sign) >= wanted
        reached |= middle > end
        reached &= middle >= begin
        above, below = np.where(reached, middle, above), np.where(reached, below, middle)
    return Staircase(first, falls, above)


@dataclass(frozen=True)
class _Line:
    slope: int
    origin: int
    part: int
    shift: int
    moved: tuple[tuple[int, int], ...]
    usual: int = 0


def _line(at: Any, numbers: Any, low: int, below: int, beyond: int, steps: int, odd: int | None = None) -> _Line | None:
    """A line through steps; None where none is near enough.

    Args:
        at: Where steps come, above `low` and below `beyond`.
        numbers: Which these are.
        low: Lowest number that comes.
        below: The step that is reached there already.
        beyond: One more than the highest number.
        steps: Number of the last step of all.
        odd: The parity of steps that come 0.001 later; None for none.
    """
    if not len(at):
        return _constant_line(below)
    points = [(int(x), int(k)) for x, k in zip(at, numbers, strict=True)]
    ends = ([(low, below)] if below > 0 else []), ([(beyond, points[-1][1] + 1)] if points[-1][1] < steps else [])
    found = []
    real = numbers + (0.001 if odd is not None else 0.0) * (numbers % 2 == odd)
    for slope in _slopes(at.astype(np.float64), real, beyond - low):
        for nudge in _NUDGES:
            made = _through(points, *ends, slope, nudge, max(abs(low), abs(beyond)), odd)
            if made is not None:
                found.append(made)
    return min(found, key=lambda line: len(line.moved), default=None)


def _through(
    points: list[tuple[int, int]],
    floor: list[tuple[int, int]],
    ceiling: list[tuple[int, int]],
    slope_: float,
    nudge: float,
    largest: int,
    odd: int | None,
) -> _Line | None:
    """The line of a slope that reaches no step later than it comes, and by `nudge` numbers earlier than it could."""
    if slope_ <= 0 or slope_ >= 0.49:
        return None
    shift = int(np.floor(29 - np.log2(slope_)))
    slope = round(slope_ * 2.0**shift)
    if not 1 << 28 <= slope < 1 << 30 or not 32 <= shift <= 60:
        return None
    late = _BAND << (shift - 32) if odd is not None else 0
    places = {k: (k << shift) + late * (k % 2 == odd) for _, k in [*points, *floor, *ceiling]}
    need = min(slope * x - places[k] for x, k in [*points, *floor]) - int(nudge * slope)
    origin = -(-need // slope)
    part = -(-(slope * origin - need) // (1 << _PART))
    if part > 255 or abs(origin) + largest + 64 >= 2**31:
        return None
    base = (part << _PART) - slope * origin
    early = {k: x + (base - places[k]) // slope for x, k in [*points, *floor, *ceiling]}
    counts = np.bincount([max(early[k], 0) for _, k in points])
    usual = int(counts.argmax())
    moved = [(k, early[k]) for _, k in points if early[k] != usual]
    moved += [(k, early[k]) for _, k in floor if early[k] < usual]
    moved += [(k, early[k]) for _, k in ceiling if early[k] > usual]
    if any(not 0 <= by <= _MOST_MOVED - 4 for _, by in moved):
        return None
    if max([usual, *(by for _, by in moved)]) * slope * 2 >= 1 << shift:
        return None  # two steps could be meant
    return _Line(slope, origin, part, shift - 32, tuple(moved), usual)


def _slopes(at: Any, numbers: Any, length: int) -> list[float]:
    """Slopes to try: that with the smallest sum of squares, and that with the smallest largest error."""
    found = [_slope(at, numbers, length)]
    if len(at) > 2:
        centred = at - at.mean()
        found.append(float((centred * (numbers - numbers.mean())).sum() / (centred * centred).sum()))
    return found


def _slope(at: Any, numbers: Any, length: int) -> float:
    """The slope with which the steps are nearest to a line: the error is convex in it."""
    if len(at) == 1 or at[-1] == at[0]:
        return 0.25 / length
    middle = (numbers[-1] - numbers[0]) / (at[-1] - at[0])

    def spread(slope: float) -> float:
        error = numbers - slope * at
        return float(error.max() - error.min())

    wide = 1.0 / (at[-1] - at[0])
    low, high = middle - wide, middle + wide
    for _ in range(80):
        third = (high - low) / 3
        if spread(low + third) < spread(high - third):
            high -= third
        else:
            low += third
    return float((low + high) / 2)


def line_row(b: CBuilder, stairs: Staircase, low: Any, high: Any, bend: Any = None, band: bool = False) -> Row | None:
    """The staircase as a step of C.

    Args:
        b: Keeps the constants.
        stairs: The staircase.
        low: Lowest number of each channel.
        high: Highest, likewise.
        band: Whether steps to odd codes come 0.001 later.
        bend: Where a channel's second line begins, in the direction of its own numbers; None for one line.

    Returns:
        None where some channel is not near enough to its lines.
    """
    count = len(low)
    numbers = np.arange(1, len(stairs.steps) + 1)
    odd = (stairs.first + 1) % 2 if band else None
    lines: list[_Line] = []
    for c in range(count):
        sign = -1 if stairs.falls[c] else 1
        begin, end = (-high[c], -low[c]) if sign < 0 else (low[c], high[c])
        at = stairs.steps[:, c]
        pieces = [(int(begin), int(end) + 1)]
        if bend is not None:
            edge = min(max(sign * int(bend[c]) + (1 if sign < 0 else 0), int(begin)), int(end) + 1)
            pieces = [(int(begin), edge), (edge, int(end) + 1)][::sign]
        for first, beyond in pieces:
            below, use = int((at <= first).sum()), (at > first) & (at < beyond)
            made = _line(at[use], numbers[use], first, below, beyond, len(numbers), odd)
            if made is None:
                return None
            lines.append(_turned(made) if sign < 0 else made)
    row = _row(b, lines, stairs, bend, band)
    return row if row is not None and _equal(lines, stairs, low, high, bend, odd) else None


def _constant_line(code: int) -> _Line:
    """A line that is one code everywhere: slope 0, and the code for an origin."""
    return _Line(0, code, 0, 0, ())


def _turned(line: _Line) -> _Line:
    return line if line.slope == 0 else _Line(-line.slope, -line.origin, line.part, line.shift, line.moved, line.usual)


def _earlier(line: _Line, by: int) -> _Line:
    """A line that comes to every step by so many numbers earlier."""
    if not line.slope:
        return line
    origin = line.origin - by if line.slope > 0 else line.origin + by
    moved = tuple((k, own + by) for k, own in line.moved)
    return _Line(line.slope, origin, line.part, line.shift, moved, line.usual + by)


def _row(b: CBuilder, lines: list[_Line], stairs: Staircase, bend: Any, band: bool) -> Row | None:
    usual = max([0, *(line.usual for line in lines if line.slope)])
    lines[:] = [_earlier(line, usual - line.usual) for line in lines]
    moved = [by << 10 | k for line in lines for k, by in line.moved]
    starts = np.cumsum([0, *(len(line.moved) for line in lines)])
    most = max([usual, *(by for line in lines for _, by in line.moved)])
    if most > _MOST_MOVED or len(moved) >= 1 << 16:
        return None  # an entry has 6 bits for it, and 16 say where a line's begin
    struct = Struct(
        "line_t",
        (
            b.table([line.slope for line in lines], "int32"),
            b.table([line.origin for line in lines], "int32"),
            None if bend is None else b.table(bend, "int32"),
            b.table([line.part for line in lines], "uint8"),
            b.table([line.shift for line in lines], "uint8"),
            b.table(starts, "uint16") if moved else None,
            b.table(moved, "uint16") if moved else None,
            int(band),
            usual,
            most,
            int(len(stairs.falls) > 1),
            int(all(line.slope for line in lines)),
        ),
    )
    return Row("line", stairs.first, len(stairs.steps), t=struct)


def _codes_by_line(lines: list[_Line], x: Any, bend: Any, steps: int, odd: int | None) -> Any:
    """What the C gives, in Python: `x` has one column a channel."""
    found = np.zeros(x.shape, np.int64)
    for c in range(x.shape[1]):
        own = [lines[c]] if bend is None else lines[2 * c : 2 * c + 2]
        made = []
        for line in own:
            if line.slope == 0:
                made.append(np.full(len(x), line.origin))
                continue
            y = line.slope * (x[:, c] - line.origin) + (line.part << _PART)
            k = np.clip(y >> (32 + line.shift), 0, steps)
            rest = y - (k << (32 + line.shift))
            if odd is not None:
                rest -= (_BAND << line.shift) * (k % 2 == odd)
            by = np.full(steps + 1, line.usual, np.int64)
            for number, far in line.moved:
                by[number] = far
            made.append(k - ((k > 0) & (rest < abs(line.slope) * by[k])))
        found[:, c] = made[0] if bend is None else np.where(x[:, c] >= bend[c], made[1], made[0])
    return found


def _equal(lines: list[_Line], stairs: Staircase, low: Any, high: Any, bend: Any, odd: int | None) -> bool:
    """Whether the lines give the staircase: on either side of every step, and at the ends."""
    sign = np.where(stairs.falls, -1, 1)
    around = [stairs.steps + d for d in (-9, -5, -3, -2, -1, 0, 1, 2, 3, 5)]
    ends = [np.where(stairs.falls, -high, low)[None, :], np.where(stairs.falls, -low, high)[None, :]]
    if bend is not None:
        around += [(sign * bend + d)[None, :] for d in (-1, 0, 1)]
    rising = np.clip(np.concatenate([*around, *ends]), ends[0], ends[1])
    wanted = np.stack([np.searchsorted(stairs.steps[:, c], rising[:, c], "right") for c in range(len(low))], 1)
    return bool((_codes_by_line(lines, rising * sign, bend, len(stairs.steps), odd) == wanted).all())

"""Views: how an edge's numbers lie in memory. Most moves of numbers are another view of the same ones, and no code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

TYPES = {"int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "float32": 4}
"""Bytes by type; float32 numbers are held as their bits."""
INT32 = (-(2**31), 2**31 - 1)
_RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
    "int32": INT32,
}


def type_of(low: int, high: int) -> str:
    """The narrowest type that holds a range of codes; 'int32' where none does.

    Example:
        >>> type_of(0, 255), type_of(-1, 255)
        ('uint8', 'int16')
    """
    return next((name for name, (lo, hi) in _RANGES.items() if lo <= low and high <= hi), "int32")


@dataclass(eq=False)
class Buffer:
    """A piece of the arena.

    Args:
        type: Of its elements.
        count: How many.
        name: The edge that it was made for.

    Attributes:
        first, last: The steps that write it first and read it last.
        offset: In bytes, once it is planned.
        alias_of: The buffer whose place it takes.
    """

    type: str
    count: int
    name: str = ""
    first: int = 0
    last: int = 0
    offset: int = 0
    alias_of: Buffer | None = None

    @property
    def root(self) -> Buffer:
        """The buffer in whose place it lies."""
        return self if self.alias_of is None else self.alias_of.root

    @property
    def bytes(self) -> int:
        """Size, rounded up so that what comes after it stays aligned."""
        return -(-self.count * TYPES[self.type] // 16) * 16


@dataclass(eq=False)
class Table:
    """Constants: numpy values of one type."""

    name: str
    type: str
    values: Any = field(repr=False)

    @property
    def bytes(self) -> int:
        """Size."""
        return int(self.values.nbytes)


@dataclass(frozen=True)
class Border:
    """What a padding adds around spatial axes: before and after by axis, and the code that it holds."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: int


@dataclass(frozen=True, eq=False)
class View:
    """Numbers by shape and strides.

    Args:
        base: Where they lie.
        offset: Of the first, in elements.
        shape: With the batch, which is 1.
        strides: In elements.
        low, high: Range of the codes; (0, 0) for float32.
        pending: Steps that whoever loads the numbers has to apply: `Row`s.
        border: A padding that whoever reads has to see.
        channel: Axis of the parameters of the pending steps, or None.
    """

    base: Buffer | Table
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    low: int = 0
    high: int = 0
    pending: tuple[Any, ...] = ()
    channel: int | None = None
    border: Border | None = None

    @property
    def type(self) -> str:
        """Type of the elements."""
        return self.base.type

    @property
    def at(self) -> int:
        """Bytes from the arena's beginning, or from that of its table, to the first number."""
        begin = self.base.offset if isinstance(self.base, Buffer) else 0
        return begin + self.offset * TYPES[self.type]

    @property
    def full(self) -> tuple[int, ...]:
        """Shape with the border."""
        if self.border is None:
            return self.shape
        lead = len(self.shape) - len(self.border.before)
        spatial = zip(self.shape[lead:], self.border.before, self.border.after, strict=True)
        return (*self.shape[:lead], *(size + b + a for size, b, a in spatial))

    def moved(self, shape: tuple[int, ...], strides: tuple[int, ...], offset: int | None = None) -> View:
        """The same numbers under another shape."""
        return replace(self, shape=shape, strides=strides, offset=self.offset if offset is None else offset)


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of numbers that lie one after another.

    Example:
        >>> row_major((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def ordered(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of numbers whose axes lie in an order, the innermost last.

    Example:
        >>> ordered((1, 8, 4, 5), (0, 2, 3, 1))
        (160, 1, 40, 8)
    """
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def order_of(view: View) -> tuple[int, ...]:
    """Axes of a view by stride, the innermost last.

    Example:
        >>> order_of(View(Buffer("int8", 160), 0, (1, 8, 4, 5), (160, 1, 40, 8)))
        (0, 2, 3, 1)
    """
    return tuple(sorted(range(len(view.shape)), key=lambda i: (-abs(view.strides[i]), view.shape[i] > 1, i)))


def channels_last(rank: int) -> tuple[int, ...]:
    """Order of axes with axis 1 innermost."""
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))


def reshaped(view: View, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides under a new shape without moving anything; None where that cannot be.

    Example:
        >>> reshaped(View(Buffer("int8", 24), 0, (2, 3, 4), (12, 4, 1)), (6, 4))
        (4, 1)
        >>> reshaped(View(Buffer("int8", 24), 0, (2, 3, 4), (1, 8, 2)), (6, 4)) is None
        True
    """
    joined: list[list[int]] = []  # runs of axes that lie one after another: size, innermost stride
    for size, step in zip(view.shape, view.strides, strict=True):
        if size != 1:
            if joined and joined[-1][1] == size * step:
                joined[-1] = [joined[-1][0] * size, step]
            else:
                joined.append([size, step])
    strides = []
    for size in shape:
        if size == 1:
            strides.append(0)
            continue
        if not joined or joined[0][0] % size:
            return None
        rest = joined[0][0] // size
        strides.append(joined[0][1] * rest)
        joined[0][0] = rest
        if rest == 1:
            joined.pop(0)
    return tuple(strides)


@dataclass(frozen=True)
class Loop:
    """Axes that views go through together, after those that lie one after another in all of them became one.

    Args:
        shape: Axes, at least one.
        strides: Strides, one tuple a view.
        channel: Which axis the parameters follow, or -1.
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    channel: int = -1


def collapsed(
    shape: tuple[int, ...], strides: list[tuple[int, ...]], channel: int | None = None, keep: tuple[int, ...] = ()
) -> Loop:
    """Join axes wherever all views allow it; the first view decides their order.

    Args:
        shape: The axes.
        strides: One tuple a view.
        channel: An axis that stays by itself.
        keep: More such.

    Example:
        >>> collapsed((1, 2, 3, 4), [(24, 12, 4, 1), (24, 12, 4, 1)])
        Loop(shape=(24,), strides=((1,), (1,)), channel=-1)
        >>> collapsed((1, 2, 3), [(6, 1, 2), (6, 3, 1)], channel=1)
        Loop(shape=(3, 2), strides=((2, 1), (1, 3)), channel=1)
    """
    alone = {*keep, *([] if channel is None else [channel])}
    axes = sorted((i for i in range(len(shape)) if shape[i] != 1 or i in keep), key=lambda i: -abs(strides[0][i]))
    groups: list[list[int]] = []
    for axis in axes:
        last = groups[-1][-1] if groups else None
        joins = (
            last is not None
            and not alone & {axis, last}
            and all(steps[last] == steps[axis] * shape[axis] for steps in strides)
        )
        if joins:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    made = tuple(math.prod(shape[axis] for axis in group) for group in groups) or (1,)
    found = tuple(tuple(steps[group[-1]] for group in groups) or (0,) for steps in strides)
    at = [i for i, group in enumerate(groups) if group == [channel]]
    return Loop(made, found, at[0] if at else -1)

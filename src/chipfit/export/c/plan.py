"""Where buffers lie in the arena: as little memory as what lives at one time needs, if the search finds it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from chipfit.export.c.views import Buffer

ROUNDS = 200
"""Orders that are tried beyond the greedy ones."""


@dataclass(frozen=True)
class Plan:
    """What a plan came to.

    Args:
        bytes: Size of the arena.
        lower_bound: Largest sum of what lives at one step: no plan needs less.
        peak: That step.
        living: Names of the buffers that live there.
    """

    bytes: int
    lower_bound: int
    peak: int
    living: tuple[str, ...]


def _placed(order: Sequence[Buffer]) -> tuple[int, dict[int, int]]:
    """Put buffers in this order each into the smallest gap that fits; the size, and offsets by identity."""
    offsets: dict[int, int] = {}
    done: list[Buffer] = []
    size = 0
    for buffer in order:
        taken = sorted(
            (offsets[id(other)], offsets[id(other)] + other.bytes)
            for other in done
            if other.first <= buffer.last and buffer.first <= other.last
        )
        best, gap_of_best, at = None, None, 0
        for begin, end in taken:
            gap = begin - at
            if gap >= buffer.bytes and (gap_of_best is None or gap < gap_of_best):
                best, gap_of_best = at, gap
            at = max(at, end)
        offsets[id(buffer)] = at if best is None else best
        size = max(size, offsets[id(buffer)] + buffer.bytes)
        done.append(buffer)
    return size, offsets


def plan(buffers: Sequence[Buffer], steps: int) -> Plan:
    """Give every buffer its offset.

    Args:
        buffers: With the steps in which they live.
        steps: How many there are.

    Example:
        >>> a, b, c = Buffer("int8", 64, "a", 0, 1), Buffer("int8", 32, "b", 1, 2), Buffer("int8", 64, "c", 2, 3)
        >>> plan([a, b, c], 4).bytes, a.offset, b.offset, c.offset
        (96, 0, 64, 0)
    """
    live = [sum(b.bytes for b in buffers if b.first <= step <= b.last) for step in range(max(steps, 1))]
    bound = max(live, default=0)
    peak = live.index(bound) if live else 0
    greedy = [
        sorted(buffers, key=lambda b: -b.bytes),
        sorted(buffers, key=lambda b: (b.first, -b.bytes)),
        sorted(buffers, key=lambda b: (-b.bytes * (b.last - b.first + 1), b.first)),
    ]
    best, found = min((_placed(order) for order in greedy), key=lambda placed: placed[0])
    order, drawn = list(greedy[0]), random.Random(0)
    size = _placed(order)[0]
    for _ in range(ROUNDS if len(buffers) > 1 else 0):
        if best == bound:
            break
        tried = list(order)
        i, j = drawn.randrange(len(tried)), drawn.randrange(len(tried))
        tried.insert(j, tried.pop(i))
        new, offsets = _placed(tried)
        if new <= size:
            order, size = tried, new
        if new < best:
            best, found = new, offsets
    for buffer in buffers:
        buffer.offset = found[id(buffer)]
    living = tuple(b.name for b in buffers if b.first <= peak <= b.last)
    return Plan(best, bound, peak, living)

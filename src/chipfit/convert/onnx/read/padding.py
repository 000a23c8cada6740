"""Windows that move over a tensor, with their borders; and borders of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import UnfitError, Value


class Window(NamedTuple):
    """What an operator looks at; one number a spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]


def spatial(
    x: Value,
    kernel: Sequence[int],
    strides: list[int] | None,
    dilations: list[int] | None,
    pads: list[int] | None,
    auto_pad: str,
) -> Window:
    """The windows of an operator.

    Args:
        x: What they move over.
        kernel: Their size.
        strides: Distance from one to the next, 1 by default.
        dilations: Distance of their places, 1 by default.
        pads: Border, first before then after all axes, 0 by default.
        auto_pad: Or how to find it.

    Raises:
        UnfitError: another number of axes, or sizes that are no sizes.
        RefusedError: an unknown auto_pad.
    """
    known("auto_pad", auto_pad, ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
    rank = len(kernel)
    step, spread = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    border = tuple(pads or (0,) * (2 * rank))
    if not 1 <= rank <= 3 or x.rank != rank + 2:
        raise UnfitError(f"a window of {rank} axes for a tensor of {x.rank}")
    if (len(step), len(spread), len(border)) != (rank, rank, 2 * rank):
        raise UnfitError(f"strides, dilations and pads for other than {rank} axes")
    if min(*kernel, *step, *spread) < 1 or min(border) < 0 or max(*kernel, *step, *spread, *border) > 1 << 20:
        raise UnfitError("sizes, strides or pads of a window that are none")
    found = tuple(zip(border[:rank], border[rank:], strict=True))
    if auto_pad == "VALID":
        found = ((0, 0),) * rank
    elif auto_pad != "NOTSET":
        found = tuple(
            _same(x.size(2 + i), kernel[i], step[i], spread[i], auto_pad == "SAME_LOWER") for i in range(rank)
        )
    return Window(tuple(kernel), step, spread, found)


def _same(size: int, kernel: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """The border with which `ceil(size / stride)` windows fit; of an odd one the greater half first if `lower`."""
    total = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return (total - total // 2, total // 2) if lower else (total // 2, total - total // 2)


def edges_of(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """A border in the order of `torch.nn.functional.pad`, the last axis first.

    Example:
        >>> edges_of(((1, 2), (3, 4)))
        (3, 4, 1, 2)
    """
    return tuple(edge for pair in pads[::-1] for edge in pair)


def padded(c: Builder, x: Value, pads: Sequence[tuple[int, int]], value: float) -> tuple[Value, tuple[int, ...]]:
    """What a layer is given and its own padding: the same before and after, or a border put on before it."""
    if all(before == after for before, after in pads):
        return x, tuple(before for before, _ in pads)
    edges = edges_of(pads)
    return c.call(F.pad, x, edges) if value == 0 else c.call(F.pad, x, edges, value=value), (0,) * len(pads)


_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@reads("Pad")
def _pad(
    c: Builder,
    x: Value,
    given: Value | None = None,
    fill: Value | None = None,
    axes: Value | None = None,
    *,
    mode: str = "constant",
    pads: list[int] | None = None,
    value: float = 0.0,
) -> Value:
    known("mode", mode, ("constant", *_MODES))
    if (given is None) == (pads is None):
        raise UnfitError("pads are given twice or not at all")
    listed = c.ints(given) if given is not None else list(pads or ())
    chosen = [x.axis(axis) for axis in c.ints(axes)] if axes is not None else list(range(x.rank))
    if len(listed) != 2 * len(chosen) or len(set(chosen)) != len(chosen) or max(map(abs, listed), default=0) > 1 << 20:
        raise UnfitError(f"{len(listed)} pads for {len(chosen)} axes")
    pairs = dict(zip(chosen, zip(listed[: len(chosen)], listed[len(chosen) :], strict=True), strict=True))
    pairs = {axis: pair for axis, pair in pairs.items() if pair != (0, 0)}
    if not pairs:
        return x
    if mode == "constant":
        edges = tuple(edge for axis in range(x.rank - 1, min(pairs) - 1, -1) for edge in pairs.get(axis, (0, 0)))
        number = value if fill is None else c.number(fill)
        return c.call(F.pad, x, edges) if number == 0 else c.call(F.pad, x, edges, value=number)
    if mode != "wrap" and x.rank in (3, 4) and x.floats and min(pairs) >= 2 and min(map(min, pairs.values())) >= 0:
        edges = tuple(edge for axis in range(x.rank - 1, 1, -1) for edge in pairs.get(axis, (0, 0)))
        if mode == "edge" or all(max(pair) < x.size(axis) for axis, pair in pairs.items()):
            return c.call(F.pad, x, edges, mode=_MODES[mode])
    for axis, pair in pairs.items():  # each place by its number
        places = np.arange(x.size(axis))
        cut = places[max(-pair[0], 0) : len(places) - max(-pair[1], 0)]
        index = np.pad(cut, [max(edge, 0) for edge in pair], mode)  # type: ignore[call-overload]  # a known mode
        x = c.call("index_select", x, axis, c.known(torch.from_numpy(index)))
    return x

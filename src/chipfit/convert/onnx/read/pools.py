"""Pools."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.padding import Window, edges_of, spatial
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import UnfitError, Value

_MAX: tuple[Any, ...] = (None, F.max_pool1d, F.max_pool2d, F.max_pool3d)
_MEAN: tuple[Any, ...] = (None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_GLOBAL_MEAN: tuple[Any, ...] = (None, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_GLOBAL_MAX: tuple[Any, ...] = (None, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)


def _rounded_up(x: Value, window: Window) -> Window:
    """The windows with a border so wide that the last, partial ones are whole; none begins behind the given border."""
    pads = []
    for i, (before, after) in enumerate(window.pads):
        size, extent = x.size(2 + i), (window.kernel[i] - 1) * window.dilations[i] + 1
        stride = window.strides[i]
        steps = -(-(size + before + after - extent) // stride)
        if steps * stride >= size + before:
            steps -= 1
        pads.append((before, max(after, steps * stride + extent - size - before)))
    return window._replace(pads=tuple(pads))


def _in_the_pool(window: Window) -> bool:
    """Whether torch's pool takes the border as its own."""
    return all(a == b and a <= k // 2 for (a, b), k in zip(window.pads, window.kernel, strict=True))


@reads("MaxPool")
def _max(
    c: Builder,
    x: Value,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
) -> Value:
    window = spatial(x, kernel_shape, strides, dilations, pads, auto_pad)
    up = bool(ceil_mode) and auto_pad == "NOTSET"
    plain = _in_the_pool(window)
    if up and not plain:
        window, up = _rounded_up(x, window), False
    if not plain:
        x = c.call(F.pad, x, edges_of(window.pads), value=float("-inf"))
        window = window._replace(pads=((0, 0),) * len(kernel_shape))
    padding = tuple(a for a, _ in window.pads)
    return c.call(_MAX[len(kernel_shape)], x, window.kernel, window.strides, padding, window.dilations, ceil_mode=up)


@reads("AveragePool")
def _average(
    c: Builder,
    x: Value,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Value:
    window = spatial(x, kernel_shape, strides, dilations, pads, auto_pad)
    known("dilations", max(window.dilations), (1,))
    rank, pool = len(kernel_shape), _MEAN[len(kernel_shape)]
    up = bool(ceil_mode) and auto_pad == "NOTSET"
    partial = up and _rounded_up(x, window).pads != window.pads
    if _in_the_pool(window) and not (partial and any(map(any, window.pads))):
        padding, options = tuple(a for a, _ in window.pads), {"count_include_pad": bool(count_include_pad)}
        return c.call(pool, x, window.kernel, window.strides, padding, ceil_mode=up, **options)
    whole = _rounded_up(x, window) if up else window
    edges = edges_of(whole.pads)
    sizes = [x.size(2 + i) for i in range(rank)]
    ones = torch.ones(1, 1, *sizes)
    if count_include_pad:
        inside = F.pad(ones, edges_of(window.pads), value=1.0)
        beyond = [(0, w[1] - g[1]) for w, g in zip(whole.pads, window.pads, strict=True)]
        counted = F.pad(inside, edges_of(beyond))
    else:
        counted = F.pad(ones, edges)
    share = pool(counted, window.kernel, window.strides)
    if not bool((share > 0).all()):
        raise UnfitError("a window that lies in the border as a whole")
    mean = c.call(pool, c.call(F.pad, x, edges), window.kernel, window.strides)
    return c.call(operator.mul, mean, c.known(1 / share))


@reads("GlobalAveragePool", functions=_GLOBAL_MEAN)
@reads("GlobalMaxPool", functions=_GLOBAL_MAX)
def _global(c: Builder, x: Value, *, functions: tuple[Any, ...]) -> Value:
    if not 3 <= x.rank <= 5:
        raise UnfitError(f"a pool over the spatial axes of a tensor with {x.rank}")
    return c.call(functions[x.rank - 2], x, 1)

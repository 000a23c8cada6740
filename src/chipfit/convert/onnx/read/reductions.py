"""Reductions over axes."""

from __future__ import annotations

import operator
from typing import Any

import torch

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.moves import chosen_axes
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import Value


def _axes(c: Builder, x: Value, given: Value | None, axes: list[int] | None, noop: int) -> list[int]:
    chosen = chosen_axes(c, given, axes)
    if not chosen:
        return [] if noop else list(range(x.rank))
    return sorted({x.axis(axis) for axis in chosen})


@reads("ReduceMean", before=None, function=torch.mean, after=None)
@reads("ReduceSum", before=None, function=torch.sum, after=None)
@reads("ReduceMax", before=None, function=torch.amax, after=None)
@reads("ReduceMin", before=None, function=torch.amin, after=None)
@reads("ReduceLogSumExp", before=None, function=torch.logsumexp, after=None)
@reads("ReduceSumSquare", before=torch.square, function=torch.sum, after=None)
@reads("ReduceL1", before=torch.abs, function=torch.sum, after=None)
@reads("ReduceL2", before=torch.square, function=torch.sum, after=torch.sqrt)
@reads("ReduceLogSum", before=None, function=torch.sum, after=torch.log)
def _reduce(
    c: Builder,
    x: Value,
    given: Value | None = None,
    *,
    axes: list[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
    before: Any,
    function: Any,
    after: Any,
) -> Value:
    chosen = _axes(c, x, given, axes, noop_with_empty_axes)
    made = x if before is None else c.call(before, x)
    if chosen:
        made = c.call(function, made, chosen, bool(keepdims))
    return made if after is None else c.call(after, made)


@reads("ReduceProd")
def _product(
    c: Builder,
    x: Value,
    given: Value | None = None,
    *,
    axes: list[int] | None = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Value:
    for axis in _axes(c, x, given, axes, noop_with_empty_axes)[::-1]:
        x = c.call(torch.prod, x, axis, bool(keepdims))
    return x


@reads("ArgMax", function=torch.argmax)
@reads("ArgMin", function=torch.argmin)
def _place(
    c: Builder, x: Value, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0, function: Any
) -> Value:
    known("select_last_index", select_last_index, (0,))
    return c.call(function, x, x.axis(axis), bool(keepdims))


@reads("CumSum")
def _running(c: Builder, x: Value, axis: Value, *, exclusive: int = 0, reverse: int = 0) -> Value:
    at = x.axis(int(c.number(axis)))
    y = c.call("flip", x, at) if reverse else x
    total = c.call(torch.cumsum, y, at)
    if exclusive:
        total = c.call(operator.sub, total, y)
    return c.call("flip", total, at) if reverse else total

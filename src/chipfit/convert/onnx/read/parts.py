"""Parts of tensors: slices, and places by their numbers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.weighted import filled, unset
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import UnfitError, Value


@reads("Slice")
def _slice(
    c: Builder,
    x: Value,
    first: Value | None = None,
    last: Value | None = None,
    along: Value | None = None,
    step: Value | None = None,
    *,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
) -> Value:
    begins, stops = _lists(first, starts), _lists(last, ends)
    steps = c.ints(step) if step is not None else [1] * len(begins[0])
    chosen = c.ints(along) if along is not None else axes if axes is not None else list(range(len(begins[0])))
    if not len(begins[0]) == len(stops[0]) == len(steps) == len(chosen) or 0 in steps:
        raise UnfitError("starts, ends, axes and steps of different lengths")
    for i, axis in enumerate(chosen):
        x = _cut(c, x, x.axis(axis), [b[i] for b in begins], [s[i] for s in stops], steps[i])
    return x


def _lists(given: Value | None, attribute: list[int] | None) -> list[list[int]]:
    """Starts or ends for each batch."""
    if given is None:
        return [attribute or [], attribute or []]
    if given.live or given.floats:
        raise UnfitError("starts or ends that are computed from values")
    return [[int(n) for n in probe.flatten().tolist()] for probe in given.probes]


def _cut(c: Builder, x: Value, axis: int, begins: list[int], stops: list[int], step: int) -> Value:
    ranges = [
        range(*slice(b, None if step < 0 and s < -probe.shape[axis] else s, step).indices(probe.shape[axis]))
        for b, s, probe in zip(begins, stops, x.probes, strict=True)
    ]
    if all(found == range(probe.shape[axis]) for found, probe in zip(ranges, x.probes, strict=True)):
        return x
    if step < 0:
        if all(found == range(n)[::-1] for found, n in zip(ranges, (p.shape[axis] for p in x.probes), strict=True)):
            return c.call("flip", x, axis)
        if ranges[0] != ranges[1]:
            raise UnfitError("a slice that depends on the batch")
        return c.call("index_select", x, axis, c.known(torch.tensor(list(ranges[0]), dtype=torch.int64)))
    if not x.live:
        return c.value(
            *(
                p.narrow(axis, 0, p.shape[axis])[(slice(None),) * axis + (slice(r.start, r.stop, step),)]
                for p, r in zip(x.probes, ranges, strict=True)
            )
        )
    to_end = all(found.stop >= p.shape[axis] for found, p in zip(ranges, x.probes, strict=True))
    if ranges[0].start != ranges[1].start or (not to_end and ranges[0].stop != ranges[1].stop):
        raise UnfitError("a slice that depends on the batch")
    window = slice(ranges[0].start or None, None if to_end else ranges[0].stop, step if step != 1 else None)
    return c.call(operator.getitem, x, (*(slice(None),) * axis, window))


@reads("Gather")
def _gather(c: Builder, x: Value, index: Value, *, axis: int = 0) -> Value:
    at = x.axis(axis)
    if index.live:
        if x.constant and x.rank == 2 and at == 0 and x.floats:
            layer = unset(nn.Embedding, *x.tensor.shape)
            filled(layer.weight, x.tensor)
            return c.layer(layer, x, index)
        raise UnfitError("places that are computed, but for rows of a constant")
    if index.constant and index.rank == 0:
        place, free = int(c.number(index)), x.sizes[at] is None
        if not all(-p.shape[at] <= place < p.shape[at] for p in x.probes):
            raise UnfitError(f"place {place} of an axis of {x.sizes[at]}")
        if free and x.live:
            raise UnfitError("one place of the batch is taken")
        return c.call("select", x, at, place)
    if not index.constant and not x.live:
        return c.value(*(_taken(p, at, i) for p, i in zip(x.probes, index.probes, strict=True)))
    numbers = index.tensor
    size = None if not x.live else x.size(at)
    wrapped = numbers if size is None else torch.where(numbers < 0, numbers + size, numbers)
    if size is None:
        return c.value(*(_taken(p, at, numbers) for p in x.probes))
    if wrapped.numel() and not (int(wrapped.min()) >= 0 and int(wrapped.max()) < size):
        raise UnfitError(f"places beyond an axis of {size}")
    made = c.call("index_select", x, at, c.known(wrapped.reshape(-1).long()))
    return made if numbers.dim() == 1 else c.call("unflatten", made, at, list(numbers.shape))


def _taken(x: Any, axis: int, index: Any) -> Any:
    """Numpy's `take`."""
    places = torch.where(index < 0, index + x.shape[axis], index).long()
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@reads("GatherElements")
def _gather_elements(c: Builder, x: Value, index: Value, *, axis: int = 0) -> Value:
    return c.call(torch.gather, x, x.axis(axis), index)


@reads("Trilu")
def _trilu(c: Builder, x: Value, k: Value | None = None, *, upper: int = 1) -> Value:
    known("upper", upper, (0, 1))
    return c.call(torch.triu if upper else torch.tril, x, int(c.number(k)) if k is not None else 0)

"""What only moves numbers: other shapes, other orders of axes, parts joined."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.convert.onnx.builder import Builder, product
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import BATCHES, UnfitError, Value, at_batch


@reads("Reshape")
def _reshape(c: Builder, x: Value, shape: Value, *, allowzero: int = 0) -> Value:
    if shape.live or shape.floats or shape.rank != 1 or shape.probes[0].numel() > 64:
        raise UnfitError("a shape that is no list of sizes known before")
    if not x.live and not x.constant and x.rank <= 1:  # sizes themselves
        return c.call("reshape", x, tuple(int(n) for n in shape.probes[0].tolist()))
    if shape.constant and c.batch is not None and None in x.sizes:
        target = _in_the_file(c, x, shape.tensor.tolist(), bool(allowzero))
    else:
        wanted = [_resolved(p.tolist(), v.shape, bool(allowzero)) for p, v in zip(shape.probes, x.probes, strict=True)]
        target = [a if a == b else -1 for a, b in zip(*wanted, strict=True)]
        if shape.constant and target.count(-1) > 1:
            target = [int(n) if int(n) != 0 else t for n, t in zip(shape.tensor.tolist(), target, strict=True)]
    return reshaped(c, x, target)


def reshaped(c: Builder, x: Value, target: list[int]) -> Value:
    """Another shape; `flatten` where it is that.

    Args:
        c: The network under construction.
        x: The tensor.
        target: Its sizes, -1 for the one that follows the batch.
    """
    if target.count(-1) > 1:
        raise UnfitError("several sizes follow the batch")
    if x.live and tuple(None if n == -1 else n for n in target) == x.sizes:
        return x
    if x.live and x.rank > 2 and x.sizes[0] is None and None not in x.sizes[1:] and target == [-1, _inner(x)]:
        return c.call(torch.flatten, x, 1)
    return c.call("reshape", x, tuple(target))


def _inner(x: Value) -> int:
    return product(size or 0 for size in x.sizes[1:])


def _resolved(wanted: list[int], sizes: Any, allowzero: bool) -> list[int]:
    """Sizes without 0 (that of the tensor) and -1 (what is left)."""
    if not allowzero:
        wanted = [sizes[i] if n == 0 and i < len(sizes) else n for i, n in enumerate(wanted)]
    if min(wanted, default=0) < -1 or wanted.count(-1) > 1:
        raise UnfitError(f"a shape {wanted}")
    rest = product(n for n in wanted if n != -1)
    if -1 in wanted:
        if rest == 0 or product(sizes) % rest:
            raise UnfitError(f"a shape {wanted} for {product(sizes)} numbers")
        wanted = [product(sizes) // rest if n == -1 else n for n in wanted]
    return wanted


def _in_the_file(c: Builder, x: Value, wanted: list[int], allowzero: bool) -> list[int]:
    """A shape for the one batch of the file, with -1 in the batch's place: where as many numbers come before it."""
    assert c.batch is not None  # asked before
    sizes = at_batch(tuple(tuple(probe.shape) for probe in x.probes), c.batch)
    target = _resolved(wanted, sizes, allowzero)
    if product(target) != product(sizes):
        raise UnfitError(f"a shape {wanted} for {sizes}")
    before = product(sizes[: x.sizes.index(None)])
    for i, size in enumerate(target):
        per_input = size % c.batch == 0
        if product(target[:i]) == before and per_input:
            return [*target[:i], -1, *target[i + 1 :]]
    raise UnfitError(f"a shape {wanted} that ties the batch to other axes")


@reads("Flatten")
def _flatten(c: Builder, x: Value, *, axis: int = 1) -> Value:
    at = x.rank if axis == x.rank else x.axis(axis)
    if at == 1 and x.rank == 2:
        return x
    if at == 1 and x.rank > 2:
        return c.call(torch.flatten, x, 1)
    once, twice = ((product(p.shape[:at]), product(p.shape[at:])) for p in x.probes)
    return reshaped(c, x, [a if a == b else -1 for a, b in zip(once, twice, strict=True)])


@reads("Transpose")
def _transpose(c: Builder, x: Value, *, perm: list[int] | None = None) -> Value:
    order = tuple(perm) if perm is not None else tuple(range(x.rank))[::-1]
    if sorted(order) != list(range(x.rank)):
        raise UnfitError(f"an order {list(order)} of {x.rank} axes")
    return x if order == tuple(range(x.rank)) else c.call("permute", x, order)


def chosen_axes(c: Builder, given: Value | None, axes: list[int] | None) -> list[int] | None:
    """Axes by an input, in newer files, or by an attribute."""
    if given is not None and axes is not None:
        raise UnfitError("axes are given twice")
    return c.ints(given) if given is not None else axes


@reads("Squeeze")
def _squeeze(c: Builder, x: Value, given: Value | None = None, *, axes: list[int] | None = None) -> Value:
    chosen = chosen_axes(c, given, axes)
    if chosen is None:
        chosen = [axis for axis, size in enumerate(x.sizes) if size == 1]
    places = sorted({x.axis(axis) for axis in chosen}, reverse=True)
    for axis in places:
        if x.sizes[axis] is None and c.batch == 1:
            raise UnfitError(f"axis {axis} is the batch's and is taken out")
        if x.size(axis) != 1:
            raise UnfitError(f"axis {axis} has size {x.size(axis)}, not 1")
        x = c.call("squeeze", x, axis)
    return x


@reads("Unsqueeze")
def _unsqueeze(c: Builder, x: Value, given: Value | None = None, *, axes: list[int] | None = None) -> Value:
    chosen = chosen_axes(c, given, axes)
    if chosen is None or len(chosen) > 16:
        raise UnfitError("no axes, or too many")
    for axis in sorted({x.axis(axis, len(chosen)) for axis in chosen}):
        x = c.call("unsqueeze", x, axis)
    return x


@reads("Concat")
def _concat(c: Builder, *parts: Value, axis: int) -> Value:
    at = parts[0].axis(axis)
    if len(parts) == 1:
        return parts[0]
    leader = next((part for part in parts if part.live and None in part.sizes), None)
    if leader is not None and leader.sizes.index(None) != at:
        free = leader.sizes.index(None)
        parts = tuple(c.for_every_batch(part, leader, free, free) for part in parts)
    return c.call(torch.cat, list(parts), at)


@reads("Split")
def _split(
    c: Builder,
    x: Value,
    given: Value | None = None,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
) -> list[Value]:
    at = x.axis(axis)
    sizes = chosen_axes(c, given, split)
    if sizes is None:
        count = num_outputs or c.outputs
        step = -(-x.size(at) // count)
        sizes = [step] * (x.size(at) // step) + [x.size(at) % step] * bool(x.size(at) % step)
    if sum(sizes) != x.size(at) or min(sizes, default=-1) < 0 or len(sizes) != c.outputs:
        raise UnfitError(f"parts {sizes} of an axis of {x.size(at)}, for {c.outputs} outputs")
    even = len(sizes) > 1 and len(set(sizes)) == 1
    made = c.call(torch.chunk, x, len(sizes), at) if even else c.call(torch.split, x, sizes, at)
    return [c.pick(made, i) for i in range(len(sizes))]


@reads("Expand")
def _expand(c: Builder, x: Value, shape: Value) -> Value:
    if shape.live or shape.floats or shape.rank != 1:
        raise UnfitError("a shape that is no list of sizes known before")
    if x.live:
        wanted = [_broadcast(p.shape, s.tolist()) for p, s in zip(x.probes, shape.probes, strict=True)]
        sizes = tuple(a if a == b else None for a, b in zip(*wanted, strict=True))
        if sizes == x.sizes:
            return x
        lead = (None,) * (len(sizes) - x.rank) + x.sizes
        if any(size is None and own is not None for size, own in zip(sizes, lead, strict=True)):
            raise UnfitError("a size that follows the batch")
        return c.call("expand", x, *(-1 if size is None else size for size in sizes))
    probes = []
    for part, sizes in zip(x.probes, shape.probes, strict=True):
        whole = _broadcast(part.shape, sizes.tolist())
        _small(product(whole))
        probes.append(part.expand(whole))
    return Value(None, c.value(*probes).probes, x.name)  # still the file's constant


def _broadcast(*shapes: Any) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]  # torch has not typed it


def _small(count: int) -> None:
    if count > 1 << 24:
        raise UnfitError(f"a constant of {count:,} numbers")


@reads("Tile")
def _tile(c: Builder, x: Value, repeats: Value) -> Value:
    times = c.ints(repeats)
    if min(times, default=1) < 0 or len(times) != x.rank:
        raise UnfitError(f"repeats {times}")
    return c.call("repeat", x, *times)


@reads("ConstantOfShape")
def _constant(c: Builder, shape: Value, *, value: Value | None = None) -> Value:
    number = value.tensor.reshape(-1)[:1] if value is not None else torch.zeros(1)
    probes: list[Tensor] = []
    for sizes in shape.probes:
        _small(product(sizes.tolist()))
        probes.append(number.expand(sizes.tolist()).contiguous() if sizes.numel() else number.reshape(()))
    return c.value(*probes)


@reads("Range")
def _range(c: Builder, start: Value, limit: Value, delta: Value) -> Value:
    probes = []
    for i in range(len(BATCHES)):
        first, last, step = (v.probes[i].item() for v in (start, limit, delta))
        _small(int(abs((last - first) / step)) if step else 1 << 30)
        probes.append(torch.arange(first, last, step, dtype=start.dtype))
    return c.value(*probes)


@reads("Shape")
def _shape(c: Builder, x: Value, *, start: int = 0, end: int | None = None) -> Value:
    return c.value(*(torch.tensor(list(probe.shape)[start:end], dtype=torch.int64) for probe in x.probes))


@reads("Size")
def _size(c: Builder, x: Value) -> Value:
    return c.value(*(torch.tensor(probe.numel()) for probe in x.probes))


@reads("DepthToSpace")
def _depth_to_space(c: Builder, x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    known("mode", mode, ("DCR", "CRD"))
    channels, height, width = (x.size(axis) for axis in (1, 2, 3))
    inner = channels // blocksize**2
    if mode == "DCR" and inner > 1:  # torch has the order of CRD
        parts = c.call("reshape", x, (-1, blocksize**2, inner, height, width))
        x = c.call("reshape", c.call("permute", parts, (0, 2, 1, 3, 4)), (-1, channels, height, width))
    return c.call(F.pixel_shuffle, x, blocksize)


@reads("SpaceToDepth")
def _space_to_depth(c: Builder, x: Value, *, blocksize: int) -> Value:
    channels = x.size(1)
    x = c.call(F.pixel_unshuffle, x, blocksize)
    if channels == 1:
        return x
    height, width = x.size(2), x.size(3)
    parts = c.call("reshape", x, (-1, channels, blocksize**2, height, width))
    return c.call("reshape", c.call("permute", parts, (0, 2, 1, 3, 4)), (-1, channels * blocksize**2, height, width))

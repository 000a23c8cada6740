"""Lowering rules for plain torch that move or select codes; as those of `torch.py`.

Torch's own checks have passed when a rule runs: the network ran on the example.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.lowering.builder import Builder, Call, Value, type_for


def rank_of(call: Call) -> int:
    """Number of axes of the first tensor."""
    return len(call.input_shapes[0][0])


def axis_of(dim: int, rank: int) -> int:
    """An axis, counted from the first."""
    return dim % rank


def moved(b: Builder, call: Call, op: ops.Op, x: Value, name: str = "") -> Value:
    """Append an operation after which the codes stay on their grid."""
    return b.add(name or call.name, op, (x,), x.type, x.lo, x.hi)


# --- moving


def reshaped(b: Builder, call: Call, x: Value, *_: Any, **__: Any) -> Value:
    """view, reshape, flatten, unflatten, squeeze, unsqueeze: the new shape is the traced one."""
    once, twice = call.shapes
    free = [i for i, (a, c) in enumerate(zip(once, twice, strict=False)) if a != c]
    if len(once) != len(twice) or len(free) != 1:
        raise UnsupportedError("the new shape must grow with the batch along one axis", given=once)
    return moved(b, call, ops.Reshape(tuple(-1 if i == free[0] else size for i, size in enumerate(once))), x)


def permute(b: Builder, call: Call, x: Value, *dims: Any, **named: Any) -> Value:
    """Axes in a new order."""
    order = named.get("dims", dims[0] if dims and not isinstance(dims[0], int) else dims)
    return moved(b, call, ops.Permute(tuple(axis_of(d, rank_of(call)) for d in order)), x)


def transpose(b: Builder, call: Call, x: Value, dim0: int, dim1: int) -> Value:
    """Two axes swapped."""
    order = list(range(rank_of(call)))
    first, second = axis_of(dim0, len(order)), axis_of(dim1, len(order))
    order[first], order[second] = order[second], order[first]
    return moved(b, call, ops.Permute(tuple(order)), x)


def flip(b: Builder, call: Call, x: Value, *dims: Any) -> Value:
    """Axes reversed."""
    axes = dims[0] if not isinstance(dims[0], int) else dims
    return moved(b, call, ops.Flip(tuple(axis_of(d, rank_of(call)) for d in axes)), x)


def cat(b: Builder, call: Call, tensors: Any, dim: int = 0) -> Value:
    """Concatenation, at the finest of the scales."""
    return joined(b, call, list(tensors), axis_of(dim, len(call.shapes[0])))


def stack(b: Builder, call: Call, tensors: Any, dim: int = 0) -> Value:
    """Concatenation along a new axis."""
    axis = axis_of(dim, len(call.shapes[0]))
    once, twice = call.shapes
    shape = tuple(1 if i == axis else -1 if a != c else a for i, (a, c) in enumerate(zip(once, twice, strict=True)))
    parts = [moved(b, call, ops.Reshape(shape), x, f"{call.name}.{i}") for i, x in enumerate(tensors)]
    return joined(b, call, parts, axis)


def joined(b: Builder, call: Call, parts: list[Value], axis: int) -> Value:
    """Bring parts to one grid and concatenate them; along the batch axis it is refused."""
    if not all(isinstance(part, Value) for part in parts):
        raise UnsupportedError("a constant part", hint="Let it be an input of the network.")
    once, twice = call.shapes
    if once[axis] != twice[axis]:
        raise UnsupportedError("a concatenation along the batch")
    parts = b.aligned(call.name, parts)
    lo, hi = min(part.lo for part in parts), max(part.hi for part in parts)
    edge = parts[0].type if parts[0].type.real else type_for(lo, hi, parts[0].type.grid)
    return b.add(call.name, ops.Cat(axis), tuple(parts), edge, lo, hi)


def pad(b: Builder, call: Call, x: Value, pad: Any, mode: Any = "constant", value: float | None = None) -> Value:
    """A border of a number that is a code, or of the tensor's own values; negative widths cut off."""
    pads = tuple(int(width) for width in pad)
    while mode == "constant" and pads and not any(pads[-2:]):
        pads = pads[:-2]
    once, twice = call.input_shapes[0]
    if any(once[axis] != twice[axis] for axis in range(len(once) - len(pads) // 2, len(once))):
        raise UnsupportedError("a border along the batch", given=pads)
    if not any(pads):
        return x
    if mode != "constant":
        return moved(b, call, ops.Pad(pads, mode, 0), x)
    scale, zero = (1.0, 0) if x.type.real else (x.type.scale, x.type.zero)
    code = (value or 0.0) * scale + zero
    if code != int(code):
        allowed = "whole numbers before the first chip layer" if x.type.real else f"multiples of 1/{scale:g}"
        raise UnsupportedError("a border that is no code of the tensor's grid", given=value, allowed=allowed)
    lo, hi = min(x.lo, int(code)), max(x.hi, int(code))
    fits = x.type.real or (x.type.lo <= lo and hi <= x.type.hi)
    edge = x.type if fits else type_for(lo, hi, x.type.grid)
    return b.add(call.name, ops.Pad(pads, "constant", int(code)), (x,), edge, lo, hi)


# --- selecting


def chunk(b: Builder, call: Call, x: Value, *_: Any, dim: int = 0, **__: Any) -> tuple[Value, ...]:
    """chunk, split: the parts' sizes are the traced ones."""
    axis = axis_of(_[1] if len(_) > 1 else dim, rank_of(call))
    whole = call.input_shapes[0]
    if whole[0][axis] != whole[1][axis]:
        raise UnsupportedError("a split of the batch")
    parts, start = [], 0
    for i, (once, _twice) in enumerate(call.shapes):
        op = ops.Slice(axis, start, start + once[axis], 1)
        parts.append(moved(b, call, op, x, f"{call.name}.{i}"))
        start += once[axis]
    return tuple(parts)


def unbind(b: Builder, call: Call, x: Value, dim: int = 0) -> tuple[Value, ...]:
    """One value for each index of an axis."""
    return tuple(select(b, replace(call, name=f"{call.name}.{i}"), x, dim, i) for i in range(len(call.shapes)))


def select(b: Builder, call: Call, x: Value, dim: int, index: int) -> Value:
    """One index of an axis."""
    axis = axis_of(dim, rank_of(call))
    if call.input_shapes[0][0][axis] != call.input_shapes[0][1][axis]:
        raise UnsupportedError("a choice from the batch")
    return moved(b, call, ops.Select(axis, index), x)


def getitem(b: Builder, call: Call, x: Any, index: Any) -> Any:
    """An entry of a tuple, or slices, indices, None and … of a tensor."""
    if not isinstance(x, Value):
        return x[index]
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        missing = rank_of(call) - sum(entry is not None for entry in entries) + 1
        entries[at : at + 1] = [slice(None)] * missing
    once, twice = call.input_shapes[0]
    axis, source = 0, 0
    for entry in entries:
        if entry is None:
            continue
        if not isinstance(entry, (int, slice)):
            raise UnsupportedError("indexing with a tensor or a list", given=entry)
        whole = isinstance(entry, slice) and entry == slice(None)
        if not whole and once[source] != twice[source]:
            raise UnsupportedError("a choice from the batch", given=index)
        if isinstance(entry, int):
            x = moved(b, call, ops.Select(axis, entry), x)
        else:
            if not whole:
                start, stop, step = entry.indices(once[source])
                x = moved(b, call, ops.Slice(axis, start, stop, step), x)
            axis += 1
        source += 1
    return reshaped(b, call, x) if None in entries else x


class NoCodes:
    """Stands for a result that is no code, such as the place of a maximum: nothing may read it."""


class Zeros:
    """A tensor of zeros: the first state of a recurrent layer may be one, which is as good as none."""


def zeros(b: Builder, call: Call, *_: Any, **__: Any) -> Zeros:
    """zeros, zeros_like, new_zeros."""
    return Zeros()


class Maxima(NamedTuple):
    """What `torch.max` gives along an axis."""

    values: Value
    indices: NoCodes


def amax(b: Builder, call: Call, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    """Largest value along axes: its code is the largest of the codes."""
    once, twice = call.input_shapes[0]
    if isinstance(dim, Value):
        raise UnsupportedError("the larger of two tensors, element by element", hint="Write a + relu(b - a).")
    given = (dim,) if isinstance(dim, int) else tuple(dim or range(len(once)))
    dims = tuple(sorted(axis_of(d, len(once)) for d in given))
    if any(once[d] != twice[d] for d in dims):
        raise UnsupportedError("a maximum over the batch")
    return moved(b, call, ops.Max(dims, keepdim), x)


def largest(b: Builder, call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
    """`max` of everything, or along an axis, with the places, which are no codes."""
    found = amax(b, call, x, () if dim is None else dim, keepdim)
    return found if dim is None else Maxima(found, NoCodes())


def attribute(b: Builder, call: Call, x: Any, name: str) -> Any:
    """`values` of a maximum."""
    if not isinstance(x, Maxima) or name not in x._fields:
        raise UnsupportedError(f"the attribute {name} of a tensor", hint="Use a method of the same meaning.")
    return getattr(x, name)

"""How plain torch between and behind the operators is written: reshapes, slices, joins, functions of each value."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from chipfit.chips.ingenic.magik import functions
from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph, Written, samples
from chipfit.chips.ingenic.magik.view import View, attributes
from chipfit.chips.ingenic.magik.write import moves
from chipfit.errors import FileFormatError, UnsupportedError

_RESHAPING = {"view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten"}
_NOTHING = {"contiguous", "clone", "detach", "dropout"}
UNIT = "torch."
"""What the names of nodes of plain torch begin with."""


def holds_edge(written: Written) -> bool:
    """Whether a value of the graph is part of the arguments."""
    if isinstance(written, dict):
        return holds_edge(list(written.values()))
    return any(map(holds_edge, written)) if isinstance(written, (tuple, list)) else isinstance(written, Edge)


def plain(g: MagikGraph, name: str, function: Any, args: Any, kwargs: Any, result: Any) -> Written:
    """Write a call of plain torch.

    Args:
        g: The graph.
        name: Name of the call in the trace.
        function: The function, or the name of a method.
        args: Its arguments, edges among them.
        kwargs: Likewise.
        result: What it computes.

    Raises:
        UnsupportedError: the file has no nodes for it.
    """
    label = function if isinstance(function, str) else getattr(function, "__name__", str(function))
    unit, x = f"{UNIT}{name}", args[0] if args else None
    if label in ("chunk", "split") and isinstance(x, Edge):
        axis = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        return _parts(g, unit, x, list(result), axis % x.sample.dim())
    if not _holds_tensor(result):
        return result  # sizes and the like
    if not isinstance(result, Tensor):
        raise UnsupportedError(f"{label} has no nodes in the file")
    if label in ("cat", "concat") and isinstance(x, (tuple, list)) and all(isinstance(e, Edge) for e in x):
        axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        return moves.joined(g, unit, list(x), axis % result.dim())
    if isinstance(x, Edge) and label in _NOTHING:
        return x
    if isinstance(x, Edge) and label in _RESHAPING:
        return moves.reshaped(g, unit, x, result.shape)
    if isinstance(x, Edge) and label in ("permute", "transpose"):
        return moves.transposed(g, unit, x, _order(x.sample.dim(), label, args[1:], kwargs))
    if isinstance(x, Edge) and label in ("getitem", "select"):
        return _chosen(g, unit, x, args[1] if label == "getitem" else _selection(*args[1:], **kwargs))
    if not any(isinstance(edge, Edge) and edge.tag is not None for edge in args):
        if label == "softmax" and isinstance(x, Edge):
            axis = args[1] if len(args) > 1 else kwargs["dim"]
            if axis % result.dim() == result.dim() - 1:
                return g.add("Softmax", unit, x, sample=result, axis=result.dim() - 1)
        made = functions.function(g, unit, label, args, kwargs, result)
        if made is not None:
            return made
    raise UnsupportedError(
        f"{label} has no nodes in the file",
        hint="Use Route, Shortcut, Mul, Max or an activation_fn, or leave it to the code behind the network.",
    )


def _holds_tensor(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return any(map(_holds_tensor, result))
    return isinstance(result, Tensor)


def _parts(g: MagikGraph, unit: str, x: Edge, parts: list[Tensor], axis: int) -> tuple[Edge, ...]:
    if axis == 0:
        raise UnsupportedError("a split of the batch")
    return tuple(moves.split(g, unit, x, parts, [part.shape[axis] for part in parts], axis))


def _selection(dim: int, index: int) -> Any:
    """The index of a choice along an axis."""
    return (*[slice(None)] * dim, index) if dim >= 0 else (Ellipsis, index, *[slice(None)] * (-1 - dim))


def _chosen(g: MagikGraph, unit: str, x: Edge, index: Any) -> Edge:
    """Slices and single positions: a Slice, and a Squeeze of the axes that go."""
    entries, rank = [*index] if isinstance(index, tuple) else [index], x.sample.dim()
    if any(entry is not Ellipsis and not isinstance(entry, (int, slice)) for entry in entries):
        raise UnsupportedError("an index has no nodes in the file", given=index, allowed="numbers, slices and ...")
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (rank - len(entries) + 1)
    bounds: list[tuple[int, int, int]] = []
    gone: list[int] = []
    for axis, entry in enumerate(entries):
        size = x.sample.shape[axis]
        if isinstance(entry, int):
            gone.append(axis)
            entry = slice(entry % size, entry % size + 1)
        start, end, step = entry.indices(size)
        if step != 1:
            raise UnsupportedError("opset 9 cannot slice with a step", given=step, allowed="1")
        if entry != slice(None):
            bounds.append((axis, start, end))
    if not bounds:
        return x
    if bounds[0][0] == 0:
        raise UnsupportedError("a choice from the batch", given=index)
    cut, name = x.sample[tuple(_at(bounds, rank))], f"{unit}/slice" if gone else unit
    axes, starts, ends = zip(*bounds, strict=True)
    y = g.add("Slice", name, x, sample=cut, tag=x.tag, axes=axes, starts=starts, ends=ends)
    return g.add("Squeeze", unit, y, sample=cut.squeeze(gone), tag=x.tag, axes=gone) if gone else y


def _at(bounds: list[tuple[int, int, int]], rank: int) -> list[Any]:
    """An index for each axis."""
    entries = [slice(None)] * rank
    for axis, start, end in bounds:
        entries[axis] = slice(start, end)
    return entries


def _order(rank: int, label: str, args: Any, kwargs: Any) -> list[int]:
    """The order of axes of a permute or transpose."""
    if label == "permute":
        dims = kwargs.get("dims", args[0] if args and isinstance(args[0], (tuple, list)) else args)
        return [int(d) % rank for d in dims]
    a, b = args if args else (kwargs["dim0"], kwargs["dim1"])
    order = list(range(rank))
    order[a % rank], order[b % rank] = order[b % rank], order[a % rank]
    return order


def values_of(function: Any, args: Any, kwargs: Any) -> Any:
    """What a call of plain torch computes on the example."""
    given, options = samples(tuple(args)), samples(dict(kwargs))
    if isinstance(function, str):
        return getattr(given[0], function)(*given[1:], **options)
    return function(*given, **options)


def read_back(view: View, nodes: list[Any], values: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What the nodes of a call of plain torch are read back as: a function and its arguments.

    Args:
        view: The file.
        nodes: The call's nodes, in order.
        values: What the network computes, by edge.

    Raises:
        FileFormatError: nodes that no function is written as.
    """
    first = nodes[0]
    kind, a = first.op_type, attributes(first)
    if kind == "Reshape":
        return torch.reshape, (values[first.input[0]], tuple(view.array(first.input[1]).tolist())), {}
    given = [float(view.array(name).item()) if view.constant(name) else values.get(name) for name in first.input[:2]]
    if kind == "Transpose":
        return torch.permute, (given[0], tuple(a["perm"])), {}
    if kind == "Concat":
        return torch.cat, ([values[name] for name in first.input], a["axis"]), {}
    if kind == "Split":
        return torch.split, (given[0], list(a["split"]), a["axis"]), {}
    if kind == "Softmax":
        return torch.softmax, (given[0], a["axis"]), {}
    if kind == "Slice":
        bounds = list(zip(a["axes"], a["starts"], a["ends"], strict=True))
        entries = _at(bounds, max(a["axes"]) + 1)
        gone = attributes(nodes[1])["axes"] if len(nodes) > 1 else ()
        index = tuple(entry.start if axis in gone else entry for axis, entry in enumerate(entries))
        return operator.getitem, (given[0], index), {}
    for recipe, options in functions.found(view, nodes, first.input[0]):
        return recipe.function, (given[0],), options
    if len(nodes) == 1 and kind in functions.BINARY:
        return functions.BINARY[kind], tuple(given), {}
    raise FileFormatError("no function of torch that is written so", given=[node.op_type for node in nodes])

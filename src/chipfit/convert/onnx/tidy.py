"""Moves that undo each other are taken out, so that the network reads as somebody would have written it."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx


def tidy(graph: fx.Graph, shapes: dict[fx.Node, Any]) -> None:
    """Take out moves that undo each other, and what nothing reads.

    Args:
        graph: It is changed.
        shapes: What each node gives, for each of two batches.
    """
    for node in list(graph.nodes):
        while True:
            made = _shorter(node, shapes)
            if made is None:
                break
            if made is not node:
                node.replace_all_uses_with(made)
                break
    for node in graph.nodes:
        _write_gelu(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _shorter(node: fx.Node, shapes: dict[fx.Node, Any]) -> fx.Node | None:
    """What gives the same as a node with fewer moves: another node, or itself, changed; None where there is nothing."""
    kind = _kind(node)
    if not kind:
        return None
    before: Any = node.args[0]
    inner = _kind(before)
    if kind == "permute":
        order: Any = node.args[1]
        if inner == "permute":
            node.args = (before.args[0], tuple(before.args[1][axis] for axis in order))
            return node
        return before if tuple(order) == tuple(range(len(order))) else None
    if kind == "squeeze" and inner == "unsqueeze" and node.args[1] == before.args[1]:
        return before.args[0]  # type: ignore[no-any-return]  # the node that it reads
    if kind in ("reshape", "flatten"):
        return _reshaped(node, before, inner, shapes)
    return None


def _reshaped(node: fx.Node, before: Any, inner: str, shapes: dict[fx.Node, Any]) -> fx.Node | None:
    if node in shapes and shapes.get(before) == shapes[node]:
        return before  # type: ignore[no-any-return]  # it gives that shape already
    if node.target == "reshape" and inner in ("reshape", "flatten", "squeeze", "unsqueeze", "unflatten"):
        node.args = (before.args[0], node.args[1])
        return node
    source: Any = before.args[0] if inner == "permute" else None
    if _kind(source) == "unflatten" and _joins(node, before, source, shapes):
        order = before.args[1]
        node.op, node.target = "call_method", "permute"
        node.args = (source.args[0], (*order[:-2], len(order) - 2))
        return node
    return None


def _joins(node: fx.Node, moved: fx.Node, parted: Any, shapes: dict[fx.Node, Any]) -> bool:
    """Whether a shape joins the two last axes again that were parted, others having been moved in between."""
    order: Any = moved.args[1]
    last = len(order) - 2
    if tuple(order[-2:]) != (last, last + 1) or parted.args[1] != last or node not in shapes or moved not in shapes:
        return False
    return all(
        after == (*was[:-2], math.prod(was[-2:])) for after, was in zip(shapes[node], shapes[moved], strict=True)
    )


def _write_gelu(node: fx.Node) -> None:
    """Write `x * (erf(x / sqrt(2)) + 1) * 0.5`, in any order, as the function that it is."""
    x, rest = None, 1.0
    factors = _factors(node)
    for factor in factors:
        inner = _erf(factor)
        if inner is not None:
            others = [other for other in factors if other is not factor]
            numbers = [other for other in others if isinstance(other, (int, float))]
            rest = math.prod(numbers)
            x = inner if [o for o in others if isinstance(o, fx.Node)] == [inner] else None
    if x is not None and math.isclose(rest, 0.5, rel_tol=1e-6):
        node.op, node.target, node.args, node.kwargs = "call_function", F.gelu, (x,), {}


def _factors(node: Any) -> list[Any]:
    """What a product of products is made of."""
    if not isinstance(node, fx.Node) or node.target is not operator.mul:
        return [node]
    found: list[Any] = []
    for part in node.args:
        inside = isinstance(part, fx.Node) and len(part.users) == 1
        found += _factors(part) if inside else [part]
    return found


def _erf(node: Any) -> fx.Node | None:
    """`x`, where the node is `erf(x / sqrt(2)) + 1`."""
    if not isinstance(node, fx.Node) or node.target is not operator.add or 1 not in node.args:
        return None
    erf = next((part for part in node.args if isinstance(part, fx.Node)), None)
    scaled: Any = erf.args[0] if erf is not None and erf.target is torch.erf else None
    if not isinstance(scaled, fx.Node) or scaled.target not in (operator.truediv, operator.mul):
        return None
    x, number = scaled.args
    if not isinstance(x, fx.Node) or not isinstance(number, (int, float)) or number == 0:
        return None
    factor = 1 / number if scaled.target is operator.truediv else number
    return x if math.isclose(factor, math.sqrt(0.5), rel_tol=1e-6) else None


def _kind(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return ""
    if node.op == "call_method" and node.target in ("permute", "squeeze", "unsqueeze", "reshape", "unflatten"):
        return str(node.target)
    return "flatten" if node.op == "call_function" and node.target is torch.flatten else ""

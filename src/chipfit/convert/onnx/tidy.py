"""Moves that undo each other are taken out, so that the network reads as somebody would have written it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx


def tidy(graph: fx.Graph, shapes: dict[fx.Node, Any]) -> None:
    """Take out moves that undo each other, and what nothing reads.

    Args:
        graph: It is changed.
        shapes: What each node gives, for each of two batches.
    """
    for node in list(graph.nodes):
        while True:
            made = _shorter(graph, node, shapes)
            if made is None:
                break
            if made is not node:
                node.replace_all_uses_with(made)
                break
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _shorter(graph: fx.Graph, node: fx.Node, shapes: dict[fx.Node, Any]) -> fx.Node | None:
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
    source = before.args[0] if inner == "permute" else None
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


def _kind(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return ""
    if node.op == "call_method" and node.target in ("permute", "squeeze", "unsqueeze", "reshape", "unflatten"):
        return str(node.target)
    return "flatten" if node.op == "call_function" and node.target is torch.flatten else ""

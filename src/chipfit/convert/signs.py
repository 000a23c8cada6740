"""Which tensors of a network have no negative values: what the graph proves, and the example for its inputs."""

from __future__ import annotations

from typing import Any

from torch import fx

from chipfit.convert.operations import MOVES
from chipfit.convert.words import Seen

_TRUTH = {"gt", "ge", "lt", "le", "eq", "ne", "greater", "greater_equal", "less", "less_equal", "not_equal"}
_ALWAYS = {"relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "sqrt", "rsqrt", "abs", *_TRUTH}
_KEEPS = {
    *MOVES,
    *("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "mean", "dropout", "identity"),
    *("upsample", "pixel_shuffle", "add", "mul", "div", "matmul", "maximum", "cat", "leaky_relu", "amax", "max"),
}
"""Kinds that give no negative values where all their operands have none."""


def is_nonnegative(
    node: fx.Node, kind: str, operands: tuple[Any, ...], options: dict[str, Any], known: dict[fx.Node, bool], seen: Any
) -> bool:
    """Whether a node's result has no negative values.

    Args:
        node: The node.
        kind: What it computes.
        operands: Its operands: nodes and numbers.
        options: Its options.
        known: The answer for the nodes before it.
        seen: What it gave on the example, which decides for the network's inputs and constants.
    """
    if node.op in ("placeholder", "get_attr"):
        return isinstance(seen, Seen) and seen.lowest >= 0
    if kind in _ALWAYS:
        return True
    if kind in ("clamp", "hardtanh"):
        low = options.get("min", options.get("min_val"))
        return isinstance(low, (int, float)) and low >= 0
    if kind == "add" and options.get("alpha", 1) < 0:
        return False
    if kind == "upsample" and options.get("mode") == "bicubic":
        return False  # it swings below
    if kind == "pad" and (options.get("value") or 0) < 0:
        return False
    read = operands or tuple(node.all_input_nodes)
    if kind == "stack":
        read = tuple(node.all_input_nodes)
    return kind in _KEEPS and all(known.get(x, False) if isinstance(x, fx.Node) else x >= 0 for x in read)

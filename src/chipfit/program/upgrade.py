"""Program folders of version 1: an edge had a scale and a zero, and only the operations said what its codes stand for.

Works on the plain JSON, before it is checked field by field; what is damaged stays as it is and is found there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_SUMS = ("Sum", "SumPool")
_ON_A_PLAIN_GRID = ("AverageCodes", "PixelCodes", "TableRows")


def from_version_1(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The content of a version-1 program.json as one of version 2.

    Args:
        content: What was read.
        tensors: The program's tensors, whose codes tell the grid of a table.
    """
    nodes, inputs = content.get("nodes"), content.get("inputs")
    made = {**content, "version": 2}
    if isinstance(nodes, list):
        made["nodes"] = _nodes(nodes, tensors)
    if isinstance(inputs, list):
        made["inputs"] = [
            {**entry, "type": _typed(entry.get("type"), "")} if isinstance(entry, dict) else entry for entry in inputs
        ]
    return made


def _nodes(nodes: list[Any], tensors: Mapping[str, Tensor]) -> list[Any]:
    kinds: dict[str, str] = {}
    made = []
    for node in nodes:
        if _is_node(node):
            kind = _kind(node, nodes, kinds, tensors)
            kinds[str(node.get("name"))] = kind
            node = {**node, "op": _op(node["op"]), "output": _typed(node.get("output"), kind)}
        made.append(node)
    return made


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("op"), dict) and isinstance(node.get("inputs"), list)


def _kind(node: Mapping[str, Any], nodes: list[Any], kinds: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Kind of an edge's grid; '' for sums without a unit."""
    op = node["op"]
    name, requantise = op.get("op"), op.get("requantise")
    if name == "Accumulate" or (name in _SUMS and _is_read_by(node.get("name"), "Finish", nodes)):
        return ""
    if isinstance(requantise, dict):
        return "odd" if requantise.get("kind") == "odd" else "plain"
    if name in _ON_A_PLAIN_GRID:
        return "plain"
    if name == "LookUp":
        return "odd" if _is_odd(node.get("output"), tensors.get(str(op.get("table_tensor")))) else "plain"
    return next((kinds[str(edge)] for edge in node["inputs"] if kinds.get(str(edge))), "plain")


def _is_read_by(edge: Any, op: str, nodes: list[Any]) -> bool:
    return any(edge in reader["inputs"] and reader["op"].get("op") == op for reader in nodes if _is_node(reader))


def _is_odd(output: Any, table: Tensor | None) -> bool:
    """Whether a table's codes are those of a grid without zero: odd ones alone, and n no power of two."""
    scale = output.get("scale") if isinstance(output, dict) else None
    if table is None or not isinstance(scale, (int, float)) or math.frexp(scale)[0] == 0.5:
        return False
    return bool((table % 2 == 1).all())


def _op(op: dict[str, Any]) -> Any:
    """An operation with what it has now beside what it had."""
    return {**({"bias_tensor": None} if op.get("op") == "Accumulate" else {}), **_with_zero(op)}


def _with_zero(value: Any) -> Any:
    """The grids that an operation names, each with the zero that they have now."""
    if isinstance(value, dict):
        inner = {key: _with_zero(entry) for key, entry in value.items()}
        return {**inner, "zero": 0} if inner.keys() == {"kind", "n"} else inner
    return value


def _typed(value: Any, kind: str) -> Any:
    if not isinstance(value, dict) or not {"scale", "zero"} <= value.keys():
        return value
    typed = {key: entry for key, entry in value.items() if key not in ("scale", "zero")}
    bare = not kind or value.get("bits") is None
    return {**typed, "grid": None if bare else {"kind": kind, "n": value["scale"], "zero": value["zero"]}}

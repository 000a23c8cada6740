"""What the edges of an exported graph stand for, as JSON in the file's `metadata_props`.

ONNX has no place for the width of a code below 8 bits, a clip or a target. `chipfit.target` names the chip;
`chipfit.tensors` is an object keyed by tensor name: for every edge of the program the layer and the operation with its
parameters, and for codes their width, range and scale.

Source: spec/ingenic.md, section 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from chipfit.chips.ingenic.program import ops as ops_ingenic
from chipfit.program import ops
from chipfit.program.types import Node, Program, ValueType

_SUMS = (ops_ingenic.Accumulate, ops.Sum, ops.SumPool)


def metadata(program: Program, names: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, str]:
    """The entries of `metadata_props`.

    Args:
        program: The program.
        names: Names of the ONNX tensors by edge of the program.
        constants: The graph's initializers by name.

    Example:
        >>> from chipfit.program.types import VERSION, Input
        >>> real, codes = ValueType((2,), None), ValueType((2,), 9, True, 57.375)
        >>> q = Node("q", ops_ingenic.PixelCodes(57.375, -104, 151), ("x",), codes)
        >>> program = Program(VERSION, "t40", (q,), (Input("x", real),), ("q",), {})
        >>> json.loads(metadata(program, {"q": "q/out"}, {})["chipfit.tensors"])["x"]
        {'mean': 104, 'var': 57.375}
    """
    tensors: dict[str, dict[str, Any]] = {}
    grids: dict[str, str] = {}
    for node in program.nodes:
        grids[node.name] = _grid(node, grids)
        tensors[names[node.name]] = {
            "layer": node.layer,
            "operation": type(node.op).__name__,
            **_codes(node.output, grids[node.name]),
            "parameters": asdict(node.op),
        }
        if isinstance(node.op, ops_ingenic.PixelCodes):  # of an image, as Preprocess has them
            tensors.setdefault(node.inputs[0], {}).update(mean=-node.op.lo, var=node.op.n)
        for name in _weights(node):
            if f"codes/{name}" in constants:
                tensors[f"codes/{name}"] = {"layer": node.layer or node.name, **_range(program.tensors[name])}
    return {"chipfit.target": program.chip, "chipfit.tensors": json.dumps(tensors)}


def _grid(node: Node, grids: Mapping[str, str]) -> str:
    """How codes become numbers: 'plain', `(code - zero) / scale`; 'odd', `(code + scale) / scale - 1`; '' of sums."""
    if node.output.real or isinstance(node.op, _SUMS):
        return ""
    requantise = getattr(node.op, "requantise", None)
    if requantise is not None:
        return "odd" if requantise.kind == "odd" else "plain"
    if isinstance(node.op, (ops_ingenic.AverageCodes, ops_ingenic.PixelCodes, ops_ingenic.TableRows)):
        return "plain"
    return next((grids[name] for name in node.inputs if grids.get(name)), "plain")


def _codes(kind: ValueType, grid: str) -> dict[str, Any]:
    if kind.real:
        return {}
    described = {"bits": kind.bits, "signed": kind.signed}
    return {**described, "scale": kind.scale, "zero": kind.zero, "grid": grid} if grid else described


def _weights(node: Node) -> list[str]:
    own = [getattr(node.op, field.name) for field in fields(node.op) if field.name.endswith("weight_tensor")]
    return [name for name in own if name is not None]


def _range(codes: Tensor) -> dict[str, int]:
    return {"lo": int(codes.min()), "hi": int(codes.max())} if codes.numel() else {}

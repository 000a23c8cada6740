"""What the edges of an exported graph stand for, as JSON in the file's `metadata_props`.

ONNX has no place for the width of a code below 8 bits, a clip or a target. `chipfit.target` names the chip;
`chipfit.tensors` is an object keyed by tensor name: for every edge of the program the layer and the operation with its
parameters, and for codes their width, sign and grid: `(code - zero) / scale` of a 'plain' one,
`(code + scale) / scale - 1` of an 'odd' one.

Source: spec/ingenic.md, section 5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from chipfit.program.dialect import meaning_of
from chipfit.program.types import Node, Program, ValueType


def metadata(program: Program, names: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, str]:
    """The entries of `metadata_props`.

    Args:
        program: The program.
        names: Names of the ONNX tensors by edge of the program.
        constants: The graph's initializers by name.

    Example:
        >>> from chipfit.program.core.ops import Quantise
        >>> from chipfit.program.types import VERSION, Input
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> program = Program(VERSION, "wtm2101", (q,), (Input("x", real),), ("q",), {})
        >>> entry = json.loads(metadata(program, {"q": "q/out"}, {})["chipfit.tensors"])["q/out"]
        >>> entry["operation"], entry["bits"], entry["scale"], entry["grid"]
        ('Quantise', 8, 16.0, 'plain')
    """
    tensors: dict[str, dict[str, Any]] = {}
    for node in program.nodes:
        tensors[names[node.name]] = {
            "layer": node.layer,
            "operation": type(node.op).__name__,
            **_codes(node.output),
            "parameters": asdict(node.op),
        }
        of_input = meaning_of(node.op).of_input
        if of_input is not None:
            tensors.setdefault(node.inputs[0], {}).update(of_input(node.op))
        for name in _weights(node):
            if f"codes/{name}" in constants:
                tensors[f"codes/{name}"] = {"layer": node.layer or node.name, **_range(program.tensors[name])}
    return {"chipfit.target": program.chip, "chipfit.tensors": json.dumps(tensors)}


def _codes(kind: ValueType) -> dict[str, Any]:
    """Width and sign of codes, and what they stand for; sums without a unit stand for nothing."""
    if kind.bits is None:
        return {}
    described = {"bits": kind.bits, "signed": kind.signed}
    grid = kind.grid
    return described if grid is None else {**described, "scale": grid.n, "zero": grid.zero, "grid": grid.kind}


def _weights(node: Node) -> list[str]:
    own = [getattr(node.op, field.name) for field in fields(node.op) if field.name.endswith("weight_tensor")]
    return [name for name in own if name is not None]


def _range(codes: Tensor) -> dict[str, int]:
    return {"lo": int(codes.min()), "hi": int(codes.max())} if codes.numel() else {}

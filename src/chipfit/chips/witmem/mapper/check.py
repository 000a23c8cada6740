"""Checks files for the WTM2101's compiler against every published rule, before the compiler sees them.

The rules are in `mapper/rules.py`; `check_mapper` reads a model, its side file and its calibration input and refuses
them with every broken rule. Whether the compiler then accepts them was never tested.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from chipfit.chips.witmem.mapper.check_nodes import node_problems, shape_of
from chipfit.chips.witmem.mapper.rules import (
    CALIBRATION_SAMPLES,
    FORBIDDEN,
    INDEX_INPUTS,
    INPUT_RANGE,
    IR_VERSION,
    NODES,
    OPSETS,
    SIGNED_INPUT_RANGE,
)
from chipfit.chips.witmem.mapper.side import SideEntry, read_side_text
from chipfit.errors import FileFormatError
from chipfit.export.onnx.graph import refuse_broken
from chipfit.onnx_file import read_model
from chipfit.reading import LARGEST_TEXT, checked, npy_in, reading

_KINDS = {
    **{"FLOAT": "float", "INT": "int", "STRING": "string", "TENSOR": "tensor"},
    **{"FLOATS": "floats", "INTS": "ints", "STRINGS": "strings"},
}


def check_mapper(path: str | Path) -> dict[str, int]:
    """Check an exported model, its side file `<name>.txt` and its calibration input `<name>.npy`.

    Args:
        path: The ONNX file.

    Returns:
        How many nodes of each kind it has.

    Raises:
        FileFormatError: a file is missing or unreadable, or rules are broken; the message lists all of them.
    """
    path = Path(path)
    side_path, calibration_path = path.with_suffix(".txt"), path.with_suffix(".npy")
    for needed in (path, side_path, calibration_path):
        if not needed.is_file():
            raise FileFormatError("no such file", given=needed.name, where=str(path))
    with reading("the compiler's files", path):
        model = read_model(path)
        side = read_side_text(checked(side_path, most=LARGEST_TEXT).decode("utf-8"), str(side_path))
        calibration = npy_in(checked(calibration_path), calibration_path)
        found = [*model_problems(model, side), *calibration_problems(model, side, calibration)]
        refuse_broken(found, "the WTM2101's compiler", path)
        return dict(Counter(node.op_type for node in model.graph.node))


def model_problems(model: Any, side: dict[str, SideEntry]) -> list[str]:
    """All rules that a model and its side file break, in words.

    Args:
        model: `onnx.ModelProto`.
        side: Entries of the side file.
    """
    found = _header_problems(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found += _tensor_problems(model, constants)
    found += _edge_problems(model, constants)
    found += _name_problems(model, side)
    for position, node in enumerate(model.graph.node):
        label = f"node {node.name or position} ({node.op_type})"
        if node.domain not in ("", "ai.onnx"):
            found.append(f"{label}: domain {node.domain!r}; all nodes, custom ones too, are in the default domain ''")
        if node.op_type in FORBIDDEN:
            found.append(f"{label}: never to be written, {FORBIDDEN[node.op_type]}")
        elif node.op_type not in NODES:
            found.append(f"{label}: the compiler does not read this kind; known: {', '.join(sorted(NODES))}")
        else:
            broken = attribute_problems(node, NODES[node.op_type].required, NODES[node.op_type].optional)
            broken = broken or node_problems(node, model.graph, constants, side)
            found += [f"{label}: {problem}" for problem in broken]
    return found


def _header_problems(model: Any) -> list[str]:
    found = []
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if list(opsets) != [""] or opsets[""] not in OPSETS:
        allowed = ", ".join(map(str, OPSETS))
        found.append(f"the file's opsets are {opsets}; allowed: the default domain only, at one of {allowed}")
    if model.ir_version != IR_VERSION:
        found.append(f"ir_version is {model.ir_version}; allowed: {IR_VERSION}")
    return found


def _tensor_problems(model: Any, constants: dict[str, Any]) -> list[str]:
    """All tensors are float32 and hold integers; positions and sizes are int64; the batch is one."""
    from onnx import TensorProto, numpy_helper

    found = []
    positions = {name for node in model.graph.node if node.op_type in INDEX_INPUTS for name in node.input[1:]}
    for name, tensor in constants.items():
        wanted = TensorProto.INT64 if name in positions else TensorProto.FLOAT
        if tensor.data_type != wanted:
            given, allowed = TensorProto.DataType.Name(tensor.data_type), TensorProto.DataType.Name(wanted)
            found.append(f"tensor {name}: {given}; allowed: {allowed}")
        elif not is_integral(numpy_helper.to_array(tensor)):
            found.append(f"tensor {name}: holds values that are no integers")
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            found.append(f"tensor {value.name}: not FLOAT")
    for value in [*model.graph.input, *model.graph.output]:
        sizes = shape_of(value)
        if not sizes or sizes[0] != 1 or 0 in sizes:
            found.append(f"tensor {value.name}: shape {sizes}; allowed: fixed sizes, batch 1")
    return found


def _edge_problems(model: Any, constants: dict[str, Any]) -> list[str]:
    """Every input is made before it is read, and nothing is made twice."""
    found = []
    made = set(constants) | {value.name for value in model.graph.input}
    for node in model.graph.node:
        found += [
            f"node {node.name}: reads {name}, which nothing made before it" for name in node.input if name not in made
        ]
        found += [f"node {node.name}: makes {name} a second time" for name in node.output if name in made]
        made |= set(node.output)
    return found + [f"output {v.name}: nothing makes it" for v in model.graph.output if v.name not in made]


def _name_problems(model: Any, side: dict[str, SideEntry]) -> list[str]:
    """Array nodes have names of their own, and the side file has an entry for each and for nothing else."""
    found = []
    array = [node for node in model.graph.node if node.op_type in NODES and NODES[node.op_type].array]
    found += [
        f"a {node.op_type} node has no name; array nodes need one, the side file's key"
        for node in array
        if not node.name
    ]
    names = Counter(node.name for node in model.graph.node if node.name)
    found += [f"node {name}: {count} nodes have this name" for name, count in names.items() if count > 1]
    known = {node.name for node in array}
    found += [f"side file: no entry for array node {name}" for name in sorted(known - set(side)) if name]
    found += [f"side file: {name} is no array node" for name in side if name not in known]
    for name, entry in side.items():
        if entry.signed_input not in (0, 1):
            found.append(f"side file, {name}: inputOpti.signed_input is {entry.signed_input}; allowed: 0, 1")
        if entry.multiple < 1 or entry.multiple & (entry.multiple - 1):
            found.append(f"side file, {name}: doubleWeightOpti.multiple is {entry.multiple}; allowed: a power of two")
    return found


def attribute_problems(node: Any, required: dict[str, str], optional: dict[str, str]) -> list[str]:
    """Attributes that are missing, of the wrong kind, or unknown."""
    from onnx import AttributeProto

    kinds = {a.name: _KINDS.get(AttributeProto.AttributeType.Name(a.type), "other") for a in node.attribute}
    found = [f"attribute {name} is missing" for name in required if name not in kinds]
    for name, kind in kinds.items():
        wanted = required.get(name) or optional.get(name)
        if wanted is None:
            allowed = ", ".join([*required, *optional]) or "none"
            found.append(f"attribute {name} is not allowed here; allowed: {allowed}")
        elif kind != wanted and (wanted != "number" or kind not in ("int", "float")):
            found.append(f"attribute {name} is of kind {kind}; allowed: {wanted}")
    return found


def calibration_problems(model: Any, side: dict[str, SideEntry], calibration: Any) -> list[str]:
    """What is wrong with the calibration input: float32 `[N, K]`, integer codes, at least 100 samples.

    Args:
        model: `onnx.ModelProto`.
        side: Entries of the side file.
        calibration: The array.
    """
    if calibration.dtype != np.float32 or calibration.ndim != 2:
        return [f"calibration input: {calibration.dtype}, shape {calibration.shape}; allowed: float32 [N, K]"]
    found = []
    if len(calibration) < CALIBRATION_SAMPLES:
        found.append(f"calibration input: {len(calibration)} samples; allowed: at least {CALIBRATION_SAMPLES}")
    width = sum(int(np.prod(shape_of(value)[1:])) for value in model.graph.input)
    if calibration.shape[1] != width:
        found.append(f"calibration input: {calibration.shape[1]} values a sample; allowed: {width}, the model's input")
    readers = [n.name for n in model.graph.node if n.input and n.input[0] in {v.name for v in model.graph.input}]
    signed = any(side[name].signed_input for name in readers if name in side)
    lowest, highest = SIGNED_INPUT_RANGE if signed else INPUT_RANGE
    if not is_integral(calibration):
        found.append("calibration input: holds values that are no integers")
    elif calibration.size and (calibration.min() < lowest or calibration.max() > highest):
        given = f"{calibration.min():g} to {calibration.max():g}"
        found.append(
            f"calibration input: codes from {given}; allowed: {lowest} to {highest}, as the side file declares"
        )
    return found


def is_integral(values: Any) -> bool:
    """Whether all values are finite integers."""
    return bool(np.all(np.isfinite(values)) and np.array_equal(values, np.rint(values)))

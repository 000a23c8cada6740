"""Checks files for Ingenic's Magik converter against every known rule, before the converter sees them.

The rules are in `rules.py`; what single nodes must look like is in `nodes.py` and `layers.py`. Whether the
converter then accepts the files was never tested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chipfit.chips.ingenic.devices import DEVICES
from chipfit.chips.ingenic.magik.check.nodes import node_problems
from chipfit.chips.ingenic.magik.kit.read import read_kit
from chipfit.chips.ingenic.magik.kit.source import is_kit_file
from chipfit.chips.ingenic.magik.rules import IR_VERSION, METADATA, NODES, NOT_ON_T02, OPSET, REGIONS
from chipfit.chips.ingenic.magik.view import View, attributes, field_problems, json_object, kinds, notes_of, targets_of
from chipfit.export.onnx.graph import refuse_broken
from chipfit.onnx_file import read_model
from chipfit.reading import reading


def check_magik(path: str | Path) -> dict[str, int]:
    """Check a file for Ingenic's converter.

    Args:
        path: The ONNX file.

    Returns:
        How many nodes of each kind it has.

    Raises:
        FileFormatError: the file is missing or unreadable, or rules are broken; the message lists all of them.
    """
    with reading("the Magik file", path):
        model = read_model(path)
        if is_kit_file(model):
            read_kit(model, path)
        else:
            refuse_model(model, path)
        return dict(Counter(node.op_type for node in model.graph.node))


def refuse_model(model: Any, path: str | Path) -> None:
    """Refuse a `ModelProto` that breaks rules; errors as of `check_magik`."""
    refuse_broken(model_problems(model), "the Magik format", path)


def model_problems(model: Any) -> list[str]:
    """All rules that a model breaks, in words.

    Args:
        model: `onnx.ModelProto`.
    """
    found = [*_header_problems(model), *_tensor_problems(model), *_edge_problems(model)]
    shapeless = bool(found)
    constants = {tensor.name for tensor in model.graph.initializer}
    for position, node in enumerate(model.graph.node):
        broken = list(form_problems(node, constants))
        found += [f"{label(node, position)}: {problem}" for problem in broken]
        shapeless = shapeless or bool(broken)
    targets = targets_of(model.graph.node)
    if len(targets) != 1 or not targets <= set(DEVICES):
        found.append(
            f"the file's targets are {', '.join(sorted(targets)) or 'none'}; allowed: one of {', '.join(DEVICES)}"
        )
    if shapeless or found:
        return found  # what follows relies on all of this
    view, device = View(model), DEVICES[targets.pop()]
    for position, node in enumerate(view.nodes):
        if device.family == "T02" and node.op_type in NOT_ON_T02:
            found.append(f"{label(node, position)}: T02 has no such operator")
        found += [f"{label(node, position)}: {problem}" for problem in node_problems(view, node, device)]
    return [*found, *_marker_problems(view, device.family != "T02")]


def label(node: Any, position: int = 0) -> str:
    """How messages name a node."""
    return f"node {node.name or position} ({node.op_type})"


def _header_problems(model: Any) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets != {"": OPSET}:
        yield f"the file's opsets are {opsets}; allowed: the default domain at {OPSET} only"
    if model.ir_version != IR_VERSION:
        yield f"ir_version is {model.ir_version}; allowed: {IR_VERSION}"
    if notes_of(model) is None:
        yield f"the metadata {METADATA!r} is not of the form that chipfit writes"


def _tensor_problems(model: Any) -> Iterator[str]:
    from onnx import TensorProto, numpy_helper

    sizes = {node.input[1] for node in model.graph.node if node.op_type == "Reshape" and len(node.input) > 1}
    for tensor in model.graph.initializer:
        wanted = TensorProto.INT64 if tensor.name in sizes else TensorProto.FLOAT
        if tensor.data_type != wanted:
            given, allowed = TensorProto.DataType.Name(tensor.data_type), TensorProto.DataType.Name(wanted)
            yield f"tensor {tensor.name}: {given}; allowed: {allowed}, since weights are stored as trained"
        elif not all(tensor.dims):
            yield f"tensor {tensor.name}: holds nothing"
        elif not np.isfinite(numpy_helper.to_array(tensor)).all():
            yield f"tensor {tensor.name}: holds values that are no numbers"
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            yield f"tensor {value.name}: not FLOAT"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if not all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim):
            yield f"tensor {value.name}: its shape is not fixed"


def _edge_problems(model: Any) -> Iterator[str]:
    graph = model.graph
    shaped = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    used = {name for node in graph.node for name in node.input}
    for name, count in Counter(node.name for node in graph.node).items():
        if count > 1 or not name:
            yield f"node name {name!r} is used {count} times; allowed: one name a node"
    for position, node in enumerate(graph.node):
        for name in node.input:
            if name not in known:
                yield f"{label(node, position)}: input {name!r} is made by no node before it"
        for name in node.output:
            if name in known:
                yield f"{label(node, position)}: output {name!r} is there already"
            if name not in shaped:
                yield f"{label(node, position)}: output {name!r} has no shape"
        known |= set(node.output)
    yield from (
        f"output {value.name!r} of the file is made by no node" for value in graph.output if value.name not in known
    )
    yield from (f"tensor {t.name}: no node reads it" for t in graph.initializer if t.name not in used)


def form_problems(node: Any, constants: set[str]) -> Iterator[str]:
    """What is wrong with the form of a node: its kind, domain, inputs, attributes and JSON fields."""
    if node.domain:
        yield f"domain {node.domain!r}; all nodes, custom ones too, are in the default domain ''"
    if node.op_type not in NODES:
        yield f"no node of the conventions; known: {', '.join(sorted(NODES))}"
        return
    rule = NODES[node.op_type]
    if len(node.input) not in rule.inputs:
        yield f"{len(node.input)} inputs; allowed: {' or '.join(map(str, rule.inputs[:4]))}"
    if len(node.output) not in rule.outputs:
        yield f"{len(node.output)} outputs; allowed: {' or '.join(map(str, rule.outputs[:4]))}"
    for position, name in enumerate(node.input):
        if position in rule.constants and name not in constants:
            yield f"input {position} ({name}) is no constant"
    given, allowed = kinds(node), rule.attributes | rule.optional
    for name in rule.attributes:
        if name not in given:
            yield f"attribute {name} is missing"
    for name, kind in given.items():
        if name not in allowed:
            yield f"unknown attribute {name}; known: {', '.join(allowed) or 'none'}"
        elif kind != allowed[name]:
            yield f"attribute {name} is of kind {kind}; allowed: {allowed[name]}"
    if rule.fields and given.get("param_str") == "string":
        yield from field_problems(json_object(attributes(node)["param_str"]), rule.fields, "param_str")


def _marker_problems(view: View, has_markers: bool) -> Iterator[str]:
    """Markers: one for each input and output, in order; regions that begin and end."""
    found = [(node, attributes(node)) for node in view.nodes if node.op_type == "NOp"]
    for end, names in (("input", view.inputs), ("output", view.outputs)):
        placed = [(node, json_object(a["op_attr"]).get("attr")) for node, a in found if a["op_target"] == end]
        prefix = "input_index_" if end == "input" else "index_"
        numbers = [attr for _, attr in placed]
        if has_markers and numbers != [f"{prefix}{i + 1}" for i in range(len(names))]:
            yield f"the {end} markers are {numbers}; allowed: {prefix}1 to {prefix}{len(names)} in order"
        edges = [(node.input if end == "input" else node.output)[0] for node, _ in placed]
        if has_markers and edges != names:
            yield f"the {end} markers stand at {edges}; allowed: at the file's {end}s, {names}"
    open_regions = []
    for node, a in found:
        region, _, end = a["op_target"].rpartition("_")
        if end == "start" and region in REGIONS:
            open_regions.append(region)
        elif end == "end" and region in REGIONS and (not open_regions or open_regions.pop() != region):
            yield f"{label(node)}: ends a region that was not begun"
    yield from (f"a region {region!r} is begun and not ended" for region in open_regions)

"""Looking at a Magik file: its nodes, constants and shapes, and what it says of each edge's codes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from chipfit.chips.ingenic.magik.graph import Tag
from chipfit.chips.ingenic.magik.rules import METADATA, NODES

_KINDS = {1: "float", 2: "int", 3: "string", 4: "tensor", 7: "ints"}
_PASSING = {
    "NOp", "Pad", "MaxPool", "MaxRoiPool", "Upsample", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split",
    "Max",
}  # fmt: skip
"""Nodes whose outputs are codes of their first input's grid."""


class View:
    """A model with its nodes by edge; nothing is checked here.

    Attributes:
        nodes: In order of the file.
        shapes: Declared shape of every edge and constant.
        types: Likewise its type of numbers.
        makers: The node that makes an edge.
        readers: The nodes that read an edge.
        notes: What the file holds beside the conventions: `{"layers": …, "edges": …}`.
        tags: Width and sign of each edge, where the file says them.
    """

    def __init__(self, model: Any) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.shapes = {name: tuple(tensor.dims) for name, tensor in self._constants.items()}
        self.types = {name: tensor.data_type for name, tensor in self._constants.items()}
        for value in (*graph.input, *graph.output, *graph.value_info):
            self.types[value.name] = value.type.tensor_type.elem_type
            self.shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.notes = notes_of(model) or {"layers": {}, "edges": {}}
        self.tags: dict[str, Tag | None] = {}
        for node in self.nodes:
            tag = self._tag(node)
            self.tags |= dict.fromkeys(node.output, tag)
        self.tags |= {name: Tag(*tag) for name, tag in self.notes["edges"].items()}

    def constant(self, name: str) -> bool:
        """Whether an edge is an initializer."""
        return name in self._constants

    def tensor(self, name: str) -> Any:
        """An initializer's `TensorProto`."""
        return self._constants[name]

    def array(self, name: str) -> Any:
        """An initializer's values."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._constants[name])

    def noted(self, layer: str, field: str, otherwise: Any) -> Any:
        """A number that is noted beside the graph because an attribute does not hold it exactly."""
        return self.notes["layers"].get(layer, {}).get(field, otherwise)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an edge, () where none is declared."""
        return self.shapes.get(name, ())

    def _tag(self, node: Any) -> Tag | None:
        if is_image(node):
            return None  # an image has the marker's description
        if node.op_type in _PASSING:
            return self.tags.get(node.input[0]) if node.input else None
        if node.op_type == "Concat":
            found = {self.tags.get(name) for name in node.input}
            return found.pop() if len(found) == 1 else None
        values = attributes(node) if node.op_type == "QuantizeFeature" else fields(node)
        bits, low = values.get("output_bitwidth"), values.get("clip_min_value")
        return Tag(bits, low < 0) if isinstance(bits, int) and isinstance(low, float) else None


def notes_of(model: Any) -> dict[str, dict[str, Any]] | None:
    """What a file holds beside the conventions; None where it is not of that form."""
    notes: dict[str, dict[str, Any]] = {"layers": {}, "edges": {}}
    for entry in model.metadata_props:
        if entry.key == METADATA:
            notes |= json_object(entry.value)
            if set(json_object(entry.value)) != {"layers", "edges"}:
                return None
    if not all(isinstance(part, dict) for part in notes.values()):
        return None
    tags = [tag if isinstance(tag, list) else [] for tag in notes["edges"].values()]
    described = all([type(value) for value in tag] == [int, bool] for tag in tags)
    return notes if described and all(isinstance(layer, dict) for layer in notes["layers"].values()) else None


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values."""
    from onnx import helper

    found = {}
    for entry in node.attribute:
        value = helper.get_attribute_value(entry)
        found[entry.name] = value.decode() if isinstance(value, bytes) else value
    return found


def is_image(node: Any) -> bool:
    """Whether a node is the marker of preprocessing."""
    return node.op_type == "NOp" and attributes(node).get("op_target") == "preprocess_end"


def targets_of(nodes: Any) -> set[str]:
    """The targets that nodes name, but for grids of another one: those of pixels and of depthwise weights."""
    pixels = {name for node in nodes if is_image(node) for name in node.input}
    names = [
        (attributes(node) | fields(node)).get("target_device")
        for node in nodes
        if node.op_type != "QuantizeWeight" and not pixels & set(node.output)
    ]
    return {name for name in names if isinstance(name, str)}


def kinds(node: Any) -> dict[str, str]:
    """The kind of each of a node's attributes."""
    return {entry.name: _KINDS.get(entry.type, "another") for entry in node.attribute}


def fields(node: Any) -> dict[str, Any]:
    """The JSON object in a node's `param_str`; empty where there is none, or it is none."""
    if not NODES.get(node.op_type) or not NODES[node.op_type].fields:
        return {}
    return json_object(str(attributes(node).get("param_str", "")))


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, or an empty one where the text is something else.

    Example:
        >>> json_object('{"a": 1}'), json_object("a")
        ({'a': 1}, {})
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def field_problems(given: dict[str, Any], wanted: dict[str, Any], where: str) -> Iterator[str]:
    """What is wrong with the fields of a JSON object."""
    if not given:
        yield f"{where} is no JSON object"
        return
    for name, kind in wanted.items():
        if name not in given:
            yield f"{where}: field {name} is missing"
        elif type(given[name]) is not kind:
            yield f"{where}: field {name} is {given[name]!r}; allowed: a JSON value of type {kind.__name__}"
    for name in given:
        if name not in wanted:
            yield f"{where}: unknown field {name}; known: {', '.join(wanted)}"


def is_filled(array: Any, value: float) -> bool:
    """Whether all values of an array are one number."""
    return bool(np.all(array == value))

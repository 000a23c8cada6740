"""A file of the vendor's kit as a list of nodes: constants folded, cut behind the last output marker, edges looked up.

Such files keep scalars and even weights behind Constant nodes, and go on behind the network with whatever the user's
code computes from its outputs: shapes, grids of anchors, boxes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from chipfit.chips.ingenic.magik.rules import METADATA
from chipfit.chips.ingenic.magik.view import attributes, json_object
from chipfit.errors import FileFormatError

_LARGEST = 1 << 20
"""Numbers that a folded constant may have; those that are folded are sizes, factors and biases."""
_OWN = ("NOp", "QuantizeFeature", "QuantizeWeight")


def is_kit_file(model: Any) -> bool:
    """Whether a file is the vendor's own: it has nodes of the kit, and chipfit did not write it."""
    ours = model.producer_name == "chipfit" or any(entry.key == METADATA for entry in model.metadata_props)
    return not ours and any(n.op_type in _OWN or n.op_type.startswith("Quantize") for n in model.graph.node)


def marker(node: Any) -> str:
    """What a marker marks; '' for another node."""
    return str(attributes(node).get("op_target", "")) if node.op_type == "NOp" else ""


def op_attr(node: Any) -> Any:
    """What a marker says of the operator, None where it says nothing."""
    return json_object(str(attributes(node).get("op_attr", ""))).get("attr")


class Source:
    """The nodes that the network's outputs depend on.

    Attributes:
        inputs: Shape of each input that is no constant, the batch as the file has it, or 1.
        outputs: Edges that the output markers stand at, in the order of their numbers; without markers the file's.
        nodes: What these depend on, in order, without constants.
        constants: Their values by edge.
        named: The file's name of a constant that is a parameter, also of one that was only reshaped.
        makers: The node that makes an edge.
        readers: The nodes that take an edge, output markers among them.
    """

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        graph = model.graph
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.named = {name: name for name in self.constants}
        for node in graph.node:
            held = [entry.t for entry in node.attribute if entry.name == "value" and entry.HasField("t")]
            if node.op_type == "Constant" and held:  # others, behind the network, hold texts or nothing
                self.constants[node.output[0]] = numpy_helper.to_array(held[0])
        self.inputs = {v.name: _shape(v) for v in graph.input if v.name not in self.constants}
        self.makers = {edge: node for node in graph.node for edge in node.output}
        marks = [node for node in graph.node if marker(node) == "output"]
        marks.sort(key=lambda node: _number(op_attr(node)))
        self.outputs = [node.input[0] for node in marks] or [value.name for value in graph.output]
        needed = self._needed()
        self.nodes = [node for node in graph.node if id(node) in needed and node.op_type != "Constant"]
        self.readers: dict[str, list[Any]] = defaultdict(list)
        for node in (*self.nodes, *marks):
            for edge in dict.fromkeys(node.input):
                self.readers[edge].append(node)
        for node in self.nodes:
            self.fold(node)

    def _needed(self) -> set[int]:
        found: set[int] = set()
        open_edges = list(self.outputs)
        while open_edges:
            node = self.makers.get(open_edges.pop())
            if node is not None and id(node) not in found:
                found.add(id(node))
                open_edges += node.input
        return found

    def fold(self, node: Any, shape: tuple[int, ...] | None = None) -> bool:
        """Compute a node of constants.

        Args:
            node: The node.
            shape: Of its input; only `Shape` needs it.

        Returns:
            Whether its output is a constant.
        """
        if node.op_type == "Shape" and shape is not None:
            self.constants[node.output[0]] = np.array(shape, np.int64)
        elif node.op_type in _FOLDED and node.input and all(edge in self.constants for edge in node.input):
            made = np.asarray(_FOLDED[node.op_type](attributes(node), [self.constants[edge] for edge in node.input]))
            if made.size > _LARGEST and node.op_type not in _SAME:
                raise FileFormatError("a constant is too large", given=made.shape, where=node.op_type)
            self.constants[node.output[0]] = made
            if node.op_type in _SAME and node.input[0] in self.named:
                self.named[node.output[0]] = self.named[node.input[0]]
        return node.output[0] in self.constants

    def behind(self, edge: str) -> list[Any]:
        """The nodes that take an edge as their data, and not beside it, as older quantisers take what made theirs."""
        return [n for n in self.readers[edge] if n.op_type != "QuantizeFeature" or n.input[0] == edge]

    def origin(self, edge: str) -> str:
        """Where an edge comes from, through borders, markers and what only moves data."""
        while edge in self.makers and self.makers[edge].op_type in ("Pad", "NOp", "Reshape", "Transpose", "Slice"):
            edge = self.makers[edge].input[0]
        return edge


def _shape(value: Any) -> tuple[int, ...]:
    """A fixed shape; a batch that the file leaves open is 1."""
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    fixed = (max(sizes[0], 1), *sizes[1:]) if sizes else ()
    if not fixed or min(fixed) < 1 or math.prod(fixed) > 1 << 24:
        raise FileFormatError(
            "the shape of an input is not fixed, or is no network's", given=sizes, where=f"input {value.name}"
        )
    return fixed


def _number(attr: Any) -> int:
    """The number at the end of an output marker's text."""
    digits = str(attr).rpartition("_")[2]
    return int(digits) if digits.isdecimal() and len(digits) < 9 else 0


def sliced(a: dict[str, Any], rank: int) -> tuple[slice, ...]:
    """The index that a `Slice` of these attributes takes of something of this many axes."""
    index = [slice(None)] * rank
    for axis, start, end in zip(a.get("axes", range(len(a["starts"]))), a["starts"], a["ends"], strict=True):
        index[axis] = slice(start, end)
    return tuple(index)


def _divided(a: dict[str, Any], given: list[Any]) -> Any:
    integer = given[0].dtype.kind == "i"
    return np.floor_divide(*given) if integer else np.divide(*given)


def _cast(a: dict[str, Any], given: list[Any]) -> Any:
    from onnx import helper

    return given[0].astype(helper.tensor_dtype_to_np_dtype(a["to"]))


def _squeezed(a: dict[str, Any], given: list[Any]) -> Any:
    return np.squeeze(given[0], tuple(a["axes"]) if "axes" in a else None)


_FOLDED: dict[str, Callable[[dict[str, Any], list[Any]], Any]] = {
    "Identity": lambda a, given: given[0],
    "Reshape": lambda a, given: given[0].reshape([int(size) for size in given[1]]),
    "Transpose": lambda a, given: given[0].transpose(a.get("perm")),
    "Unsqueeze": lambda a, given: np.expand_dims(given[0], tuple(a["axes"])),
    "Squeeze": _squeezed,
    "Concat": lambda a, given: np.concatenate(given, a["axis"]),
    "Gather": lambda a, given: np.take(given[0], given[1], a.get("axis", 0)),
    "Slice": lambda a, given: given[0][sliced(a, given[0].ndim)],
    "Cast": _cast,
    "Add": lambda a, given: np.add(*given),
    "Sub": lambda a, given: np.subtract(*given),
    "Mul": lambda a, given: np.multiply(*given),
    "Div": _divided,
    "Floor": lambda a, given: np.floor(given[0]),
}
"""What nodes compute from constants."""
_SAME = ("Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose")
"""Those that leave a parameter what it is."""

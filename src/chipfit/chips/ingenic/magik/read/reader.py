"""What the rules that read Magik nodes work with: the nodes of a layer, and the network under construction."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from chipfit.chips.ingenic.devices import DEVICES, Device
from chipfit.chips.ingenic.magik.graph import layer_of
from chipfit.chips.ingenic.magik.view import View, targets_of
from chipfit.convert import names
from chipfit.convert.made import finished, put
from chipfit.errors import FileFormatError


class Unit:
    """The nodes of one call of a layer.

    Attributes:
        name: Layer, and number of the call from the second on.
        layer: Qualified name of the layer.
        nodes: In order.
    """

    def __init__(self, name: str) -> None:
        self.name, self.layer = name, layer_of(name)
        self.nodes: list[Any] = []

    def has(self, kind: str) -> bool:
        """Whether there is a node of a kind."""
        return any(node.op_type == kind for node in self.nodes)

    def node(self, kind: str) -> Any:
        """The first node of a kind."""
        return next(node for node in self.nodes if node.op_type == kind)

    def part(self, name: str) -> Any:
        """The node of a name behind the slash, or None."""
        return next((node for node in self.nodes if node.name == f"{self.name}/{name}"), None)

    @property
    def output(self) -> str:
        """The edge that it leads to."""
        return str(self.nodes[-1].output[0])


class Built(NamedTuple):
    """A layer and how it is called.

    Args:
        layer: The layer.
        given: Its argument.
        picked: Where in what it returns the tensor is.
    """

    layer: nn.Module
    given: Any
    picked: tuple[int, ...]


class Reader:
    """The network under construction.

    Attributes:
        view: The file.
        device: Its target.
        units: Calls of layers by name, in order.
        inside: Units that are parts of another layer.
        arguments: The network's argument for each of the file's inputs.
        paths: Qualified name in the network of each of the file's layers.
        values: What the network computes for an edge, a bare tensor.
        images: Mean, divisor and minimum of edges that come from Preprocess.
    """

    def __init__(self, view: View) -> None:
        self.view, self.graph, self.root = view, fx.Graph(), nn.Module()
        self.units: dict[str, Unit] = {}
        self.device: Device = DEVICES[targets_of(view.nodes).pop()]
        for node in view.nodes:
            name = node.name.partition("/")[0]
            self.units.setdefault(name, Unit(name)).nodes.append(node)
        self.inside = {part for unit in self.units.values() for part in self.parts_of(unit)}
        self.arguments = names.arguments(view.inputs)
        self.paths = names.paths(unit.layer for unit in self.units.values() if unit.name not in self.inside)
        self.values: dict[str, fx.Node] = {edge: self.graph.placeholder(own) for edge, own in self.arguments.items()}
        self.images: dict[str, tuple[float, float, float]] = {}
        self.outputs: list[fx.Node] = []

    def parts_of(self, unit: Unit) -> list[str]:
        """The parts of an Se_Block, told by their names; nothing for another layer."""
        call = unit.name[len(unit.layer) :]
        parts = [f"{unit.layer}.{part}{call}" for part in ("adaptivepool", "conv1", "conv2")]
        return parts if unit.nodes[0].op_type == "Mul" and all(part in self.units for part in parts) else []

    def inputs(self, unit: Unit) -> list[str]:
        """Edges that a unit reads from others."""
        own = {name for node in unit.nodes for name in node.output}
        found = [name for node in unit.nodes for name in node.input if name not in own and not self.view.constant(name)]
        return list(dict.fromkeys(found))

    def bits(self, edge: str, otherwise: int = 32) -> int:
        """Width of an edge's codes."""
        tag = self.view.tags.get(edge)
        return otherwise if tag is None else tag.bits

    def described(self, edge: str, bits: int | None = None, low: float | None = None) -> Any:
        """What a layer is given for an edge: the vendor's tuple, or the bare tensor where nothing is known of it."""
        if edge in self.images:
            mean, var, least = self.images[edge]
            return self.values[edge], 8, mean, var, least
        tag = self.view.tags.get(edge)
        if bits is None and tag is not None:
            bits, low = tag.bits, -1.0 if tag.signed else 0.0
        return self.values[edge] if bits is None else (self.values[edge], bits, low)

    def call(self, unit: Unit, layer: nn.Module, *args: Any, picked: tuple[int, ...] = ()) -> fx.Node:
        """Put a layer in its place and call it.

        Args:
            unit: Its nodes.
            layer: The layer; one that is there already, from an earlier call, is kept.
            *args: Its arguments.
            picked: Where in what it returns the tensor of the unit's output is.
        """
        path = self.paths[unit.layer]
        put(self.root, path, layer)
        made = self.graph.call_module(path, args)
        self.values[unit.output] = self.pick(made, picked)
        return made

    def call_function(self, name: str, function: Any, args: Any, options: Any) -> fx.Node:
        """Call plain torch, under the file's name for it where that is a plain word."""
        own = name if names.plain_argument(name) else None
        return self.graph.create_node("call_function", function, args, options, name=own)

    def pick(self, made: fx.Node, picked: tuple[int, ...]) -> fx.Node:
        """A part of what a call returns."""
        for position in picked:
            made = self.graph.call_function(operator.getitem, (made, position))
        return made

    def network(self) -> fx.GraphModule:
        """The finished network."""
        ends = self.outputs or [self.values[name] for name in self.view.outputs]  # T02 has no markers
        self.graph.output(ends[0] if len(ends) == 1 else tuple(ends))
        return finished("MagikNetwork", self.root, self.graph, self.arguments, self.paths)


def learned(reader: Reader, layer: str) -> bool:
    """Whether a layer learns its clip value."""
    return bool(reader.view.noted(layer, "learned_clip", False))


def fill(tensor: torch.Tensor | None, values: Any) -> None:
    """Put a constant of the file into a parameter or buffer."""
    if tensor is None:
        raise FileFormatError("a constant belongs to nothing in the layer")
    with torch.no_grad():
        tensor.copy_(torch.tensor(values).reshape(tensor.shape))

"""What the rules that write Magik nodes work with: edges that know their width and sign, and the graph they add to."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx

from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.magik.rules import MARKERS, NODE_VERSION
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight
from chipfit.chips.ingenic.operators.features import Feature, read, read_list
from chipfit.errors import UnsupportedError
from chipfit.export.onnx.graph import GraphBuilder

Written = Any
"""What a traced value becomes: an `Edge`, or the vendor's tuples and lists with edges in place of tensors."""


UNWRITTEN = "?"
"""Name of an edge in place of one that could not be written, so that what comes after it is looked at too."""


class Tag(NamedTuple):
    """Width of an edge's codes, and whether there are negative ones."""

    bits: int
    signed: bool


@dataclass(frozen=True)
class Edge:
    """An edge of the ONNX graph.

    Args:
        name: Its name.
        sample: Its values for one sample of the example.
        tag: What the file says of its codes; None for real numbers and for what only a later node says.
    """

    name: str
    sample: Tensor
    tag: Tag | None = None


def decimal(value: float) -> float:
    """The number that a float32 attribute was written for: the shortest decimal that rounds to it.

    Example:
        >>> decimal(float(np.float32(0.1)))
        0.1
    """
    return float(str(np.float32(value)))


def samples(written: Written) -> Any:
    """The values on the example in place of the edges."""
    return fx.node.map_aggregate(written, lambda x: x.sample if isinstance(x, Edge) else x)


def array(values: Any) -> Any:
    """Numbers, or a parameter, as a float32 array."""
    return torch.as_tensor(values).detach().cpu().to(torch.float32).numpy()


class MagikGraph:
    """The file under construction.

    Every node and edge is named by the layer that it belongs to: `fc`, and `fc/quantize_weight` for the node beside
    it; a layer that is called again is `fc@2`.

    Attributes:
        target: The network's target.
        builder: Nodes and constants so far.
        shapes: Shape of every edge, for one sample.
        integers: Edges that hold positions in a table.
        layers: By layer, what the conventions have no field for.
        edges: By edge, width and sign where no node says them.
    """

    def __init__(self, target: Device) -> None:
        self.target, self.builder = target, GraphBuilder()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.integers: set[str] = set()
        self.layers: dict[str, dict[str, Any]] = {}
        self.edges: dict[str, list[Any]] = {}
        self._units: Counter[str] = Counter()

    def unit(self, layer: str) -> str:
        """A name for a call of a layer.

        Raises:
            UnsupportedError: the layer's name has a sign in it that tells nodes and calls apart.
        """
        if "/" in layer or "@" in layer:
            raise UnsupportedError("the layer's name cannot stand in a file", given=layer, allowed="no / and no @")
        self._units[layer] += 1
        return layer if self._units[layer] == 1 else f"{layer}@{self._units[layer]}"

    def add(
        self, kind: str, name: str, *inputs: Edge | str, sample: Tensor, tag: Tag | None = None, **attributes: Any
    ) -> Edge:
        """Add a node.

        Args:
            kind: Operator.
            name: Name of the node and of its output.
            *inputs: Edges, or names of constants.
            sample: Its output for one sample.
            tag: See `Edge`.
            **attributes: Attributes of the node.
        """
        names = [x.name if isinstance(x, Edge) else x for x in inputs]
        self.builder.add(kind, *names, output=name, **attributes)
        return self.made(name, sample, tag)

    def made(self, name: str, sample: Tensor, tag: Tag | None = None) -> Edge:
        """The edge of an output that a node has just been given."""
        self.shapes[name] = tuple(sample.shape)
        if not sample.is_floating_point():
            self.integers.add(name)
        return Edge(name, sample, tag)

    def constant(self, name: str, values: Any) -> str:
        """Add a float constant under a name; a parameter's is that in `state_dict`."""
        return self.builder.constant(array(values), name)

    def filled(self, value: float, count: int) -> str:
        """The constant that stands for an input that the layer does not have: zeros, ones or minus ones."""
        name = {0.0: "zeros", 1.0: "ones", -1.0: "minus_ones"}[value]
        return self.builder.constant(np.full(count, value, np.float32), f"{name}[{count}]")

    def shape(self, name: str, sizes: Any) -> str:
        """Add the shape that a Reshape leads to."""
        return self.builder.constant(np.array(sizes, np.int64), f"{name}/shape")

    def marker(self, name: str, op_target: str, attr: Any, x: Edge) -> Edge:
        """Add a marker, which changes nothing; T02 has none."""
        if self.target.family == "T02":
            return x
        text = json.dumps({"op_type": MARKERS[op_target], "attr": attr})
        return self.add(
            "NOp", name, x, sample=x.sample, tag=x.tag,
            op_target=op_target, op_attr=text, target_device=self.target.name, version=NODE_VERSION,
        )  # fmt: skip

    def quantise(
        self, name: str, x: Edge, tag: Tag, clip: float, pre_lstm_layer: bool = False, target: str = ""
    ) -> Edge:
        """Add a feature quantiser; the sample passes as it is, since only its shape is used from here on."""
        self.exact(name, "clip", clip)
        return self.add(
            "QuantizeFeature", name, x, sample=x.sample, tag=tag,
            output_bitwidth=tag.bits, clip_min_value=-clip if tag.signed else 0.0, clip_max_value=clip,
            pre_lstm_layer=int(pre_lstm_layer), target_device=target or self.target.name, data_format="NCHW",
            version=NODE_VERSION, tensor_name=name,
        )  # fmt: skip

    def fits(self, channels: int, what: str) -> None:
        """Refuse channels that no node of the file shows, or no rule of `check_magik` looks at.

        Raises:
            UnsupportedError: they are no multiple of what the target needs.
        """
        multiple = self.target.channel_multiple
        if channels % multiple:
            raise UnsupportedError(
                "the converter refuses the channel count",
                given=f"{channels} {what}",
                allowed=f"multiples of {multiple} on {self.target.name}",
            )

    def exact(self, name: str, field: str, value: float) -> None:
        """Note a number beside the graph where a float32 attribute does not hold it."""
        if decimal(value) != value:
            self.layers.setdefault(layer_of(name), {})[field] = value

    def note_statistics(self, layer: str, quantiser: QuantizeWeight) -> None:
        """Note beside the graph statistics that are not in the vendor's order, and a weight held for nearest codes."""
        if not quantiser.sequential:
            self.layers.setdefault(layer, {})["vendor_statistics"] = False
        if quantiser.nearest:
            self.layers.setdefault(layer, {})["nearest_codes"] = True

    def read(self, inputs: Written, operator: str, bits: int = 32, first_layer: bool = False) -> tuple[Edge, Feature]:
        """Read a layer's input as the layer does, and see to it that the file says the same of the edge.

        Raises:
            UnsupportedError: the layer takes its input for something else than the layer before it gave.
        """
        feature = read(samples(inputs), operator, bits, first_layer)
        edge = inputs if isinstance(inputs, Edge) else inputs[0]
        return self.agreed(edge, feature, operator), feature

    def read_moved(self, inputs: Written, operator: str) -> tuple[Edge, Feature]:
        """Read the input of an operator that only moves data, and passes a bare tensor on undescribed."""
        feature = read(samples(inputs), operator)
        edge = inputs if isinstance(inputs, Edge) else inputs[0]
        return (self.agreed(edge, feature, operator) if feature.tagged else edge), feature

    def read_list(
        self, inputs: Written, operator: str, bits: int | None = None, **options: Any
    ) -> list[tuple[Edge, Feature]]:
        """Read the inputs of an operator on several features, bare tensors as features of `bits` if that is given."""
        found = []
        for x, feature in zip(inputs, read_list(samples(list(inputs)), operator, **options), strict=True):
            edge = x if isinstance(x, Edge) else x[0]
            if not feature.tagged and bits is not None:
                feature = feature._replace(bits=bits)
            described = feature.tagged or bits is not None
            found.append((self.agreed(edge, feature, operator) if described else edge, feature))
        return found

    def agreed(self, edge: Edge, feature: Feature, operator: str) -> Edge:
        """The edge with the tag that its reader sees; where no node says it, it is noted beside the graph."""
        if edge.name == UNWRITTEN:
            return edge
        wanted = Tag(feature.bits, feature.signed)
        noted = self.edges.get(edge.name)
        known = edge.tag if noted is None else Tag(*noted)
        if known is None and feature.prepared is None:
            self.edges[edge.name] = [*wanted]
        elif known is not None and known != wanted:
            raise UnsupportedError(
                "the layer takes its input for another feature than the layer before it gives",
                given=f"{wanted.bits} bits, {'signed' if wanted.signed else 'unsigned'}",
                allowed=f"{known.bits} bits, {'signed' if known.signed else 'unsigned'}",
                where=operator,
                hint="Hand on the whole tuple (tensor, bit, min).",
            )
        return replace(edge, tag=wanted)


def layer_of(name: str) -> str:
    """The layer that a node or edge belongs to.

    Example:
        >>> layer_of("neck.fc@2/quantize_weight")
        'neck.fc'
    """
    return name.partition("/")[0].partition("@")[0]

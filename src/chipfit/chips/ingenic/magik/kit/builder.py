"""The network that a file of the vendor's kit becomes, built call by call and run on zeros as it grows.

What each layer returns, the vendor's tuple with width and sign, is handed to the next one as in a user's network. The
run tells every shape, and what does not fit.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.magik.kit.source import Source
from chipfit.chips.ingenic.magik.view import attributes
from chipfit.chips.ingenic.operators.bridges import PadFeature
from chipfit.chips.ingenic.operators.features import pad_value, read
from chipfit.convert import names
from chipfit.convert.made import finished, put
from chipfit.errors import FileFormatError

ENDINGS = (".Conv2d.weight", ".Linear.weight", ".BatchNorm2d.batch_norm.weight", ".weight_l0")
"""What follows a layer's name in the name of its weight."""


LARGEST = 1 << 26
"""Numbers that an edge may have for one batch; what grows beyond is no network's."""


class Value(NamedTuple):
    """What an edge stands for.

    Args:
        node: The call in the graph, or a tuple of them.
        sample: What it returns for zeros: a tensor, or the vendor's tuple.
    """

    node: Any
    sample: Any

    @property
    def tagged(self) -> bool:
        """Whether it is the vendor's tuple."""
        return isinstance(self.sample, (tuple, list))

    @property
    def image(self) -> bool:
        """Whether it is what Preprocess returns, the tuple with mean and divisor."""
        return self.tagged and len(self.sample) == 5

    @property
    def bits(self) -> int:
        """Width of its codes; 32 for a bare tensor."""
        found: int = self.sample[1] if self.tagged else 32
        return found

    @property
    def tensor(self) -> Tensor:
        """The sample without what is said of it."""
        found: Tensor = self.sample[0] if self.tagged else self.sample
        return found


class Unread(Exception):
    """An edge comes from what could not be read, which was reported where it stands."""


class Kit:
    """The network under construction.

    Attributes:
        source: The file.
        device: Its target, a `Device` that layers take for its name; without the channel multiples, which older kits
            did not ask for.
        values: What edges stand for.
        done: Nodes that belong to a layer, by `id`.
    """

    def __init__(self, source: Source, device: Device) -> None:
        self.source = source
        self.device: Any = replace(device, channel_multiple=1)
        self.graph, self.root = fx.Graph(), nn.Module()
        self.values: dict[str, Value] = {}
        self.done: set[int] = set()
        self._layers: dict[str, tuple[str, nn.Module]] = {}
        given = {name[: -len(end)] for name in source.named for end in ENDINGS if name.endswith(end)}
        self._paths = names.paths(sorted(given))
        self._taken = {path.partition(".")[0] for path in self._paths.values()}
        self._count: Counter[str] = Counter()
        self.arguments = names.arguments(source.inputs)
        for edge, shape in source.inputs.items():
            self.values[edge] = Value(self.graph.placeholder(self.arguments[edge]), torch.zeros(shape))

    # --- names

    def path(self, parameter: str, kind: str) -> str:
        """A layer's place in the network: that of its weight in the file, or a new one after what it is.

        Args:
            parameter: The file's name of its weight, '' where there is none.
            kind: What the layer is.
        """
        for end in ENDINGS:
            path = self._paths[parameter[: -len(end)]] if parameter.endswith(end) else ""
            if path and path not in [taken for taken, _ in self._layers.values()]:
                return path
        while True:
            self._count[kind] += 1
            name = f"{kind}_{self._count[kind]}"
            if name not in self._taken:
                return name

    def known(self, parameter: str) -> nn.Module | None:
        """The layer that a weight was read into at an earlier call."""
        return self._layers[parameter][1] if parameter in self._layers else None

    # --- edges

    def at(self, edge: str) -> Value:
        """What an edge stands for; a border that no layer's own padding is becomes a layer of its own.

        Raises:
            Unread: it could not be read.
        """
        if edge in self.values:
            return self.values[edge]
        node = self.source.makers.get(edge)
        if node is None or node.op_type != "Pad":
            raise Unread(edge)
        a = attributes(node)
        x, around = self.at(node.input[0]), list(a["pads"])
        rank = len(around) // 2
        first = next((axis for axis in range(rank) if around[axis] or around[rank + axis]), rank)
        sides = tuple(n for axis in reversed(range(first, rank)) for n in (around[axis], around[rank + axis]))
        self.check_border(x, a)
        check_size(
            math.prod(n + low + high for n, low, high in zip(x.tensor.shape, around, around[rank:], strict=False))
        )
        self.values[edge] = self.call("", "pad", PadFeature(sides, "zero", self.device.name), x)
        return self.values[edge]

    def check_border(self, x: Value, a: dict[str, Any]) -> None:
        """Refuse a border that is filled otherwise than the chip fills it.

        Args:
            x: What it is put around.
            a: The attributes of its `Pad`.

        Raises:
            FileFormatError: it is.
        """
        value, mode = a.get("value", 0.0), a.get("mode", "constant")
        wanted = pad_value(read(x.sample, "Pad", first_layer=x.image), self.device, x.image)
        if (value, mode) != (wanted, "constant"):
            raise FileFormatError("the border is filled otherwise than the chip does", given=value, allowed=f"{wanted}")

    # --- calls

    def call(self, parameter: str, kind: str, layer: nn.Module, *args: Any) -> Value:
        """Put a layer in its place and call it.

        Args:
            parameter: The file's name of its weight: a layer that is there already, from an earlier call, is kept.
            kind: What it is, for a name of its own.
            layer: The layer.
            *args: Its arguments, values among them.
        """
        if parameter in self._layers:
            path, layer = self._layers[parameter]
        else:
            path = self.path(parameter, kind)
            put(self.root, path, layer)
            if parameter:
                self._layers[parameter] = path, layer
        with torch.no_grad():
            result = layer(*_each(args, lambda value: value.sample))
        return Value(self.graph.call_module(path, tuple(_each(args, lambda value: value.node))), result)

    def function(self, function: Callable[..., Any], *args: Any, **options: Any) -> Value:
        """Call plain torch."""
        with torch.no_grad():
            result = function(*_each(args, lambda value: value.sample), **options)
        made = self.graph.call_function(function, tuple(_each(args, lambda value: value.node)), options)
        return Value(made, result)

    def part(self, value: Value, *positions: int) -> Value:
        """A part of what a call returned."""
        for position in positions:
            at: Any = value.node
            if not isinstance(at, tuple):
                at = self.graph.call_function(operator.getitem, (at, position))
            else:
                at = at[position]
            value = Value(at, value.sample[position])
        return value

    def real(self, value: Value) -> Value:
        """The bare tensor."""
        return self.part(value, 0) if value.tagged else value

    def moved(self, value: Value, function: Callable[..., Any], *args: Any) -> Value:
        """A feature whose data only move keeps what is said of it."""
        made = self.function(function, self.real(value), *args)
        if not value.tagged:
            return made
        rest = [self.part(value, i) for i in range(1, len(value.sample))]
        return Value((made.node, *(part.node for part in rest)), (made.sample, *(part.sample for part in rest)))

    def take(self, nodes: Iterable[Any]) -> None:
        """Note that nodes belong to a layer."""
        self.done |= {id(node) for node in nodes}

    def network(self) -> fx.GraphModule:
        """The finished network."""
        ends = [self.real(self.at(edge)).node for edge in self.source.outputs]
        self.graph.output(ends[0] if len(ends) == 1 else tuple(ends))
        return finished("MagikNetwork", self.root, self.graph, self.arguments, self._paths)


def check_size(count: float) -> None:
    """Refuse to compute an edge that is larger than any network's.

    Raises:
        FileFormatError: it is.
    """
    if not 0 <= count <= LARGEST:
        raise FileFormatError("an edge is larger than any network's", given=count, allowed=f"{LARGEST} numbers")


def _each(args: Any, function: Callable[[Value], Any]) -> Any:
    """A function of every value in nested arguments."""
    if isinstance(args, Value):
        return function(args)
    if isinstance(args, (tuple, list)):
        return type(args)(_each(part, function) for part in args)
    return args

"""The network under construction: calls, what they give for two sizes of the batch, constants, names.

A call whose arguments are all known is computed at once, so that constants fold and shapes become numbers; any other
becomes a call of the network, and is computed without data for both sizes of the batch.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.convert.made import put
from chipfit.convert.names import plain_path
from chipfit.convert.onnx.values import BATCHES, RefusedError, UnfitError, Value, same

LARGEST = 1 << 26
"""Numbers that an edge may have for one input; what grows beyond is no edge network's."""


class Builder:
    """The network under construction.

    Args:
        opset: Version of the operators.
        batch: The batch's size in a file that fixes it; None where it is free.
        reserved: Names that constants have, for whose layers places are kept.

    Attributes:
        graph: What calls what.
        root: The layers and constants.
        layers: The layer of each call of one.
        files: The file's name of each place.
        operator: Operator of the file's node that is being read.
        name: Its name.
        outputs: Number of its outputs.
        shapes: What each call gives for each of `BATCHES`.
        first_input: The first input that has a batch, and its axis.
        shared: Places of layers by what tells them apart.
        calls: Number of calls of a layer, by its place.
        readers: Number of nodes of the file that read a call.
    """

    def __init__(self, opset: int, batch: int | None, reserved: set[str]) -> None:
        self.opset, self.batch, self.reserved = opset, batch, reserved
        self.graph, self.root = fx.Graph(), nn.Module()
        self.layers: dict[fx.Node, Any] = {}
        self.files: dict[str, str] = {}
        self.operator, self.name, self.outputs = "", "", 1
        self.shapes: dict[fx.Node, Any] = {}
        self.first_input: tuple[fx.Node, int] | None = None
        self.shared: dict[Any, str] = {}
        self.readers: dict[fx.Node, int] = {}
        self.calls: Counter[str] = Counter()
        self._leaves: set[str] = set()
        self._inner: set[str] = set()
        self._constants: dict[tuple[str, int], tuple[Value, fx.Node]] = {}

    # --- values

    def argument(self, name: str, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, axis: int | None) -> Value:
        """An input of the network; `axis` is that of the batch."""
        node = self.graph.placeholder(name)
        if axis is not None and self.first_input is None:
            self.first_input = (node, axis)
        return Value(node, tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes))

    def known(self, tensor: Tensor, name: str = "") -> Value:
        """A constant."""
        return Value(None, (tensor, tensor), name)

    def value(self, *probes: Tensor) -> Value:
        """Numbers that may depend on the batch, one tensor for each of `BATCHES`."""
        return Value(None, (probes[0], probes[0]) if same(probes) else probes)

    def call(self, target: Any, *args: Any, **options: Any) -> Value:
        """Call a function, or a tensor's method by its name, or compute it now where all is known."""
        function = _method(target) if isinstance(target, str) else target
        if not any(value.live for value in _values((args, options))):
            return self._folded(function, args, options)
        args, options = _mapped((args, options), self._settled)
        probes = tuple(self._probe(function, args, options, i) for i in range(len(BATCHES)))
        kind = "call_method" if isinstance(target, str) else "call_function"
        return self._made(kind, target, args, options, probes)

    def layer(self, layer: nn.Module, weight: Value | None, *args: Any, shapes: Any = None, key: Any = None) -> Value:
        """Call a layer.

        Args:
            layer: The layer.
            weight: Its weight in the file, after which it is named.
            *args: Its arguments.
            shapes: What it returns for each batch, where that is not to be computed.
            key: What tells layers apart: a second one of the same key is the first one called again.
        """
        path = self.shared.get(key) if key is not None else None
        if path is None:
            path = self.place(_stem(weight.name) if weight is not None else "", _path(self.name, self.operator))
            put(self.root, path, layer)
            self.files[path] = self.name
            if key is not None:
                self.shared[key] = path
        layer = self.root.get_submodule(path)
        self.calls[path] += 1
        args = _mapped(args, self._settled)
        if shapes is None:
            bare = {k: v.to("meta") for k, v in (*layer.named_parameters(), *layer.named_buffers())}

            def run(*given: Any) -> Any:
                return torch.func.functional_call(layer, bare, given)

            shapes = tuple(self._probe(run, args, {}, i) for i in range(len(BATCHES)))
        made = self._made("call_module", path, args, {}, shapes)
        assert made.node is not None  # a call of a layer is one
        self.layers[made.node] = layer
        return made

    def pick(self, made: Value, index: int) -> Value:
        """One of the tensors that a call returns."""
        probes = tuple(probe[index] for probe in made.probes)
        if made.node is None:
            return Value(None, probes)
        return Value(self.graph.call_function(operator.getitem, (made.node, index)), probes)

    def number(self, value: Value) -> Any:
        """A constant of one element, as Python's number.

        Raises:
            UnfitError: it is none.
        """
        if value.tensor.numel() != 1:
            raise UnfitError("an input that must be one number has several")
        return value.tensor.item()

    def ints(self, value: Value) -> list[int]:
        """A constant of whole numbers.

        Raises:
            UnfitError: it is none.
        """
        if value.floats or value.rank > 1 or value.tensor.numel() > 64:
            raise UnfitError("an input that must be a short list of whole numbers is something else")
        return [int(number) for number in value.tensor.flatten().tolist()]

    def operand(self, value: Value, other: Value) -> Any:
        """A value for arithmetic with another one: a constant of one element as Python's number."""
        if value.constant and value.tensor.numel() == 1 and other.live and value.rank <= other.rank:
            return value.tensor.item()
        return value

    def called_once(self, made: Value) -> bool:
        """Whether a layer was called once and is read once; it is then never called again."""
        if made.node is None or self.calls[str(made.node.target)] > 1 or self.readers.get(made.node, 0) > 1:
            return False
        self.shared = {key: path for key, path in self.shared.items() if path != made.node.target}
        return True

    def for_every_batch(self, value: Value, other: Value, axis: int, other_axis: int) -> Value:
        """A constant of the file's one batch, expanded to that of another value; what is none, as it is.

        Args:
            value: The constant; the same along the axis.
            other: What follows the batch.
            axis: The axis of the constant.
            other_axis: That of the other value.
        """
        if self.batch is None or not value.constant or value.rank <= axis or other.sizes[other_axis] is not None:
            return value
        row = value.tensor.narrow(axis, 0, min(1, value.size(axis)))
        if value.size(axis) != self.batch or not torch.equal(row.expand_as(value.tensor), value.tensor):
            return value
        base = self.attribute(self.known(row.contiguous(), value.name), trained=bool(value.name))
        assert other.node is not None  # only a live one follows the batch of a file that fixes it
        size = self.graph.call_method("size", (other.node, other_axis))
        node = self.graph.call_method("expand", (base, *(size if i == axis else -1 for i in range(value.rank))))
        shapes = [
            [p.shape[other_axis] if i == axis else n for i, n in enumerate(value.tensor.shape)] for p in other.probes
        ]
        return Value(node, tuple(torch.empty(shape, dtype=value.dtype, device="meta") for shape in shapes))

    # --- places

    def place(self, *wanted: str) -> str:
        """A place for a layer or constant: the first of the names that is plain and free, or one of our own."""
        for i, name in enumerate(wanted):
            if name and plain_path(name) and self._free(name) and (i == 0 or not self._in_the_way(name)):
                break
        else:
            name = next(n for n in (f"unit_{i}" for i in range(1, 10**7)) if self._free(n))
        parts = name.split(".")
        self._leaves.add(name)
        self._inner |= {".".join(parts[:i]) for i in range(1, len(parts))}
        return name

    def _free(self, name: str) -> bool:
        parts = name.split(".")
        outer = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
        return name not in self._inner and not outer & self._leaves

    def _in_the_way(self, name: str) -> bool:
        """Whether a constant of the file lies below a name."""
        return name in self.reserved

    def attribute(self, value: Value, trained: bool) -> fx.Node:
        """A constant as an attribute of the network."""
        known = self._constants.get((value.name, id(value)))
        if known is not None:
            return known[1]
        path = self.place(value.name)
        outer, _, last = path.rpartition(".")
        if outer:
            put(self.root, outer, nn.Module())
        holder = self.root.get_submodule(outer)
        if trained and value.floats:
            holder.register_parameter(last, nn.Parameter(value.tensor.clone()))
        else:
            holder.register_buffer(last, value.tensor.clone())
        if value.name:
            self.files[path] = value.name
        node = self.graph.create_node("get_attr", path)
        self._constants[(value.name, id(value))] = (value, node)  # keeps the value, so that its id stays its own
        return node

    # --- inside

    def _settled(self, value: Value) -> Value:
        """A value that a call can take: a constant becomes the network's own."""
        if value.live:
            return value
        if value.constant:
            return Value(self.attribute(value, trained=bool(value.name)), _bare(value).probes)
        return self._following(value)

    def _following(self, value: Value) -> Value:
        """Numbers that are the same along the batch, as an expansion of what is there once."""
        free = [axis for axis, size in enumerate(value.sizes) if size is None]
        if len(free) != 1 or self.first_input is None:
            raise UnfitError("an input depends on the size of the batch")
        (axis,), (node, at) = free, self.first_input
        once = [probe.narrow(axis, 0, 1) for probe in value.probes]
        whole = all(torch.equal(one.expand_as(p), p) for one, p in zip(once, value.probes, strict=True))
        if not whole or not torch.equal(*once) or [p.shape[axis] for p in value.probes] != list(BATCHES):
            raise UnfitError("an input depends on the size of the batch")
        base = self.attribute(self.known(once[0].contiguous(), value.name), trained=bool(value.name))
        batch = self.graph.call_method("size", (node, at))
        sizes = [batch if size is None else -1 for size in value.sizes]
        made = self.graph.call_method("expand", (base, *sizes))
        return Value(made, tuple(probe.to("meta") for probe in value.probes))

    def _folded(self, function: Any, args: Any, options: Any) -> Value:
        found = []
        for i in range(len(BATCHES)):
            bare, named = _mapped((args, options), _bare)
            self._probe(function, bare, named, i, LARGEST)
            given, named = _mapped((args, options), partial(_at, i=i))
            found.append(function(*given, **named))
            if i == 0 and all(value.constant for value in _values((args, options))):
                return Value(None, (found[0], found[0]))
        return self.value(*found) if isinstance(found[0], Tensor) else Value(None, tuple(found))

    def _probe(self, function: Callable[..., Any], args: Any, options: Any, i: int, most: int = 0) -> Any:
        """What a call gives, without data."""
        given, named = _mapped((args, options), lambda value: value.probes[i])
        with torch.no_grad():
            found = function(*given, **named)
        most = most or LARGEST * BATCHES[i]
        tensors = found if isinstance(found, (tuple, list)) else (found,)
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.numel() > most:
                raise RefusedError(f"a tensor of {tensor.numel():,} numbers; allowed: {most:,}")
        return found

    def _made(self, kind: str, target: Any, args: Any, options: Any, probes: tuple[Any, ...]) -> Value:
        given, named = _mapped((args, options), lambda value: value.node)
        node = self.graph.create_node(kind, target, tuple(given), named)
        node.meta["file_node"] = (self.operator, self.name)
        self.shapes[node] = tuple(tuple(probe.shape) if isinstance(probe, Tensor) else None for probe in probes)
        return Value(node, probes)


def _mapped(given: Any, change: Callable[[Value], Any]) -> Any:
    """Change every value in arguments."""
    if isinstance(given, Value):
        return change(given)
    if isinstance(given, (tuple, list)):
        return type(given)(_mapped(part, change) for part in given)
    if isinstance(given, dict):
        return {name: _mapped(part, change) for name, part in given.items()}
    return given


def _values(given: Any) -> list[Value]:
    found: list[Value] = []
    _mapped(given, lambda value: found.append(value))
    return found


def _bare(value: Value) -> Value:
    return Value(None, tuple(probe.to("meta") for probe in value.probes))


def _at(value: Value, i: int) -> Any:
    return value.probes[i]


def _method(name: str) -> Callable[..., Any]:
    def run(x: Any, *args: Any, **options: Any) -> Any:
        return getattr(x, name)(*args, **options)

    return run


def _stem(weight: str) -> str:
    """The layer of a weight by the weight's name.

    Example:
        >>> _stem("features.0.weight"), _stem("onnx::Conv_12")
        ('features.0', '')
    """
    outer, _, last = weight.rpartition(".")
    return outer if last.startswith("weight") else ""


def _path(node: str, operator: str) -> str:
    """The layer of a node by the node's name.

    Example:
        >>> _path("/features/0/Conv", "Conv"), _path("conv1", "Conv")
        ('features.0', 'conv1')

    A module within a ModuleList or Sequential has the whole name there again:

        >>> _path("/mlp/mlp.0/MatMul", "MatMul")
        'mlp.0'
    """
    parts = node.strip("/").split("/")
    if len(parts) > 1 and parts[-1].startswith(operator):
        parts = parts[:-1]
    again = [*parts[1:], ""]
    return ".".join(part for part, after in zip(parts, again, strict=True) if not after.startswith(part + "."))


def product(sizes: Any) -> int:
    """Product of sizes."""
    return math.prod(int(size) for size in sizes)

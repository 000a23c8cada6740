"""Tracing that computes as it goes, so that a forward may branch on shapes and build modules."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.errors import UnsupportedError

_KNOWN = ("dtype", "is_cuda")
"""Attributes of a tensor that its network may branch on."""


class Sizes(tuple[Any, ...]):
    """A shape, of numbers and of the traced size of the batch."""

    def numel(self) -> Any:
        """Product of the sizes."""
        return math.prod(self)

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return Sizes(part) if isinstance(index, slice) else part


class TracedTensor(fx.Proxy):
    """A traced tensor that knows its shape, so that a forward may compute with sizes; only the batch stays symbolic."""

    @property
    def _value(self) -> Any:
        return self.tracer.values.get(self.node)  # type: ignore[attr-defined]  # only ValueTracer makes these

    def size(self, dim: int | None = None) -> Any:
        """As `Tensor.size`."""
        shape = self.shape
        return shape if dim is None else shape[dim]

    def dim(self) -> Any:
        """As `Tensor.dim`."""
        return len(self.shape)

    def numel(self) -> Any:
        """As `Tensor.numel`."""
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Any]:
        value = self._value
        if not isinstance(value, (tuple, list)):
            return super().__iter__()
        return iter([operator.getitem(self, i) for i in range(len(value))])

    def __getitem__(self, index: Any) -> Any:
        value = self._value
        if isinstance(index, slice) and isinstance(value, (tuple, list)):
            return [operator.getitem(self, i) for i in range(*index.indices(len(value)))]  # each is one of the parts
        return self.tracer.create_proxy("call_function", operator.getitem, (self, index), {})

    def __getattr__(self, name: str) -> Any:
        if name in _KNOWN and isinstance(self._value, Tensor):
            return getattr(self._value, name)
        return super().__getattr__(name)

    def __len__(self) -> int:
        value = self._value
        if not isinstance(value, (tuple, list, Tensor)):
            return int(super().__len__())
        return len(value)

    @property
    def ndim(self) -> Any:
        """As `Tensor.ndim`."""
        return len(self.shape)

    @property
    def shape(self) -> Any:
        """The sizes: numbers, but for those that follow the batch."""
        value = self._value
        if not isinstance(value, Tensor):
            return fx.Proxy.__getattr__(self, "shape")
        tracer: Any = self.tracer
        free = tracer.free_axes(self.node)
        return Sizes(
            tracer.create_proxy("call_method", "size", (self, axis), {}) if axis in free else size
            for axis, size in enumerate(value.shape)
        )


class ValueTracer(fx.Tracer):
    """Traces, and computes every call on the example as it goes.

    A module that forward builds and calls, such as `ops.Route()([a, b])`, becomes a module of the traced network, named
    by its class. It must have no parameters, since they would be new ones at each call.

    Args:
        root: The network; it gets the modules that its forward builds, so give a copy or call `forget_built`.
        twin: A copy of it, to compute with: torch.fx would trace a computation with the network's own parameters.
        examples: The network's inputs.
        leaves: Classes of modules that are one call each, besides torch's own.
        unpack: Give forward the tuples and lists that a module returns as such, with what is no tensor in them as it
            is.
        doubled: Compute on twice the batch too, to know which sizes follow it. Otherwise only a first size that equals
            the batch's does.

    Attributes:
        values: What each node gave.
        built: Names of the modules that forward built.
    """

    record_stack_traces = True

    def __init__(
        self,
        twin: nn.Module,
        examples: tuple[Any, ...],
        leaves: tuple[type, ...],
        unpack: bool = False,
        doubled: bool = False,
    ) -> None:
        super().__init__()
        self.twin, self.leaves, self.unpack = twin, leaves, unpack
        self.values: dict[fx.Node, Any] = {}
        self.twice: dict[fx.Node, Any] = {}
        self.built: list[str] = []
        self._runs: list[tuple[dict[fx.Node, Any], list[Any]]] = [(self.values, list(examples))]
        first = examples[0] if examples else None
        self._batch = first.shape[0] if isinstance(first, Tensor) and first.dim() else None
        if doubled and all(isinstance(x, Tensor) and x.dim() for x in examples):
            self._runs.append((self.twice, [torch.cat([x, x]) for x in examples]))
        self._computing = False
        self._parts: list[fx.Node] = []

    def traced(self, root: nn.Module, examples: int) -> fx.Graph:
        """The graph of a network; arguments of forward beyond so many examples keep their defaults."""
        parameters = list(inspect.signature(root.forward).parameters.values())[examples:]
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        graph = self.trace(root, concrete_args=defaults)
        for node in reversed(self._parts):
            if not node.users:
                graph.erase_node(node)
        return graph

    def forget_built(self, root: nn.Module) -> None:
        """Take the modules that forward built out of a network again."""
        for name in self.built:
            delattr(root, name)

    def free_axes(self, node: fx.Node) -> set[int]:
        """The axes of a tensor whose size follows that of the batch."""
        once, twice = self.values[node], self.twice.get(node)
        if isinstance(twice, Tensor) and twice.dim() == once.dim():
            return {axis for axis, (a, b) in enumerate(zip(once.shape, twice.shape, strict=True)) if a != b}
        return {0} if once.dim() and once.shape[0] == self._batch else set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one call."""
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A call of a module; one that forward built is taken into the network first."""
        if self._computing:
            return forward(*args, **kwargs)
        if m not in self.submodule_paths:  # type: ignore[operator]  # a dict while tracing
            self._take_in(m)
        made = super().call_module(m, forward, args, kwargs)
        return self._unpacked(made, self.values[made.node]) if self.unpack and self._is_call(made) else made

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        """What a call gives; several tensors of a function, such as those of `chunk`, come as the tuple that they are.

        A tuple that is no tuple yet could be indexed, but not be given to `torch.cat`.
        """
        made = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        if kind not in ("call_function", "call_method") or self._computing or target is operator.getitem:
            return made
        value = self.values.get(made.node)
        if type(value) in (tuple, list) and value and all(isinstance(part, Tensor) for part in value):
            return self._unpacked(made, value)
        return made

    def _is_call(self, made: Any) -> bool:
        return isinstance(made, TracedTensor) and made.node.op == "call_module" and made.node in self.values

    def _take_in(self, m: nn.Module) -> None:
        """Make a module that forward built one of the network."""
        kind = type(m).__name__
        if next(m.parameters(), None) is not None:
            raise UnsupportedError(
                "a layer with parameters is called that is no submodule of the network",
                given=kind,
                where=type(self.root).__name__,
                hint="Build it in __init__, several in a ModuleList: what forward builds starts anew at each call.",
            )
        name = next(n for n in (f"{kind}_{i}" for i in range(1, 10**6)) if not hasattr(self.root, n))
        self.built.append(name)
        self.twin.add_module(name, copy.deepcopy(m))
        self.root.add_module(name, m)
        for path, part in m.named_modules():
            self.submodule_paths[part] = f"{name}.{path}" if path else name  # type: ignore[index]  # as above

    def _unpacked(self, made: Any, value: Any) -> Any:
        if type(value) not in (tuple, list) or not any(isinstance(v, (Tensor, tuple, list)) for v in value):
            return value if isinstance(value, (bool, int, float, str, type(None))) else made
        parts = []
        for index, part in enumerate(value):
            if isinstance(part, (Tensor, tuple, list)):
                proxy = operator.getitem(made, index)
                self._parts.append(proxy.node)
                part = self._unpacked(proxy, part)
            parts.append(part)
        return type(value)(parts)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The tensor that a node gives."""
        return TracedTensor(node, self)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        """A node, and what it gives on the example."""
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        # What does not run here is found again, with its line, when the finished graph runs on the example.
        for values, examples in self._runs:
            with contextlib.suppress(Exception), torch.no_grad():
                self._computing = True
                values[node] = self._computed(node, values, examples)
            self._computing = False
        return node

    def _computed(self, node: fx.Node, values: dict[fx.Node, Any], examples: list[Any]) -> Any:
        if node.op == "placeholder":
            return examples.pop(0) if examples else node.args[0]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        if node.op == "call_module":
            return self.twin.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.twin)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs) if callable(node.target) else None

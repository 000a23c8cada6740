"""From a network of Ingenic operators to its integer program.

The network is traced with torch.fx; a copy of it runs on the example, and next to every value that it computes stands
what the program makes of it. The vendor's tuples `(tensor, bit, min)` stay tuples, with edges in place of tensors.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from chipfit.chips.ingenic.bridges import ToFeature
from chipfit.chips.ingenic.devices import DEVICES, Device
from chipfit.chips.ingenic.network import computes_otherwise, network_target, warn_of_strangers
from chipfit.copying import copied
from chipfit.errors import ChipfitError, UnsupportedError
from chipfit.integer import lower_torch, lower_torch_moves
from chipfit.integer.builder import Call, Value
from chipfit.integer.example import run_on_example, traced
from chipfit.integer.lower_ingenic_edges import Edge, Lowered, Maker, joined_grid, replayed
from chipfit.integer.lower_ingenic_functions import Function, function_of
from chipfit.integer.lower_ingenic_layers import LAYERS, REFUSED
from chipfit.integer.ops_ingenic import Finish
from chipfit.integer.program import VERSION, Input, Program, ValueType

_T = TypeVar("_T")
_MOVING: tuple[Callable[..., Any], ...] = (
    lower_torch_moves.reshaped,
    lower_torch_moves.permute,
    lower_torch_moves.transpose,
    lower_torch_moves.flip,
    lower_torch_moves.select,
    lower_torch_moves.chunk,
    lower_torch_moves.unbind,
    lower_torch_moves.getitem,
    lower_torch.same,
    lower_torch_moves.cat,
    lower_torch_moves.stack,
)
"""Rules for plain torch that neither compute nor compare codes."""


def ingenic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Ingenic operators of a network by qualified name, those inside others included.

    Example:
        >>> from chipfit.chips.ingenic import Route
        >>> list(ingenic_layers(nn.Sequential(nn.ReLU(), Route("T40"))))
        ['1']
    """
    kinds = tuple(kind for kind in (*LAYERS, *REFUSED) if kind.__module__.startswith("chipfit."))
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def ingenic_program(model: nn.Module, examples: tuple[Any, ...]) -> Program:
    """Lower a network of Ingenic operators; see `chipfit.integer.lower`.

    Args:
        model: The network; a single operator counts as one.
        examples: Its inputs.

    Returns:
        The program, without shapes.

    Raises:
        UnsupportedError: something cannot be lowered; each call is listed with the reason.
    """
    root = copied(model) if "" not in ingenic_layers(model) else nn.Sequential(copied(model))
    root.eval()
    floating = [name for name, layer in ingenic_layers(root).items() if getattr(layer, "mode", "") == "float"]
    if floating:
        raise UnsupportedError(
            "layers in mode 'float' have no codes",
            given=floating[0],
            where="lower",
            hint='Calibrate, and call chipfit.set_mode(model, "quant").',
        )
    graph, built = traced(root, (*LAYERS, *REFUSED), examples, type(model).__name__)
    target = network_target(ingenic_layers(graph), "lower") or DEVICES["Txx"]
    with torch.no_grad():
        twice = _Shapes(graph).record(tuple(torch.cat([x, x]) for x in examples))
        lowering = _Lowering(graph, twice, target)
        program = lowering.program(examples)
    then = "they are lowered as they were trained"
    warn_of_strangers(lowering.strangers, target, then, stacklevel=3)
    return _without(program, built)


def _without(program: Program, built: frozenset[str]) -> Program:
    """A program whose nodes are no layer's where forward builds the layer: nobody can look at it there."""
    nodes = (replace(node, layer="") if node.layer.partition(".")[0] in built else node for node in program.nodes)
    return replace(program, nodes=tuple(nodes))


def _shapes(result: Any) -> Any:
    """A result with the shape in place of each tensor."""
    if isinstance(result, (tuple, list)) and not isinstance(result, torch.Size):
        return tuple(_shapes(part) for part in result)
    return tuple(result.shape) if isinstance(result, Tensor) else result


def _found(results: Any, kind: type[_T]) -> Iterator[_T]:
    """What is of a kind among results, whatever they are packed in."""
    if isinstance(results, kind):
        yield results
    elif isinstance(results, (dict, tuple, list)):
        for part in results.values() if isinstance(results, dict) else results:
            yield from _found(part, kind)


def _holds(results: Any, kind: type[Any]) -> bool:
    return next(_found(results, kind), None) is not None


class _Shapes(fx.Interpreter):
    """Runs the network and keeps the shapes."""

    def record(self, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
        self.found: dict[fx.Node, Any] = {}
        run_on_example(self, inputs)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n] = _shapes(result)
        return result


class _Refused:
    """In place of what could not be lowered, so that what comes after it is looked at too."""


class _Lowering(_Shapes):
    """Runs the network on the example, and lowers call by call."""

    def __init__(self, graph: fx.GraphModule, twice: dict[fx.Node, Any], target: Device) -> None:
        super().__init__(graph)
        self.twice, self.maker, self.target = twice, Maker(), target
        self.strangers: list[str] = []
        self.inputs: list[Input] = []
        self.outputs: list[str] = []
        self.problems: list[str] = []
        self.lowered: dict[fx.Node, Lowered] = {}

    def program(self, examples: tuple[Any, ...]) -> Program:
        """Run and return the program."""
        self.record(examples)
        if self.problems:
            raise UnsupportedError(
                f"{len(self.problems)} call(s) cannot be lowered:\n  " + "\n  ".join(self.problems), where="lower"
            )
        builder, chip = self.maker.builder, self.target.name.lower()
        return Program(VERSION, chip, tuple(builder.nodes), tuple(self.inputs), tuple(self.outputs), builder.tensors)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        try:
            self.lowered[n] = self._lower(n, result)
        except ChipfitError as error:
            layer = f" (layer {n.target})" if n.op == "call_module" else ""
            self.problems.append(f"{n.name}{layer}: {error}")
            self.lowered[n] = _Refused()
        return result

    def _lower(self, n: fx.Node, result: Any) -> Lowered:
        if n.op == "placeholder" and not isinstance(result, Tensor):
            return result  # an argument of forward that keeps its default
        if n.op == "placeholder":
            name = self.maker.builder.unique(n.name)
            self.inputs.append(Input(name, ValueType(None, None)))
            self.maker.inputs.add(name)
            return Edge(Value(name, self.inputs[-1].type), None, result.detach().cpu())
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda node: self.lowered[node])
        if _holds((args, kwargs), _Refused):
            return _Refused()
        if n.op == "output":
            for last in _found(args, Function):
                raise UnsupportedError(
                    f"the network ends with real numbers of {last.where}, which are no codes",
                    hint="Lower it without that, and leave it to the code that reads the outputs.",
                )
            return self._output(args[0])
        if not _holds(result, Tensor):
            return result  # sizes and the like
        if n.op == "get_attr":
            raise UnsupportedError("a parameter or buffer of the network's own is no feature", given=n.target)
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        function = function_of(n, module, args, kwargs)
        if function is not None:
            return function
        strange = next(_found((args, kwargs), Function), None)
        if strange is not None and not isinstance(module, ToFeature):
            raise UnsupportedError(
                f"what {strange.where} gives is real numbers, of which only a function value by value can be lowered"
            )
        if n.op == "call_module":
            return self._layer(str(n.target), *args, **kwargs)
        if n.target is operator.getitem and not isinstance(args[0], Edge):
            return operator.getitem(*args)  # of the vendor's tuples
        return self._plain(n, args, kwargs)

    def _layer(self, name: str, *args: Any, **kwargs: Any) -> Lowered:
        layer = self.module.get_submodule(name)
        if computes_otherwise(layer, args[0] if args else None, self.target):
            self.strangers.append(name)
        for kind in type(layer).__mro__:
            if kind in REFUSED:
                raise UnsupportedError(f"{kind.__name__} cannot be lowered: {REFUSED[kind]}")
            if kind in LAYERS:
                if isinstance(layer, nn.Identity | nn.Dropout | nn.Dropout2d) or len(args) + len(kwargs) == 1:
                    return LAYERS[kind](self.maker, name, layer, *args, *kwargs.values())
                raise UnsupportedError("the layer takes one argument here", given=len(args) + len(kwargs))
        raise UnsupportedError(
            f"{type(layer).__name__} has no integer form", hint="Write it with the operators of the chip."
        )

    def _plain(self, n: fx.Node, args: Any, kwargs: Any) -> Lowered:
        table: dict[Any, Callable[..., Any]] = lower_torch.METHODS if n.op == "call_method" else lower_torch.FUNCTIONS
        rule = table.get(n.target)
        edges = list(_found(args, Edge))
        if rule not in _MOVING or rule is None or not edges:
            label = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
            raise UnsupportedError(
                f"{label} has no integer form between Ingenic operators",
                hint="Use Route, Shortcut, Mul, Max or an activation_fn, or leave it to the code behind the network.",
            )
        tensors = tuple(
            (self.found[source], self.twice[source])
            for source in n.args
            if isinstance(source, fx.Node) and isinstance(self.lowered[source], Edge)
        )
        once, double = self.found[n], self.twice[n]
        split = bool(once) and isinstance(once[0], tuple)
        shapes = tuple(zip(once, double, strict=True)) if split else (once, double)
        joined_grid(edges)
        first = len(self.maker.builder.nodes)
        values, options = fx.node.map_aggregate((args, kwargs), lambda x: x.value if isinstance(x, Edge) else x)
        try:
            inspect.signature(rule).bind(self.maker.builder, None, *values, **options)
        except TypeError as error:
            raise UnsupportedError(f"these arguments have no rule: {error}") from error
        made = rule(self.maker.builder, Call(n.name, "", shapes, tensors), *values, **options)
        several = isinstance(made, tuple)
        parts = [replayed(self.maker, edges, first, v) for v in (made if several else (made,))]
        return tuple(parts) if several else parts[0]

    def _output(self, results: Lowered) -> None:
        for edge in _found(results, Edge):
            if edge.grid is None and not edge.value.type.real:
                raise UnsupportedError("the network returns bare sums")
            if edge.grid is not None:
                edge = self.maker.add("output", Finish(edge.grid), (edge,))
            self.outputs.append(edge.value.name)

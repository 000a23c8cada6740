"""From a network of chip layers to its integer program.

The network is traced with torch.fx, run once on the example and once on the example with twice the batch (what changes
between the two is the batch), and lowered call by call with the rules of `lower_torch` and of each vendor's rooms. It
is left as it was.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.chips.chip import ChipLayer
from chipfit.chips.modes import chip_layers, kept_modes
from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.gru_base import GruLayer
from chipfit.errors import ChipfitError, ShapeError, UnknownOptionError, UnsupportedError
from chipfit.integer import lower_torch, lower_witmem
from chipfit.integer.builder import Builder, Call, Value
from chipfit.integer.example import run_on_example, traced
from chipfit.integer.interpreter import trace
from chipfit.integer.live import numbered_calls, simplified
from chipfit.integer.lower_ingenic import ingenic_layers, ingenic_program
from chipfit.integer.lower_torch_moves import NoCodes, Zeros
from chipfit.integer.ops import Dequantise
from chipfit.integer.program import VERSION, Input, Program, ValueType

Rule = Callable[..., Any]
LAYER_RULES: dict[type[nn.Module], Rule] = {**lower_torch.MODULES, **lower_witmem.LAYERS}
"""Lowering rules by class of layer; a subclass takes its nearest base's."""
ROUNDINGS = ("wtm2101", "witin_nn")


def lower(model: nn.Module, example: Any, rounding: str | None = "wtm2101") -> Program:
    """Lower a network to the integer program that computes its codes.

    The scales are those that the network has in `eval()`. Layers in mode 'nat' are lowered as in 'quant': noise is the
    chip's own.

    Args:
        model: Network of chip layers in mode 'quant' or 'nat', parameters in float32. It is not changed.
        example: An input batch, or a tuple of the network's inputs; axis 0 is the batch, whose size stays free.
        rounding: Rounding rule of the analog array: 'wtm2101' is what the silicon computes, 'witin_nn' what the
            vendor's library trains; None takes each layer's own. Ingenic chips have one rule of their own.

    Returns:
        The program. What nobody reads (the last state of a GRU whose user takes the sequence) is not in it.

    Raises:
        UnsupportedError: something cannot be lowered; the error lists each call, its layer and the reason. Scales that
            are no powers of two are among the reasons.
        UnknownOptionError: no such rounding rule.

    Example:
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=64, scale_weight=64)
        >>> config.scale_y = 32
        >>> net = nn.Sequential(WitinLinear(2, 1, layer_config=config), nn.ReLU())
        >>> [node.name for node in lower(net, torch.zeros(1, 2)).nodes]
        ['0.input', '0', '1', 'output']
    """
    if rounding is not None and rounding not in ROUNDINGS:
        raise UnknownOptionError("unknown rounding rule", given=rounding, allowed=", ".join(ROUNDINGS), where="lower")
    examples = example if isinstance(example, tuple) else (example,)
    if ingenic_layers(model):
        _check_dtypes(model, examples)
        return _finished(ingenic_program(model, examples), tuple(x.cpu() for x in examples))
    root = as_network(model)
    chip_layers(root)
    _check_dtypes(root, examples)
    with evaluating(root), torch.no_grad():
        graph = traced(root, (ChipLayer,))
        runs = [_Shapes(graph).record(batch) for batch in (examples, tuple(torch.cat([x, x]) for x in examples))]
        return _Lowering(root, graph, runs, rounding).program(examples)


def as_network(model: nn.Module) -> nn.Module:
    """The network; a single chip layer becomes a network of one, named by its class."""
    return nn.Sequential(OrderedDict({type(model).__name__: model})) if isinstance(model, ChipLayer) else model


@contextlib.contextmanager
def evaluating(model: nn.Module, rounding: str | None = None) -> Iterator[None]:
    """Put every layer in evaluation without noise (and on a rounding rule) for a while, then back as it was.

    Layers in mode 'float' stay in it.
    """
    layers = chip_layers(model).values()
    rules = [(layer, layer.rounding) for layer in layers if hasattr(layer, "rounding")]
    scales = [(observer, observer.scale) for observer in model.modules() if isinstance(observer, AutoScale)]
    with kept_modes(model):
        try:
            for module in model.modules():
                module.training = False
            for layer in layers:
                layer.set_mode("quant" if layer.mode == "nat" else layer.mode, None, rounding)
            yield
        finally:
            for ruled, rule in rules:
                ruled.set_mode(ruled.mode, None, rule)
            for observer, scale in scales:
                observer.scale = scale


def _check_dtypes(model: nn.Module, examples: tuple[Any, ...]) -> None:
    tensors = [*model.parameters(), *(x for x in examples if isinstance(x, Tensor))]
    odd = {str(tensor.dtype) for tensor in tensors if tensor.dtype != torch.float32}
    if odd or not all(isinstance(x, Tensor) and x.dim() for x in examples):
        raise ShapeError(
            "lowering takes float32 parameters and tensors with a batch axis",
            given=", ".join(sorted(odd)) or type(examples[0]).__name__,
            allowed="float32",
            where="lower",
            hint="Call model.float(), and pass the inputs as a tensor or a tuple of tensors.",
        )


class _Shapes(fx.Interpreter):
    """Runs the network and keeps the shape of every tensor, and every result that is no tensor."""

    def record(self, examples: tuple[Any, ...]) -> dict[fx.Node, Any]:
        self.found: dict[fx.Node, Any] = {}
        run_on_example(self, examples)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n] = fx.node.map_aggregate(result, lambda v: _Shape(v.shape) if isinstance(v, Tensor) else v)
        return result


class _Shape(tuple[int, ...]):
    """The shape of a tensor, told apart from a tuple of numbers."""


def _holds_tensor(found: Any) -> bool:
    if isinstance(found, _Shape):
        return True
    return isinstance(found, (tuple, list)) and any(_holds_tensor(entry) for entry in found)


def _both(first: Any, second: Any) -> Any:
    """Shapes of a result in both runs, in the structure of the result."""
    if isinstance(first, _Shape):
        return tuple(first), tuple(second)
    return tuple(_both(a, b) for a, b in zip(first, second, strict=True))


class _Lowering:
    """One run of `lower`: the program so far, what each traced call became, and what could not be lowered."""

    def __init__(
        self, model: nn.Module, graph: fx.GraphModule, runs: list[dict[fx.Node, Any]], rounding: str | None
    ) -> None:
        self.layers = dict(model.named_modules())
        self.graph, self.runs, self.rounding = graph, runs, rounding
        self.builder = Builder()
        self.inputs: list[Input] = []
        self.values: dict[fx.Node, Any] = {}
        self.problems: list[str] = []
        self.outputs: list[str] = []

    def program(self, examples: tuple[Tensor, ...]) -> Program:
        for node in self.graph.graph.nodes:
            try:
                self.values[node] = self._lowered(node)
            except ChipfitError as error:
                layer = f" (layer {node.target})" if node.op == "call_module" else ""
                self.problems.append(f"{node.name}{layer}: {error}")
                self.values[node] = _stand_in(self.runs[0][node])
        if self.problems:
            raise UnsupportedError(
                f"{len(self.problems)} call(s) cannot be lowered:\n  " + "\n  ".join(self.problems),
                where=type(self.graph).__name__,
            )
        nodes = tuple(self.builder.nodes)
        program = Program(VERSION, "wtm2101", nodes, tuple(self.inputs), tuple(self.outputs), self.builder.tensors)
        return _finished(program, examples)

    def _lowered(self, node: fx.Node) -> Any:
        found = self.runs[0][node]
        if node.op == "placeholder":
            if not isinstance(found, _Shape):
                return found
            self.inputs.append(Input(self.builder.unique(node.name), ValueType(None, None)))
            return Value(self.inputs[-1].name, self.inputs[-1].type)
        if node.op == "get_attr":
            return getattr(
                self.graph.get_submodule(str(node.target).rpartition(".")[0]), str(node.target).rpartition(".")[2]
            )
        if node.op == "output":
            return self._output(node)
        if not _holds_tensor(found):
            return found  # sizes and the like
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        tensors = tuple(
            _both(self.runs[0][n], self.runs[1][n])
            for n in node.args
            if isinstance(n, fx.Node) and isinstance(self.runs[0][n], _Shape)
        )
        rule, call = self._rule(node, _both(found, self.runs[1][node]), tensors)
        self._check_arguments(node, call, (*args, *kwargs.values()))
        try:
            inspect.signature(rule).bind(self.builder, call, *args, **kwargs)
        except TypeError as error:
            raise UnsupportedError(f"these arguments have no rule: {error}") from error
        return rule(self.builder, call, *args, **kwargs)

    def _check_arguments(self, node: fx.Node, call: Call, given: tuple[Any, ...]) -> None:
        """Refuse what no rule can take: tensors of the network's own, and places of maxima."""
        leaves = list(_leaves(given))
        fixed = not call.layer and any(isinstance(leaf, Tensor) for leaf in leaves)
        recurrent = node.op == "call_module" and isinstance(self.layers[str(node.target)], GruLayer)
        if fixed or (not recurrent and any(isinstance(leaf, Zeros) for leaf in leaves)):
            raise UnsupportedError(
                "a tensor that does not depend on the input", hint="Let it be an input of the network."
            )
        if any(isinstance(value, NoCodes) for value in given):
            raise UnsupportedError("places of maxima are no codes", hint="Use the maxima alone.")

    def _rule(self, node: fx.Node, shapes: Any, inputs: Any) -> tuple[Rule, Call]:
        if node.op != "call_module":
            table: dict[Any, Rule] = lower_torch.METHODS if node.op == "call_method" else lower_torch.FUNCTIONS
            if node.target not in table:
                name = (
                    node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
                )
                raise UnsupportedError(f"{name} has no integer form", hint=lower_torch.ADVICE.get(name))
            return table[node.target], Call(node.name, "", shapes, inputs, self.rounding)
        layer, name = self.layers[str(node.target)], str(node.target)
        for kind in type(layer).__mro__:
            if kind in LAYER_RULES:
                if isinstance(layer, ChipLayer) and layer.mode == "float":
                    raise UnsupportedError(
                        "the layer is in mode 'float'",
                        hint="chipfit.set_mode(model, 'quant') puts it on the chip's grid.",
                    )
                of_chip = name if isinstance(layer, ChipLayer) else ""
                return _of_layer(LAYER_RULES[kind], layer), Call(name, of_chip, shapes, inputs, self.rounding)
        raise UnsupportedError(
            f"{type(layer).__name__} has no integer form", hint=lower_torch.ADVICE.get(type(layer).__name__)
        )

    def _output(self, node: fx.Node) -> None:
        results = (
            self.values.get(node.args[0], None)
            if isinstance(node.args[0], fx.Node)
            else fx.node.map_arg(node.args[0], lambda n: self.values[n])
        )
        for result in _leaves(results):
            if not isinstance(result, Value):
                raise UnsupportedError("the network returns something that is no tensor", given=result)
            if result.type.real:
                self.outputs.append(result.name)
            else:
                self.outputs.append(self.builder.add("output", Dequantise(), (result,), ValueType(None, None)).name)


def _of_layer(rule: Rule, layer: nn.Module) -> Rule:
    return lambda b, call, *args, **kwargs: rule(b, call, layer, *args, **kwargs)


def _leaves(results: Any) -> Iterator[Any]:
    if isinstance(results, dict):
        results = list(results.values())
    if isinstance(results, (tuple, list)):
        for result in results:
            yield from _leaves(result)
    else:
        yield results


def _stand_in(found: Any) -> Any:
    """A value in place of one that could not be lowered, so that what comes after it is looked at too."""
    if isinstance(found, _Shape):
        return Value("?", ValueType(None, None))
    return tuple(_stand_in(entry) for entry in found) if isinstance(found, (tuple, list)) else found


def _finished(program: Program, examples: tuple[Tensor, ...]) -> Program:
    """The program with shapes and numbers of calls, and without what nobody reads."""
    return simplified(_with_shapes(replace(program, nodes=numbered_calls(program.nodes)), examples))


def _with_shapes(program: Program, examples: tuple[Tensor, ...]) -> Program:
    """Fill in the shapes, from running the program on the example and on twice its batch."""
    once, twice = trace(program, *examples), trace(program, *(torch.cat([x, x]) for x in examples))

    def shaped(name: str, edge: ValueType) -> ValueType:
        a, b = once[name].shape, twice[name].shape
        batched = len(a) > 0 and b[0] == 2 * a[0] and a[1:] == b[1:]
        return replace(edge, shape=tuple(a[1:]) if batched else None)

    nodes = tuple(replace(node, output=shaped(node.name, node.output)) for node in program.nodes)
    inputs = tuple(replace(given, type=shaped(given.name, given.type)) for given in program.inputs)
    return replace(program, nodes=nodes, inputs=inputs)

"""From a network of chip layers to its integer program.

A copy of the network, in evaluation, is traced with torch.fx and run once on the example and once on the example with
twice the batch (what changes between the two is the batch). Then its calls are lowered one by one with the vendor's
rules and those for plain torch. A call that cannot be lowered is noted, and something stands in for its result, so that
one error lists them all.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.copying import inside
from chipfit.errors import ChipfitError, NonFiniteError, ShapeError, UnknownOptionError, UnsupportedError
from chipfit.program.evaluation import in_evaluation
from chipfit.program.live import simplified
from chipfit.program.lowering import torch as plain
from chipfit.program.lowering.builder import Builder, Call, stand_in
from chipfit.program.lowering.example import run_on_example, traced
from chipfit.program.lowering.gate import check_calibrated, check_finite, check_widths
from chipfit.program.lowering.live import live_calls, without_in_place
from chipfit.program.lowering.rules import Lowering, Rule
from chipfit.program.lowering.torch_moves import NoCodes, Zeros
from chipfit.program.types import VERSION, Program
from chipfit.vendor import Vendor, options_of, vendor_of

Results = dict[fx.Node, Any]
"""What each call gave: a shape in place of each tensor."""


def lower(model: nn.Module, example: Any, *positional: Any, **options: Any) -> Program:
    """Lower a network to the integer program that computes its codes.

    The scales are those that the network has in `eval()`. Layers in mode 'nat' are lowered as in 'quant': noise is the
    chip's own.

    Args:
        model: Network of chip layers in mode 'quant' or 'nat', parameters in float32. It is not changed.
        example: An input batch, or a tuple of the network's inputs; axis 0 is the batch, whose size stays free.
        *positional: Older spelling of the vendor's first option, deprecated.
        **options: What the vendor's chips let choose: `vendor_of(model).options["lower"]`.

    Returns:
        The program: all that its outputs depend on.

    Raises:
        NonFiniteError: a parameter holds NaN or infinity.
        UnsupportedError: something cannot be lowered; the error lists each call, its layer and the reason. Or the
            network has no chip layers, or codes wider than 24 bits.
        CalibrationError: a converted network was never calibrated.
        ShapeError: parameters or examples are not float32.
        UnknownOptionError: the vendor has no such option, or not this value of it.

    Example:
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=64, scale_weight=64)
        >>> config.scale_y = 32
        >>> net = nn.Sequential(WitinLinear(2, 1, layer_config=config), nn.ReLU())
        >>> [node.name for node in lower(net, torch.zeros(1, 2)).nodes]
        ['0.input', '0', '1', 'output']
    """
    model = inside(model)
    vendor = vendor_of(model)
    chosen = options_of(vendor, "lower", {**_named(vendor, positional), **options})
    if vendor.lowering is None:
        raise UnsupportedError(f"networks of {vendor.name} cannot be lowered", where="lower")
    examples = example if isinstance(example, tuple) else (example,)
    _check_dtypes(model, examples)
    root = in_evaluation(model, vendor)
    _check_modes(root, vendor)
    rules = vendor.lowering
    check_finite(root)
    check_calibrated(model, rules)
    with torch.no_grad():
        rules.prepare(root, chosen)
        leaves = (*vendor.layers, *rules.layers, *rules.refused)
        graph, built = traced(root, leaves, examples, type(model).__name__)
        chip = vendor.chips[0].name if rules.chip is None else rules.chip(graph)
        without_in_place(graph)
        lowering = _Lowering(root, graph, vendor, rules, chosen)
        program = lowering.program(chip, examples, built, type(model).__name__)
        check_widths(program.nodes)
        rules.remark(chip, lowering.calls)
        return program


def _named(vendor: Vendor, positional: tuple[Any, ...]) -> dict[str, Any]:
    """Options that were given by position, as they could be before there were several."""
    names = list(vendor.options.get("lower", {}))
    if not positional:
        return {}
    if len(positional) > 1 or not names:
        raise UnknownOptionError(
            "lower takes a network and an example; options have names",
            given=positional,
            allowed=", ".join(names) or "no more",
            where="lower",
        )
    text = f"lower(model, example, {positional[0]!r}) is deprecated; write {names[0]}={positional[0]!r}"
    warnings.warn(text, DeprecationWarning, stacklevel=3)
    return {names[0]: positional[0]}


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


def _check_modes(root: nn.Module, vendor: Vendor) -> None:
    modes = {name: mode for name, layer in vendor.layers_of(root).items() if (mode := getattr(layer, "mode", None))}
    if modes and set(modes.values()) == {"float"}:
        raise UnsupportedError(
            "layers in mode 'float' have no codes",
            given=next(iter(modes)),
            where="lower",
            hint='Calibrate, and call chipfit.set_mode(model, "quant").',
        )


class _Shapes(fx.Interpreter):
    """Runs the network and keeps the shape of every tensor, and every result that is no tensor."""

    def record(self, examples: tuple[Any, ...]) -> Results:
        self.found: Results = {}
        run_on_example(self, examples)
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.found[n] = fx.node.map_aggregate(result, lambda v: _Shape(v.shape) if isinstance(v, Tensor) else v)
        return result


class _Shape(tuple[int, ...]):
    """The shape of a tensor, told apart from a tuple of numbers."""


def _holds(found: Any, kind: type[Any]) -> bool:
    return any(isinstance(leaf, kind) for leaf in _leaves(found))


def _leaves(results: Any) -> Iterator[Any]:
    """What is in a result, whatever it is packed in."""
    if isinstance(results, dict):
        results = list(results.values())
    if isinstance(results, (tuple, list)) and not isinstance(results, _Shape):
        for result in results:
            yield from _leaves(result)
    else:
        yield results


def _pair(once: tuple[int, ...], twice: tuple[int, ...]) -> Any:
    return once, twice


def _both(first: Any, second: Any, made: Callable[[tuple[int, ...], tuple[int, ...]], Any] = _pair) -> Any:
    """Shapes of a result in both runs, or what is made of them, in the result's structure; all else stays as it is."""
    if isinstance(first, _Shape):
        return made(tuple(first), tuple(second))
    if isinstance(first, dict):
        return {key: _both(first[key], second[key], made) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(_both(a, b, made) for a, b in zip(first, second, strict=True))
    return first


class _Lowering:
    """One run of `lower`: the program so far, what each traced call became, and what could not be lowered."""

    def __init__(
        self, model: nn.Module, graph: fx.GraphModule, vendor: Vendor, rules: Lowering, options: Mapping[str, Any]
    ) -> None:
        self.layers = {**dict(graph.named_modules()), **dict(model.named_modules())}
        self.calls: list[tuple[str, nn.Module, Any]] = []
        self.graph, self.vendor, self.rules, self.options = graph, vendor, rules, options
        self.advice = {**plain.ADVICE, **rules.advice}
        self.builder = Builder(self.advice)
        self.values: dict[fx.Node, Any] = {}
        self.problems: list[str] = []
        self.outputs: list[str] = []

    def program(self, chip: str, examples: tuple[Tensor, ...], built: frozenset[str], where: str) -> Program:
        """Lower call by call; `where` is what the network is called in the error that lists what could not be."""
        doubled = tuple(torch.cat([x, x]) for x in examples)
        places = (node for node in self.graph.graph.nodes if node.op == "placeholder")
        self.examples = dict(zip(places, zip(examples, doubled, strict=True), strict=False))
        self.once, self.twice = (_Shapes(self.graph).record(batch) for batch in (examples, doubled))
        live = live_calls(self.graph.graph)
        calls: Counter[Any] = Counter()
        for node in self.graph.graph.nodes:
            first = len(self.builder.nodes)
            try:
                self.values[node] = self._lowered(node)
                self.builder.number(first, calls[node.target])
            except NonFiniteError:
                raise
            except ChipfitError as error:
                if node in live:
                    layer = f" (layer {node.target})" if node.op == "call_module" else ""
                    self.problems.append(f"{node.name}{layer}: {error}")
                self._stand_in(node)
            except Exception:
                if not self.problems and node in live:
                    raise
                self._stand_in(node)  # what stands in for an earlier call did not fit here
            calls[node.target] += 1
        if self.problems:
            text = f"{len(self.problems)} call(s) cannot be lowered:\n  " + "\n  ".join(self.problems)
            raise UnsupportedError(text, where=where)
        made = self.builder
        # nobody can look at a layer that forward builds
        nodes = (replace(n, layer="") if n.layer.partition(".")[0] in built else n for n in made.known_nodes())
        return simplified(Program(VERSION, chip, tuple(nodes), tuple(made.inputs), tuple(self.outputs), made.tensors))

    def _stand_in(self, node: fx.Node) -> None:
        """Let something stand in for a call's result, and keep its name from the layer's later calls."""
        self.values[node] = _both(self.once[node], self.twice[node], stand_in)
        name = str(node.target)
        if node.op == "call_module" and not any(made.layer == name for made in self.builder.nodes):
            self.builder.unique(name)

    def _lowered(self, node: fx.Node) -> Any:
        found = self.once[node]
        if node.op == "placeholder":
            if not isinstance(found, _Shape):
                return found
            if node not in self.examples:
                raise UnsupportedError("an input that the example does not give", given=node.name)
            return self.rules.input(self.builder, node.name, *self.examples[node])
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            return getattr(self.graph.get_submodule(owner), name)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n])
        if node.op == "output":
            return self._output(args[0])
        if not _holds(found, _Shape):
            return found  # sizes and the like
        module = self.layers[str(node.target)] if node.op == "call_module" else None
        if self.rules.take is not None:
            taken = self.rules.take(node, module, args, kwargs)
            if taken is not None:
                return taken
        tensors = tuple(
            _both(self.once[n], self.twice[n])
            for n in node.args
            if isinstance(n, fx.Node) and isinstance(self.once[n], _Shape)
        )
        shapes = _both(found, self.twice[node])
        if module is None:
            rule, layer, name = self._plain(node), "", node.name
        else:
            name = str(node.target)
            rule, layer = self._of_layer(module), name if self.vendor.owns(module) else ""
            args, kwargs = _by_position(module, args, kwargs)
            self.calls.append((name, module, args))
        _check_arguments(layer, args, kwargs)
        if _holds((args, kwargs), Zeros) and not isinstance(module, self.rules.starts_at_zeros):
            raise UnsupportedError(
                "a tensor that does not depend on the input", hint="Let it be an input of the network."
            )
        call = Call(name, layer, shapes, tensors, self.options)
        arguments = (self.builder, call, *(() if module is None else (module,)), *args)
        try:
            inspect.signature(rule).bind(*arguments, **kwargs)
        except TypeError as error:
            raise UnsupportedError(f"these arguments have no rule: {error}") from error
        return rule(*arguments, **kwargs)

    def _plain(self, node: fx.Node) -> Rule:
        """The rule of a function or method."""
        plain_rules = self.rules.plain
        table: Mapping[Any, Rule] = plain_rules.methods if node.op == "call_method" else plain_rules.functions
        if node.target not in table:
            target = node.target
            name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
            raise self._no_form(name, f" between {self.rules.between}" if self.rules.between else "")
        return table[node.target]

    def _of_layer(self, layer: nn.Module) -> Rule:
        """The rule of a module."""
        for kind in type(layer).__mro__:
            if kind in self.rules.refused:
                raise UnsupportedError(f"{kind.__name__} cannot be lowered: {self.rules.refused[kind]}")
            rule = self.rules.layers.get(kind) or self.rules.plain.modules.get(kind)
            if rule is not None:
                if self.vendor.owns(layer) and getattr(layer, "mode", "") == "float":
                    raise UnsupportedError(
                        "the layer is in mode 'float'",
                        hint="chipfit.set_mode(model, 'quant') puts it on the chip's grid.",
                    )
                return rule
        raise self._no_form(type(layer).__name__)

    def _no_form(self, name: str, where: str = "") -> UnsupportedError:
        return UnsupportedError(f"{name} has no integer form{where}", hint=self.advice.get(name, self.rules.hint))

    def _output(self, results: Any) -> None:
        for result in _leaves(results):
            edge = self.rules.output(self.builder, result)
            if edge is not None:
                self.outputs.append(edge.name)


def _check_arguments(layer: str, args: Any, kwargs: Any) -> None:
    if not layer and _holds((args, kwargs), Tensor):
        raise UnsupportedError("a tensor that does not depend on the input", hint="Let it be an input of the network.")
    if any(isinstance(given, NoCodes) for given in (*args, *kwargs.values())):
        raise UnsupportedError("places of maxima are no codes", hint="Use the maxima alone.")


def _by_position(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer's call in the order of its `forward`."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a forward that says nothing of its arguments
        return tuple(args), dict(kwargs)
    return bound.args, dict(bound.kwargs)

"""A network as a graph, what every tensor looks like on an example, and the user's line of each operation."""

from __future__ import annotations

import math
import operator
import re
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.convert.operations import VIEWS, kind_of
from chipfit.convert.relative import TOLERANCE, difference, tensors_in
from chipfit.convert.tracer import ValueTracer
from chipfit.convert.words import Seen
from chipfit.copying import copied, inside
from chipfit.errors import InvalidValueError, ShapeError, UnsupportedError
from chipfit.hardware import ChipLayer

_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \S+\n\s+(?P<code>[^\n]*)')
_DYNAMIC = ("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "item", "tolist")
"""Operations whose result's shape, or whose kind of result, depends on the values."""


@dataclass
class Traced:
    """A network as a graph.

    Args:
        network: The graph, on a copy of the user's modules, in evaluation.
        seen: What each node gave on the example: a `Seen` for a tensor, and what is no tensor as it is.
        values: What each node gave, where that was asked for.
        result: What the user's own network gave.
        gives: Whose value a node gives since others were folded into it.
    """

    network: fx.GraphModule
    seen: dict[fx.Node, Any]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    result: Any = None
    gives: dict[fx.Node, fx.Node] = field(default_factory=dict)


Range = tuple[float, float]
"""Smallest and largest value of an input."""


def trace(
    model: nn.Module, example: Any, keep_values: bool = False, input_range: Range | Sequence[Range] | None = None
) -> Traced:
    """Trace a network and run it on an example.

    Args:
        model: The network; it is copied.
        example: An input batch, or a tuple of the network's inputs.
        keep_values: Keep what each node gave, too.
        input_range: Smallest and largest value that the inputs may have, or one such pair an input; None for those of
            the example.

    Returns:
        The graph.

    Raises:
        UnsupportedError: control flow or shapes that depend on values; the error names the line of the user's code.
        ShapeError: the network does not run on the example.
        InvalidValueError: a range that is none, or not one an input.

    Example:
        >>> traced = trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2))
        >>> [node.name for node in traced.network.graph.nodes]
        ['input_1', '_0', '_1', 'output']
    """
    examples = example if isinstance(example, tuple) else (example,)
    model = copied(inside(model)).eval()
    if type(model).__module__.startswith("torch.nn") and not isinstance(model, nn.Sequential):
        model = nn.Sequential(model)  # a single layer becomes a network of one
    tracer = ValueTracer(copied(model), _copied(examples), (ChipLayer,))
    try:
        graph = tracer.traced(model, len(examples))
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(
            "the network cannot be traced: its forward depends on the values or the number of its tensors",
            given=(str(error) or type(error).__name__).splitlines()[0],
            where=_line_of(error),
            hint="Write the branch or loop without reading tensors, or take this part out of the network.",
        ) from error
    _without_casts(graph, tracer.values)
    _not_in_place(model, graph)
    network = fx.GraphModule(model, graph, type(model).__name__)
    for node in graph.nodes:
        node.type = None  # the user's annotation, which may be text that means nothing elsewhere
        if operation_name(node) in _DYNAMIC:
            raise _dynamic(node)
    recorder, result = _run(network, examples, keep=True, keep_values=keep_values)
    seen = recorder.found
    with torch.no_grad():
        expected = tracer.twin(*_copied(examples))
    _same_results(result, expected, type(tracer.twin).__name__)
    _widen(seen, ranges_of(input_range, len(examples)))
    twice = _doubled(network, examples)
    for node, found in seen.items():
        if isinstance(found, Seen) and twice is not None:
            seen[node] = replace(found, batched=twice[node] != found.shape)
    return Traced(network, seen, recorder.values, expected)


def ranges_of(given: Range | Sequence[Range] | None, count: int) -> list[Range | None]:
    """The range of each input of a network.

    Args:
        given: A pair for all of them, or one pair each; None for none.
        count: How many inputs there are.

    Raises:
        InvalidValueError: a range that is none, or not one an input.

    Example:
        >>> ranges_of((-1, 1), 2)
        [(-1.0, 1.0), (-1.0, 1.0)]
    """
    if given is None:
        return [None] * count
    try:
        single = len(given) == 2 and all(isinstance(end, (int, float)) for end in given)
        pairs: list[Any] = [given] * count if single else list(given)
        ranges = [(float(low), float(high)) for low, high in pairs]
        if len(ranges) == count and all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in ranges):
            return list(ranges)
    except (TypeError, ValueError):
        pass
    allowed = f"(lowest, highest), or {count} such pairs" if count > 1 else "(lowest, highest)"
    raise InvalidValueError("no range of an input", given=given, allowed=allowed, where="input_range")


def _widen(seen: dict[fx.Node, Any], ranges: list[Range | None]) -> None:
    """Put the ranges that the user knows in place of those of the example."""
    inputs = [node for node in seen if node.op == "placeholder"]
    for node, ends in zip(inputs, ranges, strict=False):
        found = seen[node]
        if ends is not None and isinstance(found, Seen):
            low, high = min(ends[0], found.lowest), max(ends[1], found.highest)
            seen[node] = replace(found, lowest=low, highest=high, largest=max(-low, high))


_CASTS = ("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda")


def _without_casts(graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
    """Take out what moves a tensor to a device, or casts it to the type that it has: a network moves as a whole."""
    for node in list(graph.nodes):
        if node.op != "call_method" or node.target not in _CASTS or not isinstance(node.args[0], fx.Node):
            continue
        before, after = values.get(node.args[0]), values.get(node)
        if isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype:
            read = node.all_input_nodes
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            for asked in reversed(read):  # the device or the type of another tensor
                _forget(graph, asked)


def _forget(graph: fx.Graph, node: fx.Node) -> None:
    """Take out a question after a tensor's device or type that nobody asks any more."""
    if not node.users and (node.op == "get_attr" or node.target is getattr):
        read = node.all_input_nodes
        graph.erase_node(node)
        for asked in read:
            _forget(graph, asked)


_UPDATES = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def _not_in_place(model: nn.Module, graph: fx.Graph) -> None:
    """Have nothing overwrite the codes of the layer before it; who reads the overwritten tensor reads the new one."""
    modules = dict(model.named_modules())
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        overwritten = node.args[0] if node.args and _overwrites(node, modules) else None
        _refuse_views(node, overwritten, modules, order)
        while isinstance(overwritten, fx.Node):
            for user in list(overwritten.users):
                if order[user] > order[node]:
                    user.replace_input_with(overwritten, node)
            module = modules.get(str(overwritten.target)) if overwritten.op == "call_module" else None
            same = isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout2d))  # they give the very tensor
            overwritten = overwritten.args[0] if same and overwritten.args else None
    for module in model.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010  # a type checker takes attributes of modules for tensors
    for node in graph.nodes:
        if "inplace" in node.kwargs:
            node.kwargs = {**node.kwargs, "inplace": False}


def _refuse_views(node: fx.Node, overwritten: Any, modules: dict[str, nn.Module], order: dict[fx.Node, int]) -> None:
    """Refuse to overwrite a window into a tensor that is read afterwards: a graph has no memory that two share."""
    while isinstance(overwritten, fx.Node) and kind_of(overwritten, modules.get(str(overwritten.target))) in VIEWS:
        overwritten = overwritten.args[0]
        users = overwritten.users if isinstance(overwritten, fx.Node) else ()
        if any(order[user] > order[node] and kind_of(user, None) != "size" for user in users):
            raise _overwriting(user_line(node) or node.name)


def _overwrites(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a call changes its first argument."""
    if node.op == "call_module":
        return bool(getattr(modules.get(str(node.target)), "inplace", False))
    named = str(operation_name(node))
    written = named.endswith("_") and not named.endswith("__")
    return bool(node.kwargs.get("inplace")) or node.target in _UPDATES or written


def _same_results(result: Any, expected: Any, where: str) -> None:
    """Make sure that the graph computed what the network does, relative to its size.

    Raises:
        UnsupportedError: it did not, because the network overwrites a view of another tensor.
    """
    pairs = list(zip(tensors_in(result), tensors_in(expected), strict=True))
    if not all(a.shape == b.shape and difference(b, a) <= TOLERANCE for a, b in pairs):
        raise _overwriting(where)


def _copied(values: Any) -> Any:
    """Tensors that somebody may overwrite, in copies."""
    return fx.node.map_aggregate(values, lambda x: x.detach().clone() if isinstance(x, Tensor) else x)


def _overwriting(where: str) -> UnsupportedError:
    return UnsupportedError(
        "the traced network does not give what the network gives",
        given="an operation that overwrites part of another tensor, or random numbers",
        where=where,
        hint="Write results to new tensors: no out=, no x[...] = y, no in-place operation on a view.",
    )


def operation_name(node: fx.Node) -> str:
    """Name of the function, method or module that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def user_line(node: fx.Node) -> str:
    """File, line and code of the user's that made a node; empty where it is not known."""
    frames = [m for m in _FRAME.finditer(node.stack_trace or "") if not m["file"].startswith(_OURS)]
    return f"{Path(frames[-1]['file']).name}, line {frames[-1]['line']}: {frames[-1]['code']}" if frames else ""


def _line_of(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OURS)]
    frames = [f for f in frames if not f.filename.startswith("<")]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}" if frames else "forward"


def _dynamic(node: fx.Node) -> UnsupportedError:
    return UnsupportedError(
        "the shape of the result depends on the values of a tensor",
        given=operation_name(node),
        where=user_line(node) or node.name,
        hint="A chip's shapes are fixed: mask with a multiplication, or do this outside the network.",
    )


class _Recorder(fx.Interpreter):
    """Runs a graph and describes what each node gave."""

    def __init__(self, network: fx.GraphModule, keep: bool, keep_values: bool = False) -> None:
        super().__init__(network)
        self.keep, self.keep_values, self.found = keep, keep_values, dict[fx.Node, Any]()
        self.values: dict[fx.Node, Any] = {}
        modules = dict(network.named_modules())
        self.overwrites = any(_overwrites(node, modules) for node in network.graph.nodes)

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        if n.op == "call_function" and operation_name(n) == "getitem":
            index = self.map_nodes_to_values(n.args[1], n)
            if isinstance(index, Tensor) and index.dtype == torch.bool:
                raise _dynamic(n)
        result = super().run_node(n)
        found = fx.node.map_aggregate(result, self._described)
        if n.op == "placeholder" and isinstance(found, Seen) and isinstance(result, Tensor):
            found = replace(found, steps=_steps(result))
        self.found[n] = found
        if self.keep_values and n.op.startswith("call"):
            self.values[n] = _copied(result) if self.overwrites else result
        return result

    def _described(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not self.keep:
            return tuple(value.shape)
        if not value.numel() or value.is_complex():
            return Seen(tuple(value.shape))
        low, high = (v.item() for v in torch.aminmax(value.detach().float()))
        smallest = value.detach().float().abs().min().item()
        counts = not value.is_floating_point()
        return Seen(tuple(value.shape), low, max(-low, high), smallest, highest=high, counts=counts)


def _steps(values: Tensor) -> int:
    """The least of 1, 128 and 255 whose inverse all values are multiples of, up to float32's rounding; 0 for none."""
    if not values.numel() or not values.is_floating_point():
        return 0
    for steps in (1, 128, 255):
        scaled = values.detach().double() * steps
        if bool(((scaled - scaled.round()).abs() < 1e-4).all()):
            return steps
    return 0


def _run(
    network: fx.GraphModule, examples: tuple[Any, ...], keep: bool, keep_values: bool = False
) -> tuple[_Recorder, Any]:
    """A recorder with what each node gave, and what the network gave."""
    recorder = _Recorder(network, keep, keep_values)
    try:
        with torch.no_grad():
            result = recorder.run(*examples)
    except UnsupportedError:
        raise
    except Exception as error:
        line = user_line(recorder.current) if hasattr(recorder, "current") else ""
        raise ShapeError(
            "the network does not run on the example",
            given=str(error).splitlines()[0],
            where=line or type(network).__name__,
            hint="Give an example batch as the network's forward takes it.",
        ) from error
    return recorder, result


def _doubled(network: fx.GraphModule, examples: tuple[Any, ...]) -> dict[fx.Node, Any] | None:
    """Shapes with twice the batch; None where the network does not run with it (a fixed batch)."""
    if not all(isinstance(x, Tensor) and x.dim() for x in examples):
        return None
    try:
        return _run(network, tuple(torch.cat([x, x]) for x in examples), keep=False)[0].found
    except ShapeError:
        return None

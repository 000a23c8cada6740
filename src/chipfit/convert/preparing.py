"""How an input of a network reaches its first layers: what only moves it, and what scales and shifts it by constants.

A chip whose first layers read an image knows how it was prepared. What the forward does to an input before them is such
a preparation: reshapes, borders, and normalisations such as `(x - mean) / std`. None of it needs an operator of the
chip, and the first layers still read an image, whose border is zero.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from chipfit.convert.fold import norm_terms
from chipfit.convert.operations import MOVES
from chipfit.convert.steps import Step
from chipfit.convert.trace import Traced
from chipfit.convert.words import Mapped, Seen

_SAME = {"contiguous", "clone", "detach", "float", "dropout", "identity"}
_MOVES = {*MOVES, "dropout", "identity"}


@dataclass(frozen=True)
class Preparation:
    """How one tensor that first layers read comes from an input of the network.

    Args:
        steps: As `Seen.steps` of the input; 0 after a normalisation.
        at: The tensor that becomes an image; borders follow it.
        gain: Factors, one or one a channel; None without a normalisation.
        bias: Summands, likewise.
        normalising: The calls that are the normalisation.
    """

    steps: int
    at: fx.Node | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    normalising: frozenset[fx.Node] = frozenset()


AS_IT_IS = Preparation(0)
"""An input that nothing is done to."""


def preparations(steps: list[Step], traced: Traced) -> dict[fx.Node, Preparation]:
    """The tensors that only layers read which may be the first, and how they come from the network's inputs.

    Args:
        steps: All operations, mapped.
        traced: The network.
    """
    found = {}
    for node in traced.network.graph.nodes:
        seen = traced.seen[node]
        if node.op != "placeholder" or not isinstance(seen, Seen):
            continue
        end, preparation = _followed(node, Preparation(seen.steps, node), steps, traced)
        readers = [step.mapped.feature for step in steps if end in step.operands]
        if readers and all(feature is not None and feature.begins for feature in readers):
            found[end] = preparation
    return found


def on_tensors(steps: list[Step], prepared: Mapping[fx.Node, Preparation]) -> list[Step]:
    """The steps, without the normalisations that the preparation of an input takes over."""
    normalising = {node for preparation in prepared.values() for node in preparation.normalising}
    inputs = {node for end in prepared for node in _sources(end)}
    for step in reversed(steps):  # what computes the constants of one
        if step.node not in inputs and step.node.users and all(user in normalising for user in step.node.users):
            normalising.add(step.node)
    inside = Mapped("in the input's preparation", "npu")
    return [replace(step, mapped=inside, prepares=True) if step.node in normalising else step for step in steps]


def _sources(node: fx.Node) -> list[fx.Node]:
    """A node and those on its way from an input."""
    return [node, *(source for parent in node.all_input_nodes[:1] for source in _sources(parent))]


def _followed(
    node: fx.Node, preparation: Preparation, steps: list[Step], traced: Traced
) -> tuple[fx.Node, Preparation]:
    """The last of a chain of moves and normalisations from a node on, and what they amount to."""
    users = [step for step in steps if node in step.operands]
    if len(users) != 1:
        return node, preparation
    step, kind = users[0], users[0].operation.kind
    seen = traced.seen[step.node]
    several = preparation.gain is not None and preparation.gain.numel() > 1
    if kind == "pad":
        if step.mapped.unit != "npu":
            return node, preparation
        return _followed(step.node, preparation, steps, traced)
    if preparation.at is not node:  # behind a border
        return node, preparation
    if kind in _MOVES and isinstance(seen, Seen) and step.operands == (node,) and (kind in _SAME or not several):
        return _followed(step.node, replace(preparation, at=step.node), steps, traced)
    normalised = _normalised(step, node, preparation, traced)
    return (node, preparation) if normalised is None else _followed(step.node, normalised, steps, traced)


def _normalised(step: Step, node: fx.Node, preparation: Preparation, traced: Traced) -> Preparation | None:
    """What a preparation becomes by arithmetic with a constant; None for any other step."""
    operation = step.operation
    if operation.options.get("rounding_mode") or operation.options.get("alpha", 1) != 1:
        return None
    one, zero = torch.ones(1, dtype=torch.double), torch.zeros(1, dtype=torch.double)
    gain = one if preparation.gain is None else preparation.gain
    bias = zero if preparation.bias is None else preparation.bias
    norm: Any = operation.module
    if operation.kind == "batch_norm" and norm.running_mean is not None and step.operands == (node,):
        factor, mean, shift = (term.cpu() for term in norm_terms(norm))
        gain, bias = gain * factor, (bias - mean) * factor + shift
    elif operation.kind == "neg":
        gain, bias = -gain, -bias
    elif operation.kind in ("add", "sub", "rsub", "mul", "div") and len(step.operands) == 2:
        first, second = step.operands[::-1] if operation.kind == "rsub" else step.operands
        constant = _constant(second if first is node else first, traced, operation.output)
        if constant is None or (first is second) or (operation.kind == "div" and second is node):
            return None
        if operation.kind == "mul":
            gain, bias = gain * constant, bias * constant
        elif operation.kind == "div":
            gain, bias = gain / constant, bias / constant
        elif operation.kind == "add":
            bias = bias + constant
        elif first is node:
            bias = bias - constant
        else:
            gain, bias = -gain, constant - bias
    else:
        return None
    if not bool(torch.isfinite(gain).all() and torch.isfinite(bias).all()):
        return None
    return Preparation(0, step.node, gain, bias, preparation.normalising | {step.node})


def _constant(given: Any, traced: Traced, output: Seen) -> Tensor | None:
    """A number, or one a channel, in float64; None for anything that is learned or differs within a channel."""
    if isinstance(given, (int, float)):
        return torch.tensor([given], dtype=torch.double)
    value = _evaluated(given, traced) if isinstance(given, fx.Node) else None
    if value is None or not value.is_floating_point() or value.dim() > len(output.shape):
        return None
    if value.numel() == 1:
        return value.detach().double().reshape(1).cpu()
    sizes = (1,) * (len(output.shape) - value.dim()) + tuple(value.shape)
    alone = len(sizes) > 1 and all(size == 1 for axis, size in enumerate(sizes) if axis != 1)
    return value.detach().double().reshape(-1).cpu() if alone else None


def _evaluated(node: fx.Node, traced: Traced) -> Tensor | None:
    """What a node gives that depends on buffers alone."""
    if node.op == "get_attr":
        value = operator.attrgetter(str(node.target))(traced.network)
        return value if isinstance(value, Tensor) and not value.requires_grad else None
    if node.op not in ("call_function", "call_method"):
        return None
    read = {source: _evaluated(source, traced) for source in node.all_input_nodes}
    if not read or any(value is None for value in read.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: read[source])
    with torch.no_grad():
        if callable(node.target):
            result = node.target(*args, **kwargs)
        else:
            result = getattr(args[0], node.target)(*args[1:], **kwargs)
    return result if isinstance(result, Tensor) else None

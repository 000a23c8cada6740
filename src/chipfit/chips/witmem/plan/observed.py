"""What the plan knows of a layer: some of its inputs and outputs in float, and how much the network's output minds."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.witmem.layer import WitinLayer
from chipfit.fit.collect import first_tensor, tensors_of
from chipfit.modes import kept_modes, set_mode

_CALLS = 6
"""Calls of one layer that are kept; a recurrent network calls its layers once a step."""
_VALUES = 1 << 18
"""Values of one call's input or output that are kept, about."""
_PROJECTIONS = 2


@dataclass
class Call:
    """One call of a layer in float.

    Args:
        inputs: What it was given.
        named: What it was given by name.
        output: What it gave.
        sensitivity: Mean squared gradient of the network's output by each value of it; None where it has none.
    """

    inputs: tuple[Any, ...]
    named: dict[str, Any]
    output: Tensor
    sensitivity: Tensor | None = None

    def error(self, given: Tensor) -> float:
        """What an output in its place adds to the squared error at the network's output."""
        squared = (given - self.output).square()
        return (squared if self.sensitivity is None else squared * self.sensitivity).sum().double().item()


@dataclass
class Observed:
    """The calls of one layer."""

    calls: list[Call] = field(default_factory=list)

    def thinned(self) -> list[Call]:
        """At most `_CALLS` of them, from all over the sequence, of few samples each."""
        step = max(1, -(-len(self.calls) // _CALLS))
        return [_smaller(call) for call in self.calls[::step]]


def observe(model: nn.Module, layers: dict[str, WitinLayer], batches: Iterable[tuple[Any, ...]]) -> dict[str, Observed]:
    """Run batches through the float network and keep what reaches and leaves each layer.

    Args:
        model: The network.
        layers: The layers to watch, by name.
        batches: Inputs of the network.
    """
    found = {name: Observed() for name in layers}
    live: list[tuple[Call, Tensor]] = []

    def hook(name: str) -> Any:
        def after(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            y = first_tensor(output)
            call = Call(_detached(inputs), _detached(named), y.detach())
            found[name].calls.append(call)
            if y.requires_grad:
                live.append((call, y))

        return after

    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        stack.enter_context(kept_modes(model))
        set_mode(model.eval(), "float")
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook(name), with_kwargs=True).remove)
        for batch in batches:
            live.clear()
            with torch.enable_grad():
                outputs = tensors_of(model(*batch))
                _sense(outputs, live, generator)
    return found


def _sense(outputs: list[Tensor], live: list[tuple[Call, Tensor]], generator: torch.Generator) -> None:
    """Squared gradients of random projections of the output, whose mean is that of the whole Jacobian's columns."""
    reached = [y for y in outputs if y.requires_grad]
    if not live or not reached:
        return
    for last, _ in zip(range(_PROJECTIONS - 1, -1, -1), range(_PROJECTIONS), strict=True):
        directions = [torch.randn(y.shape, generator=generator).to(y) for y in reached]
        grads = torch.autograd.grad(reached, [y for _, y in live], directions, retain_graph=last > 0, allow_unused=True)
        for (call, y), grad in zip(live, grads, strict=True):
            squared = torch.zeros_like(y) if grad is None else grad.square()
            call.sensitivity = squared if call.sensitivity is None else call.sensitivity + squared


def _smaller(call: Call) -> Call:
    """Samples enough for about `_VALUES` values, where the batch is the first axis of everything."""
    tensors = [t for t in (*call.inputs, *call.named.values(), call.output) if isinstance(t, Tensor)]
    samples = {t.shape[0] if t.dim() > 1 else 0 for t in tensors}
    largest = max(t.numel() for t in tensors)
    if len(samples) != 1 or 0 in samples or largest <= _VALUES:
        return call
    keep = max(2, samples.pop() * _VALUES // largest)

    def cut(value: Any) -> Any:
        return value[:keep] if isinstance(value, Tensor) else value

    return Call(
        tuple(map(cut, call.inputs)),
        {name: cut(value) for name, value in call.named.items()},
        cut(call.output),
        cut(call.sensitivity),
    )


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return type(value)(_detached(entry) for entry in value)
    return {name: _detached(entry) for name, entry in value.items()} if isinstance(value, dict) else value

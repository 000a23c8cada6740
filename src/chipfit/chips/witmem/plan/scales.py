"""The exponents of each array operation's input, weight and output, chosen together.

Calibration chooses a range for each tensor by itself. On the array they hang together: the bias has codes of
`scale_x * scale_weight`, of which the bias rows hold only so many, and a finer input is worth nothing beside a coarse
weight. So each layer's exponents are searched together, on samples of its float inputs: the error at the layer's output
in the chip's own arithmetic, each value weighted by how much the network's output minds it. That counts quantisation,
clipping, the rounding and the clipping of biases, and forgets what a ReLU takes away anyway. No bias is clipped where
any scales of the search hold it.

In a process group the error is that over the samples of all ranks, which so take every decision alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chipfit.chips.witmem.array.layers import ArrayLayer
from chipfit.chips.witmem.gru.base import GruLayer
from chipfit.chips.witmem.gru.rule import STATE
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.plan.biases import biases
from chipfit.chips.witmem.plan.observed import Call, observe
from chipfit.chips.witmem.wtm2101 import LOG2_G
from chipfit.fit.collect import first_tensor, tensors_of
from chipfit.fit.ranks import anywhere, summed
from chipfit.modes import kept_modes, set_mode

Exponents = dict[str, int]
"""log2 of the scale by short name of the tensor."""

_MOST_COARSER = 16
"""How many powers of two coarser than calibrated the search goes to hold a bias."""
_SWEEPS = 3
_WORTH = 0.98
"""A step is taken where it leaves less than this of the error."""


@dataclass(frozen=True)
class Planned:
    """What the plan says of one layer.

    Args:
        scales: Codes per unit, by short name of the tensor.
        holding: The scales that calibration would have taken, changed only so that they hold the bias.
    """

    scales: dict[str, float]
    holding: dict[str, float]


def plan_scales(
    model: nn.Module,
    layers: dict[str, WitinLayer],
    batches: list[tuple[Any, ...]],
    only_biases: bool,
    unknown: set[tuple[str, str]],
) -> dict[str, Planned]:
    """Choose the scales of all array operations of a network, from those that are in force; nothing is changed.

    Args:
        model: The network.
        layers: Its layers by name.
        batches: A few inputs of it.
        only_biases: Leave the scales as they are but where they clip a bias.
        unknown: Layers and tensors of which the data say nothing; they keep what they have, but for a bias.
    """
    array = {name: layer for name, layer in layers.items() if _planned(layer)}
    found = {}
    with kept_modes(model):
        seen = observe(model, array, batches)
        set_mode(model.eval(), "quant")
        for name, layer in array.items():
            calls = seen[name].thinned()
            if anywhere(bool(calls)):
                found[name] = _Search(layer, calls, {t for n, t in unknown if n == name}).run(only_biases)
    return found


def _planned(layer: WitinLayer) -> bool:
    """Whether a layer takes its scales from data, powers of two, and has an array operation."""
    known = isinstance(layer, (ArrayLayer, GruLayer)) and layer.use_auto_scale
    return known and all(math.frexp(observer.scale)[0] == 0.5 for observer in layer.observers.values())


class _Search:
    """The exponents of one layer, which has its own back when the search is over."""

    def __init__(self, layer: WitinLayer, calls: list[Call], unknown: set[str]) -> None:
        self.layer, self.calls, self.unknown = layer, calls, unknown
        self.ranges = {name: observer.io_max.item() for name, observer in layer.observers.items()}
        self.errors: dict[tuple[int, ...], tuple[int, float]] = {}

    @torch.no_grad()
    def run(self, only_biases: bool) -> Planned:
        """Search, and say what was found."""
        start = {name: round(math.log2(observer.scale)) for name, observer in self.layer.observers.items()}
        try:
            holding = self.holding_biases(start)
            best = holding if only_biases else self.improved(holding)
        finally:
            for name, io_max in self.ranges.items():
                self.layer.observers[name].io_max.fill_(io_max)
            self.layer.scales_in_force()
        scales, held = ({n: math.ldexp(1.0, exponent) for n, exponent in chosen.items()} for chosen in (best, holding))
        return Planned(scales, held)

    def set(self, exponents: Exponents) -> None:
        """Put exponents in force."""
        for name, exponent in exponents.items():
            observer = self.layer.observers[name]
            observer.io_max.fill_(math.ldexp(1.0, observer.q_bit_in - 1 - exponent))
            observer.settled = False
        self.layer.scales_in_force()

    def cost(self, exponents: Exponents) -> tuple[int, float]:
        """Biases that are clipped, and the squared error; less is better, biases first."""
        key = tuple(exponents.values())
        if key not in self.errors:
            self.set(exponents)
            clipped = sum(int(bias.clipped.sum()) for bias in biases(self.layer))
            forward = self.layer.forward
            own = sum(call.error(first_tensor(forward(*call.inputs, **call.named))) for call in self.calls)
            error = summed(own)
            self.errors[key] = clipped, error if math.isfinite(error) else math.inf
        return self.errors[key]

    def holding_biases(self, start: Exponents) -> Exponents:
        """The exponents nearest to the given ones that clip no bias, or the fewest: of all ways to share, the best."""
        self.set(start)
        best = start
        for position, bias in enumerate(biases(self.layer)):
            if not bool(bias.clipped.any()):
                continue
            x, weight = bias.tensors
            for coarser in range(1, _MOST_COARSER + 1):
                shares = [(part, coarser - part) for part in range(coarser + 1)] if x else [(0, coarser)]
                tried = [
                    best | ({x: best[x] - part} if x else {}) | {weight: best[weight] - rest} for part, rest in shares
                ]
                self.set(tried[0])
                if bool(biases(self.layer)[position].clipped.any()) and coarser < _MOST_COARSER:
                    continue  # how it is shared makes no difference to the bias
                best = min(tried, key=self.cost)
                break
        return best

    def improved(self, start: Exponents) -> Exponents:
        """Take every step that makes the error smaller, until none does."""
        best = start
        for _ in range(_SWEEPS):
            before = best
            for step in self.steps():
                if self.unknown.intersection(step):
                    continue
                tried = best | {name: best[name] + by for name, by in step.items()}
                if self.outside(tried) > self.outside(best):
                    continue
                clipped, error = self.cost(best)
                if self.cost(tried) < (clipped, error * _WORTH):
                    best = tried
            if best == before:
                break
        return best

    def steps(self) -> Iterator[dict[str, int]]:
        """One exponent a step off, or those of input and weight in opposite directions."""
        for name in self.ranges:
            yield {name: 1}
            yield {name: -1}
        for x, weight, _ in self.halves():
            if x:
                yield {x: 1, weight: -1}
                yield {x: -1, weight: 1}

    def halves(self) -> Iterator[tuple[str | None, str, str]]:
        """Input, weight and output of each array operation; the state of a GRU has a scale of its own."""
        for name in self.ranges:
            if name.startswith("weight_hidden"):
                yield None, name, name.replace("weight_hidden", "y_hidden")
            elif name.startswith("weight"):
                yield name.replace("weight", "x"), name, name.replace("weight", "y")

    def outside(self, at: Exponents) -> int:
        """Array operations whose G the chip cannot divide by."""
        gs = [(at[x] if x else round(math.log2(STATE.scale))) + at[w] - at[y] for x, w, y in self.halves()]
        return sum(not LOG2_G[0] <= g <= LOG2_G[1] for g in gs)


@torch.no_grad()
def output_error(model: nn.Module, batches: list[tuple[Any, ...]]) -> float:
    """Squared error of a network's output, quantised against float, over some batches of each rank."""
    total = 0.0
    with kept_modes(model):
        model.eval()
        for batch in batches:
            clean = tensors_of(set_mode(model, "float")(*batch))
            given = tensors_of(set_mode(model, "quant")(*batch))
            total += sum((a - b).double().square().sum().item() for a, b in zip(clean, given, strict=True))
    return summed(total)

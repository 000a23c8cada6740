"""Mixed precision: how many bits each layer's weight gets, from what each layer suffers with fewer, under a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from chipfit.errors import CalibrationError, InvalidValueError, UnknownOptionError, UnsupportedError, nearest
from chipfit.fit.bias import correct_bias
from chipfit.fit.calibrate import calibrate, fitting_of
from chipfit.fit.collect import first_tensor, inputs_of
from chipfit.fit.contract import WeightWidth
from chipfit.modes import set_mode
from chipfit.vendor import vendor_of

COSTS = ("bytes", "mac_bits")
"""Size of the weights in bytes; multiply-accumulates of one input times the bits of the weight."""

Build = Callable[[Mapping[str, int]], nn.Module]
"""Makes the quantised network with these weight widths; a layer that is not named gets the builder's own."""


@dataclass(frozen=True)
class Sensitivity:
    """One layer at one width, all others at the greatest.

    Args:
        layer: Its name.
        bits: Width of its weight.
        loss: How much worse than with all layers at the greatest width: points of the metric, or without a metric
            noise power over signal power at the network's output.
        cost: What the layer costs at this width, in the unit of the budget.
    """

    layer: str
    bits: int
    loss: float
    cost: int


@dataclass(frozen=True)
class SearchResult:
    """What `search` found.

    Args:
        bits: Width of each layer's weight.
        cost: Of all layers together, in the unit of the budget.
        budget: As given.
        loss: Sum of the layers' losses, the estimate that was minimised.
        table: Everything that was measured, in network order.
    """

    bits: dict[str, int]
    cost: int
    budget: float
    loss: float
    table: tuple[Sensitivity, ...]


def search(
    model: nn.Module,
    build: Build,
    loader: Iterable[Any],
    metric: Callable[[nn.Module], float] | None = None,
    budget: float = math.inf,
    bits: Sequence[int] = (2, 4, 8),
    *,
    cost: str = "bytes",
    method: str = "mse",
    batches: int | None = None,
) -> SearchResult:
    """Choose the width of each layer's weight so that the network suffers least within a budget.

    Each layer is measured by itself at each width, in a network that is calibrated and bias-corrected anew; then a
    knapsack is solved exactly. The layers' losses are taken to add up.

    Args:
        model: The float network (`quantize=False`) that gives the weights.
        build: Makes the quantised network for given widths, with the same layer names; its layers must not choose
            widths by themselves (`auto_bitwidth=False`). A layer that it makes with a width of its own, for instance
            the first at 8 bits, is kept at that width and paid for.
        loader: Calibration data, as for `chipfit.calibrate`; kept in memory.
        metric: Of a quantised network, higher is better; None takes the noise at the output, which needs no labels and
            also tells small losses apart.
        budget: Most that all layers together may cost.
        bits: Widths to choose from.
        cost: 'bytes' of weights, or 'mac_bits' a run of one input.
        method: Calibration method.
        batches: Largest number of batches to calibrate with; None for all.

    Returns:
        The widths, and the table behind them.

    Raises:
        UnknownOptionError: no such cost.
        InvalidValueError: no widths, a budget that not even the smallest widths meet, or a builder that changes its
            mind.
        UnsupportedError: the network has no layers whose weights have several widths.
        CalibrationError: there is no batch, or the quantised network gives NaN.
    """
    if cost not in COSTS:
        raise UnknownOptionError(
            "unknown cost", given=cost, allowed=", ".join(COSTS), where="search(cost=)", hint=nearest(cost, COSTS)
        )
    widths = sorted(set(bits))
    if not widths or not set(widths) <= set(range(2, 9)):
        raise InvalidValueError("no such widths", given=bits, allowed="some of 2 to 8", where="search(bits=)")
    data = list(itertools.islice(loader, batches))
    if not data:
        raise CalibrationError("the calibration data is empty", where="search", hint="Give at least one batch.")
    sizes = layer_sizes(model, data[0])
    probe = _widths(build(dict.fromkeys(sizes, widths[0])))
    choices = {name: widths if probe.get(name) == widths[0] else [probe.get(name, 32)] for name in sizes}
    prices = {
        (name, width): sizes[name].macs * width if cost == "mac_bits" else -(-sizes[name].weights * width // 8)
        for name, own in choices.items()
        for width in own
    }
    cheapest = sum(prices[name, own[0]] for name, own in choices.items())
    if not cheapest <= budget:
        raise InvalidValueError(
            "the budget is too small", given=budget, allowed=f"{cheapest} {cost} or more", where="search(budget=)"
        )
    clean = None if metric else _outputs(model, data)

    def score(chosen: Mapping[str, int]) -> float:
        net = build(chosen)
        got = _widths(net)
        wrong = {name: got.get(name) for name, width in chosen.items() if got.get(name, 32) != width}
        if wrong:
            raise InvalidValueError(
                "build made other widths than it was asked for",
                given=wrong,
                allowed=str({name: chosen[name] for name in wrong}),
                where="search(build=)",
                hint="Pass the width as weight_bitwidth, with auto_bitwidth=False where a layer has that.",
            )
        net.load_state_dict(model.state_dict())
        calibrate(net, data, method, measure=False)
        correct_bias(net, data)
        set_mode(net, "quant")
        value = float(metric(net)) if metric else -_noise(clean or [], _outputs(net, data))
        if math.isnan(value):
            raise CalibrationError("the quantised network's score is NaN", given=dict(chosen), where="search")
        return value

    greatest = {name: own[-1] for name, own in choices.items()}
    best = score(greatest)
    table = tuple(
        Sensitivity(name, width, best - score({**greatest, name: width}) if width < greatest[name] else 0.0, price)
        for (name, width), price in prices.items()
    )
    chosen, loss = knapsack(table, budget)
    return SearchResult(chosen, sum(prices[name, width] for name, width in chosen.items()), budget, loss, table)


def knapsack(table: Iterable[Sensitivity], budget: float) -> tuple[dict[str, int], float]:
    """Choose one width a layer with the least sum of losses within the budget.

    Dynamic programming over the layers, exact: after each, all choices are kept that no other beats in both cost and
    loss. A width that gained by chance counts as no loss.

    Args:
        table: One entry per layer and width.
        budget: Most that the chosen entries may cost together.

    Returns:
        Widths by layer, and the sum of their losses. Of equal sums, the cheapest.

    Raises:
        InvalidValueError: nothing fits.

    Example:
        >>> table = [Sensitivity("a", 4, 0.5, 4), Sensitivity("a", 8, 0.0, 8),
        ...          Sensitivity("b", 4, 0.1, 4), Sensitivity("b", 8, 0.0, 8)]
        >>> knapsack(table, 12)
        ({'a': 8, 'b': 4}, 0.1)
    """
    layers: dict[str, list[Sensitivity]] = {}
    for entry in table:
        layers.setdefault(entry.layer, []).append(entry)
    states: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for entries in layers.values():
        grown = sorted(
            (spent + entry.cost, loss + max(entry.loss, 0.0), (*chosen, entry.bits))
            for spent, loss, chosen in states
            for entry in entries
            if spent + entry.cost <= budget
        )
        states, least = [], math.inf
        for state in grown:
            if state[1] < least:
                states.append(state)
                least = state[1]
    if not states:
        raise InvalidValueError("nothing fits the budget", given=budget, where="knapsack")
    _, loss, chosen = states[-1]
    return dict(zip(layers, chosen, strict=True)), loss


@dataclass(frozen=True)
class LayerSize:
    """What a layer's weight costs.

    Args:
        weights: Number of weights.
        macs: Multiply-accumulates of one input.
    """

    weights: int
    macs: int


@torch.no_grad()
def layer_sizes(model: nn.Module, batch: Any) -> dict[str, LayerSize]:
    """Weights and multiply-accumulates of each layer whose weight may have several widths, by its name.

    Args:
        model: A network of chip layers.
        batch: A batch, for the shapes.

    Raises:
        UnsupportedError: the network has no such layers.

    Example:
        >>> from chipfit.chips import ingenic as ops
        >>> net = nn.Sequential(ops.Conv2D(32, 32, padding=1, target_device="T40"))
        >>> layer_sizes(net, torch.rand(2, 32, 4, 4))["0"]
        LayerSize(weights=9216, macs=147456)
    """
    sizes: dict[str, LayerSize] = {}
    layers = weight_widths(model)
    if not layers:
        raise UnsupportedError("no layer's weight has several widths on this chip", given=type(model).__name__)
    inputs = inputs_of(batch, model)

    def hook(name: str) -> Any:
        def after(module: Any, args: Any, output: Tensor) -> None:
            weights = module.weight.numel()
            per_channel = output.numel() // (module.weight.shape[0] * inputs[0].shape[0])
            before = sizes[name].macs if name in sizes else 0  # a layer that runs twice
            sizes[name] = LayerSize(weights, before + weights * per_channel)

        return after

    handles = [layer.weight.register_forward_hook(hook(name)) for name, layer in layers.items()]
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training:
            module.training = flag
    return {name: sizes[name] for name in layers if name in sizes}


def weight_widths(net: nn.Module) -> dict[str, WeightWidth]:
    """The layers of a network whose weights may have several widths, by name.

    Raises:
        UnsupportedError: the chip has one width.
    """
    vendor = vendor_of(net)
    widths = fitting_of(vendor).widths
    if widths is None:
        raise UnsupportedError("the chip's weights have one width", given=vendor.name, where="search")
    return widths(net)


def _widths(net: nn.Module) -> dict[str, int]:
    """Width of each layer's weight; 32 where nothing is quantised."""
    return {name: layer.bits for name, layer in weight_widths(net).items()}


def search_table(result: SearchResult) -> Table:
    """The sensitivities as a table for a terminal, the chosen width of each layer marked."""
    widths = sorted({entry.bits for entry in result.table})
    table = Table(title=f"Loss by weight width; chosen: {result.cost:,} of {result.budget:,g}", min_width=56)
    table.add_column("layer")
    for width in widths:
        table.add_column(f"{width} bit", justify="right")
    for name, chosen in result.bits.items():
        losses = {entry.bits: entry.loss for entry in result.table if entry.layer == name}
        cells = {width: f"{loss:.4g}" for width, loss in losses.items()}
        cells[chosen] = f"[bold green]{cells[chosen]} ✓[/]"
        table.add_row(escape(name), *(cells.get(width, "") for width in widths))
    return table


@torch.no_grad()
def _outputs(model: nn.Module, data: Iterable[Any]) -> list[Tensor]:
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        return [first_tensor(model(*inputs_of(batch, model))).double() for batch in data]
    finally:
        for module, flag in training:
            module.training = flag


def _noise(clean: list[Tensor], got: list[Tensor]) -> float:
    """Noise power over signal power."""
    noise = sum((a - b).square().sum().item() for a, b in zip(clean, got, strict=True))
    return noise / sum(a.square().sum().item() for a in clean)

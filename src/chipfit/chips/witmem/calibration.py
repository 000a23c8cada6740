"""Calibration of Witmem layers: a power-of-two scale for each tensor, from the data that passes."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid, power_of_two_scale
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.plan.scales import output_error, plan_scales
from chipfit.errors import CalibrationError, ChipfitWarning, UnsupportedError
from chipfit.fit.collect import Kept, Sample, inputs_of
from chipfit.fit.contract import CalibrationRequest, ScaleChoice
from chipfit.fit.methods import largest_magnitude, only_zeros, power_of_two_range, sqnr
from chipfit.fit.ranks import anywhere, first_ones
from chipfit.modes import chip_layers, kept_modes

_PLANNED_BATCHES, _PLANNED_SAMPLES = 4, 16
"""What the plan looks at."""


def calibrate(model: nn.Module, loader: Iterable[Any], request: CalibrationRequest) -> list[ScaleChoice]:
    """Set the scales of a network of Witmem layers, which are powers of two, as the chip needs them.

    A checkpoint holds `io_max`, from which a layer with `use_auto_scale` takes its scale again. A layer without forgets
    the new scale when it is saved, and a warning names it.

    Args:
        model: The network.
        loader: Batches.
        request: What the user asked for.

    Raises:
        CalibrationError: no data, or nothing but zeros in them.
        UnsupportedError: no layer takes its scales from data.
    """
    layers = {name: layer for name, layer in chip_layers(model).items() if isinstance(layer, WitinLayer)}
    if not layers:
        raise UnsupportedError("no layer of this network takes its scales from data", given=type(model).__name__)
    data = Kept(loader, request.batches)
    seen = _collect(model, layers, data)
    choices = []
    for name, layer in layers.items():
        for tensor, values in seen.values(name).items():
            if only_zeros(values):
                choices.append(_kept(name, tensor, layer))
            else:
                bits = layer.observers[tensor].q_bit_in
                choices.append(_choice(name, tensor, values, bits, request.method, request.percentile))
    choices = first_ones(choices)  # the plan of every rank begins with the same
    activations = [choice for choice in choices if not choice.tensor.startswith("weight")]
    if activations and all(choice.largest == 0 for choice in activations):
        largest_magnitude(torch.zeros(1), f"{activations[0].layer}, {activations[0].tensor}")  # raises
    _apply(layers, choices, request.freeze)
    choices = _planned(model, layers, choices, [inputs_of(batch, model) for batch in data.first], seen, request)
    _warn_of_forgetful(layers)
    return choices


def _some(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        value[:_PLANNED_SAMPLES] if isinstance(value, Tensor) and value.dim() > 1 else value for value in inputs
    )


def _planned(
    model: nn.Module,
    layers: dict[str, WitinLayer],
    choices: list[ScaleChoice],
    data: list[tuple[Any, ...]],
    seen: Sample,
    request: CalibrationRequest,
) -> list[ScaleChoice]:
    """The choices of the plan, which are in force then: see `plan.scales`.

    By themselves they suit each layer; should the network's output be worse for them, only biases are made to fit.

    Args:
        model: The network.
        layers: Its layers.
        choices: What each tensor by itself asks for; in force.
        data: Some inputs.
        seen: The values that the choices were made from.
        request: What the user asked for.
    """
    unknown = {(choice.layer, choice.tensor) for choice in choices if choice.largest == 0}
    few = [_some(inputs) for inputs in data[:_PLANNED_BATCHES]]
    plan = plan_scales(model, layers, few, request.method != "mse", unknown)
    holding = _replaced(layers, choices, {name: planned.holding for name, planned in plan.items()}, seen)
    if all(planned.scales == planned.holding for planned in plan.values()):
        _apply(layers, holding, request.freeze)
        return holding
    best = _replaced(layers, choices, {name: planned.scales for name, planned in plan.items()}, seen)
    errors = []
    for candidate in (holding, best):
        _apply(layers, candidate, request.freeze)
        errors.append(output_error(model, data))
    if errors[1] < errors[0]:
        return best
    _apply(layers, holding, request.freeze)
    return holding


def _replaced(
    layers: dict[str, WitinLayer], choices: list[ScaleChoice], scales: dict[str, dict[str, float]], seen: Sample
) -> list[ScaleChoice]:
    """The choices with other scales where there are any."""
    found = []
    for choice in choices:
        scale = scales.get(choice.layer, {}).get(choice.tensor, choice.scale)
        if scale != choice.scale:
            bits = layers[choice.layer].observers[choice.tensor].q_bit_in
            values = seen.values(choice.layer)[choice.tensor]
            error = sqnr(values, fake_quantise(values, Grid(bits, True, scale))) if choice.largest else math.inf
            choice = replace(choice, io_max=math.ldexp(1.0, bits - 1) / scale, scale=scale, sqnr_db=error)
        found.append(choice)
    return found


def _kept(name: str, tensor: str, layer: WitinLayer) -> ScaleChoice:
    """The scale in force, for a tensor that was zero all the time."""
    observer = layer.observers[tensor]
    top = 2.0 ** (observer.q_bit_in - 1)
    io_max = observer.io_max.item() if layer.use_auto_scale or observer.frozen else top / observer.scale
    if not (math.isfinite(io_max) and io_max > 0):  # an epoch of auto-scale that saw nothing either
        io_max = float(observer.max_default)
    return ScaleChoice(name, tensor, 0.0, io_max, power_of_two_scale(io_max, observer.q_bit_in), math.inf)


def _choice(name: str, tensor: str, values: Tensor, bits: int, method: str, percentile: float) -> ScaleChoice:
    io_max = power_of_two_range(values, bits, method, percentile, f"{name}, {tensor}")
    grid = Grid(bits, True, power_of_two_scale(io_max, bits))
    error = sqnr(values, fake_quantise(values, grid))
    return ScaleChoice(name, tensor, values.abs().max().item(), io_max, grid.scale, error)


def _apply(layers: dict[str, WitinLayer], choices: list[ScaleChoice], freeze: bool) -> None:
    for choice in choices:
        observer = layers[choice.layer].observers[choice.tensor]
        with torch.no_grad():
            observer.io_max.fill_(choice.io_max)
        observer.scale, observer.settled = choice.scale, False
    if freeze:
        for layer in layers.values():
            layer.freeze_scales()


def _warn_of_forgetful(layers: dict[str, WitinLayer]) -> None:
    forgetful = [name for name, layer in layers.items() if not layer.use_auto_scale]
    if forgetful:
        warnings.warn(
            f"{', '.join(forgetful)}: without use_auto_scale a checkpoint does not bring the calibrated scales back",
            ChipfitWarning,
            stacklevel=4,
        )


def _collect(model: nn.Module, layers: dict[str, WitinLayer], data: Iterable[Any]) -> Sample:
    """A sample of the values of each watched tensor, by layer."""
    sample = Sample()

    def hook(name: str) -> Callable[..., None]:
        signature = inspect.signature(layers[name].forward)

        def after(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            bound = signature.bind(*inputs, **named)
            bound.apply_defaults()
            for tensor, value in layer.calibration_tensors(tuple(bound.arguments.values()), output).items():
                sample.keep(name, tensor, value)

        return after

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with kept_modes(model), torch.no_grad():
            model.eval()
            for layer in layers.values():
                layer.set_mode("float")
            empty = True
            for batch in data:
                model(*inputs_of(batch, model))
                empty = False
    finally:
        for handle in handles:
            handle.remove()
    if anywhere(empty):  # every rank says so, or the others would wait for the one that does
        raise CalibrationError("the calibration data is empty", where="calibrate", hint="Give at least one batch.")
    return sample

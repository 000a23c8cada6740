"""Calibration of Witmem layers: a power-of-two scale for each tensor, from the data that passes."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid, power_of_two_scale
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.errors import ChipfitWarning, UnsupportedError
from chipfit.fit.collect import Sample, run_batches
from chipfit.fit.contract import CalibrationRequest, ScaleChoice
from chipfit.fit.methods import largest_magnitude, only_zeros, power_of_two_range, sqnr
from chipfit.modes import chip_layers, kept_modes


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
    seen = _collect(model, layers, loader, request.batches)
    choices = []
    for name, layer in layers.items():
        for tensor, values in seen.values(name).items():
            if only_zeros(values):
                choices.append(_kept(name, tensor, layer))
            else:
                bits = layer.observers[tensor].q_bit_in
                choices.append(_choice(name, tensor, values, bits, request.method, request.percentile))
    activations = [choice for choice in choices if not choice.tensor.startswith("weight")]
    if activations and all(choice.largest == 0 for choice in activations):
        largest_magnitude(torch.zeros(1), f"{activations[0].layer}, {activations[0].tensor}")  # raises
    _apply(layers, choices, request.freeze)
    return choices


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
        observer.scale = choice.scale
    if freeze:
        for layer in layers.values():
            layer.freeze_scales()
    forgetful = [name for name, layer in layers.items() if not layer.use_auto_scale]
    if forgetful:
        warnings.warn(
            f"{', '.join(forgetful)}: without use_auto_scale a checkpoint does not bring the calibrated scales back",
            ChipfitWarning,
            stacklevel=4,
        )


def _collect(model: nn.Module, layers: dict[str, WitinLayer], loader: Iterable[Any], batches: int | None) -> Sample:
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
            for _ in run_batches(model, loader, batches):
                pass
    finally:
        for handle in handles:
            handle.remove()
    return sample

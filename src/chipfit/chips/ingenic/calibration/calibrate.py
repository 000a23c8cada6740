"""Calibration of networks of Ingenic operators: the choices, and giving them to a network built anew."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from chipfit.chips.ingenic.calibration import nearest
from chipfit.chips.ingenic.calibration.clips import calibrate_clips, free_layers
from chipfit.chips.ingenic.calibration.float_view import (
    has_zero_borders,
    inner_of,
    norm_of,
    quantised_layers,
    quantiser_of,
    set_clip,
)
from chipfit.chips.ingenic.calibration.windows import calibrate_weights, is_constant
from chipfit.errors import InvalidValueError, UnsupportedError
from chipfit.fit.contract import CalibrationRequest, ScaleChoice
from chipfit.fit.methods import sqnr
from chipfit.modes import kept_modes, set_mode

TRAINED_AS = ("float", "quant")


def calibrate(model: nn.Module, loader: Iterable[Any], request: CalibrationRequest) -> list[ScaleChoice]:
    """Set the `clip_max_value` of each output and the `weight_factor` of each weight.

    Since a layer's output is divided by its clip, the weights that see it are multiplied by the clip, so that the
    network keeps its function; the batch norms take up what clipping a weight does to its size. A checkpoint holds the
    weights but neither clips nor factors, which in the vendor's kit are arguments of the layers.

    Args:
        model: The network, quantised (`quantize=True`), with the float network's weights loaded.
        loader: Batches.
        request: What the user asked for.

    Raises:
        CalibrationError: no data, or nothing but zeros in them.
        UnsupportedError: no layer quantises, or what lies between the layers does not keep proportions.
    """
    if not quantised_layers(model):
        raise UnsupportedError("no layer of this network quantises its output", given=type(model).__name__)
    trained_as, method = request.options["trained_as"], request.method
    if trained_as is None:
        again = any(quantiser_of(layer).calibrated for layer in free_layers(model).values())
        trained_as = "quant" if again else "float"
    from_float = trained_as == "float"
    zero_borders = has_zero_borders(model)
    with kept_modes(model):
        if zero_borders:  # the mode of the moment must not decide
            set_mode(model, "float")
        with nearest.laid_open(model, request.options["codes"], from_float):
            clips, sample = calibrate_clips(model, loader, method, request.percentile, request.batches, from_float)
            weights, moved = calibrate_weights(model, method == "max", from_float)
    for layer in quantised_layers(model).values():
        quantiser_of(layer).zero_borders = zero_borders
    choices = {}
    for clip in clips:
        values = sample.values(clip.layer)["y"]  # in units of the network as it was
        largest = values.abs().max().item()
        choices[clip.layer, "y"] = ScaleChoice(
            clip.layer,
            "y",
            largest,
            clip.io_max,
            clip.levels / clip.io_max,
            sqnr(values, clip.quantise(values)),
            clip.clip * moved.get(clip.layer, 1.0),
        )
    for name, (quantiser, weight) in weights.items():
        if quantiser.nearest:
            choices[name, "weight"] = nearest.choice_of(name, quantiser, weight)
            continue
        with torch.no_grad():
            quantised = quantiser.quantised(weight, quantiser.factor)
        largest = weight.abs().max().item()
        spread = 0.0 if is_constant(weight) else quantiser.factor * weight.std(correction=0).item()
        window = min(largest, spread or largest)  # a constant is not clipped
        choices[name, "weight"] = ScaleChoice(
            name,
            "weight",
            largest,
            window,
            (2**quantiser.bits - 1) / (2 * window) if window else math.inf,
            sqnr(weight.detach(), quantised),
            quantiser.factor,
        )
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    return sorted(choices.values(), key=lambda choice: (order[choice.layer], choice.tensor == "weight"))


def restore(model: nn.Module, choices: Iterable[ScaleChoice]) -> None:
    """Give the layers of an Ingenic network the clips and factors of an earlier calibration.

    For a network that was built anew and has loaded a calibrated network's `state_dict`.

    Args:
        model: Network of Ingenic layers; changed in place.
        choices: What `calibrate` returned.

    Raises:
        InvalidValueError: A layer is not there, or a choice is not one of an Ingenic network.
    """
    layers, modules = quantised_layers(model), dict(model.named_modules())
    for choice in choices:
        known = layers if choice.tensor == "y" else modules
        if choice.layer not in known or choice.setting is None:
            raise InvalidValueError(
                "cannot restore a choice", given=choice, allowed="of an Ingenic layer of this network", where="restore"
            )
        if choice.tensor == "y":
            set_clip(layers[choice.layer], choice.setting)
        else:
            layer: Any = modules[choice.layer]
            quantiser = (inner_of(layer) or layer).QuantizeWeight
            quantiser.factor, quantiser.nearest = choice.setting, choice.codes == "nearest"
            quantiser.absorbed = norm_of(layer) is not None and not quantiser.nearest
            if hasattr(layer, "weight_factor"):
                layer.weight_factor = choice.setting
    for quantised in layers.values():
        quantiser_of(quantised).calibrated = True

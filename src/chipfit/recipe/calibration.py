"""Post-training quantisation: run data through the float network and set every scale from what it saw."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid, power_of_two_scale
from chipfit.chips.modes import chip_layers, kept_modes
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.errors import ChipfitWarning, InvalidValueError, UnknownOptionError, UnsupportedError, nearest
from chipfit.recipe.calibration_collect import Sample, run_batches
from chipfit.recipe.calibration_float import norm_of, quantised_layers, quantiser_of, set_clip
from chipfit.recipe.calibration_ingenic import calibrate_clips, calibrate_weights, free_layers, is_constant
from chipfit.recipe.calibration_methods import METHODS, check_method, largest_magnitude, only_zeros, power_of_two_range

__all__ = ["METHODS", "ScaleChoice", "calibrate", "restore"]

TRAINED_AS = ("float", "quant")


@dataclass(frozen=True)
class ScaleChoice:
    """What calibration chose for one tensor.

    Args:
        layer: Name of the layer.
        tensor: 'x', 'x1', 'x2', 'y', 'weight'; of a GRU also 'y_hidden' and 'weight_hidden', with torch's suffix.
        largest: Greatest magnitude that was seen. Where it is 0 the data say nothing, and the tensor kept what it had.
        io_max: Magnitude that the scale was made for.
        scale: Codes per unit; infinite for a weight of zeros on an Ingenic chip, whose code then has no size.
        sqnr_db: Signal to quantisation-noise ratio of the values seen, in dB, clipping included.
        setting: Ingenic only: the `clip_max_value` ('y') or `weight_factor` ('weight') that the layer was given.
    """

    layer: str
    tensor: str
    largest: float
    io_max: float
    scale: float
    sqnr_db: float
    setting: float | None = None


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    method: str = "mse",
    *,
    percentile: float = 99.9,
    batches: int | None = None,
    freeze: bool = True,
    trained_as: str | None = None,
) -> list[ScaleChoice]:
    """Set the scales of all chip layers from data (PTQ).

    The network runs in float. They are set when all are known: on an error every layer keeps its own. A tensor that
    only ever was zero (an activation that the data never pass, a weight of zeros) determines no scale: it keeps the
    scale, clip or factor that it has, and a warning names it.

    Witmem: the scales are powers of two, as the chip needs them. A checkpoint holds `io_max`, from which a layer with
    `use_auto_scale` takes its scale again. A layer without forgets the new scale when it is saved, and a warning names
    it.

    Ingenic: sets the `clip_max_value` of each output and the `weight_factor` of each weight. Since a layer's output is
    divided by its clip, the weights that see it are multiplied by the clip, so that the network keeps its function; the
    batch norms take up what clipping a weight does to its size. A checkpoint holds the weights but neither clips nor
    factors, which in the vendor's kit are arguments of the layers: keep the choices, and give them to `restore`.

    Args:
        model: Network with chip layers; changed in place, its mode stays as it is. Ingenic layers are those of the
            quantised network (`quantize=True`), with the float network's weights loaded.
        loader: Batches: the input, or a tuple whose first entry is the input. An input is a tensor, or a tuple of the
            network's positional inputs.
        method: 'max' covers the largest magnitude seen; 'percentile' the given one; 'mse' takes the range with the
            smallest mean squared error, so that a few outliers do not cost everybody else a bit; 'kl' the one that
            keeps most of the distribution of the magnitudes (Kullback-Leibler divergence of histograms).
        percentile: Share of magnitudes that 'percentile' covers, in percent.
        batches: Largest number of batches to use; None for all.
        freeze: Keep these scales through training. Otherwise the next `train()` starts to find them anew, as the
            vendor's library does. Ingenic layers always keep theirs.
        trained_as: Ingenic only: 'float' if the weights were trained without normalisation by the clips, 'quant' if
            with it; None means 'quant' for a network that was calibrated before, and 'float' for any other.

    Returns:
        One entry per tensor, in network order.

    Raises:
        UnknownOptionError: no such method.
        InvalidValueError: a percentile outside its range.
        CalibrationError: no data, nothing but zeros or NaN in them, or a layer that was never reached; it is named.
        UnsupportedError: the network has no chip layers, or none whose scales are set from data; or what lies between
            Ingenic layers does not keep proportions.

    Example:
        >>> from witin_nn import LayerConfigFactory, WitinLinear
        >>> net = nn.Sequential(WitinLinear(2, 1, layer_config=LayerConfigFactory.get_default_config()))
        >>> choice = calibrate(net, [torch.tensor([[0.5, 3.0]])], "max")[0]
        >>> choice.layer, choice.tensor, choice.io_max, choice.scale
        ('0', 'x', 3.0, 64.0)
    """
    check_method(method, percentile)
    if trained_as not in (*TRAINED_AS, None):
        raise UnknownOptionError(
            "unknown kind of training",
            given=trained_as,
            allowed="'float', 'quant' or None",
            where="calibrate(trained_as=)",
            hint=nearest(str(trained_as), TRAINED_AS),
        )
    if quantised_layers(model):
        choices = _calibrate_ingenic(model, loader, method, percentile, batches, trained_as)
    else:
        choices = _calibrate_witmem(model, loader, method, percentile, batches, freeze)
    _warn_of_zeros(choices)
    return choices


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
            inner = getattr(layer, "Conv2d", None) or getattr(layer, "Linear", None) or layer
            inner.QuantizeWeight.factor = choice.setting
            inner.QuantizeWeight.absorbed = norm_of(layer) is not None
            if hasattr(layer, "weight_factor"):
                layer.weight_factor = choice.setting
    for quantised in layers.values():
        quantiser_of(quantised).calibrated = True


def _calibrate_witmem(
    model: nn.Module, loader: Iterable[Any], method: str, percentile: float, batches: int | None, freeze: bool
) -> list[ScaleChoice]:
    layers = {name: layer for name, layer in chip_layers(model).items() if isinstance(layer, WitinLayer)}
    if not layers:
        raise UnsupportedError("no layer of this network takes its scales from data", given=type(model).__name__)
    seen = _collect(model, layers, loader, batches)
    choices = []
    for name, layer in layers.items():
        for tensor, values in seen.values(name).items():
            if only_zeros(values):
                choices.append(_kept(name, tensor, layer))
            else:
                bits = layer.observers[tensor].q_bit_in
                choices.append(_choice(name, tensor, values, bits, method, percentile))
    activations = [choice for choice in choices if not choice.tensor.startswith("weight")]
    if activations and all(choice.largest == 0 for choice in activations):
        largest_magnitude(torch.zeros(1), f"{activations[0].layer}, {activations[0].tensor}")  # raises
    _apply(layers, choices, freeze)
    return choices


def _calibrate_ingenic(
    model: nn.Module, loader: Iterable[Any], method: str, percentile: float, batches: int | None, trained_as: str | None
) -> list[ScaleChoice]:
    if trained_as is None:
        again = any(quantiser_of(layer).calibrated for layer in free_layers(model).values())
        trained_as = "quant" if again else "float"
    from_float = trained_as == "float"
    clips, sample = calibrate_clips(model, loader, method, percentile, batches, from_float)
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
            _sqnr(values, clip.quantise(values)),
            clip.clip,
        )
    for name, (quantiser, weight) in calibrate_weights(model, method == "max", from_float).items():
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
            _sqnr(weight.detach(), quantised),
            quantiser.factor,
        )
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    return sorted(choices.values(), key=lambda choice: (order[choice.layer], choice.tensor == "weight"))


def _warn_of_zeros(choices: list[ScaleChoice]) -> None:
    names = "; ".join(f"{choice.layer}, {choice.tensor}" for choice in choices if choice.largest == 0)
    if names:
        warnings.warn(
            f"{names}: only zeros were seen, which determine no scale, so the one before stays (of an Ingenic layer "
            "that shares its range, the others' range). Look at the data that reaches these layers.",
            ChipfitWarning,
            stacklevel=3,
        )


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
    sqnr = _sqnr(values, fake_quantise(values, grid))
    return ScaleChoice(name, tensor, values.abs().max().item(), io_max, grid.scale, sqnr)


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


def _sqnr(values: Tensor, quantised: Tensor) -> float:
    noise = (quantised - values).square().mean().item()
    signal = values.square().mean().item()
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf

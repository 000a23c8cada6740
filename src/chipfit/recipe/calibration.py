"""Post-training quantisation: run data through the float network and set every scale from what it saw."""

from __future__ import annotations

import inspect
import itertools
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
from chipfit.errors import (
    CalibrationError,
    ChipfitWarning,
    InvalidValueError,
    UnknownOptionError,
    UnsupportedError,
    nearest,
)

METHODS = ("max", "percentile", "mse")
_KEPT_PER_BATCH = 1 << 14
_LARGEST_QUANTILE = 1 << 24
"""Number of values from which torch.quantile refuses its input."""


@dataclass(frozen=True)
class ScaleChoice:
    """What calibration chose for one tensor.

    Args:
        layer: Name of the layer.
        tensor: 'x', 'x1', 'x2', 'y', 'weight'; of a GRU also 'y_hidden' and 'weight_hidden', with torch's suffix.
        largest: Greatest magnitude that was seen.
        io_max: Magnitude that the scale was made for.
        scale: Codes per unit.
        sqnr_db: Signal to quantisation-noise ratio of the values seen, in dB, clipping included.
    """

    layer: str
    tensor: str
    largest: float
    io_max: float
    scale: float
    sqnr_db: float


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    method: str = "mse",
    *,
    percentile: float = 99.9,
    batches: int | None = None,
    freeze: bool = True,
) -> list[ScaleChoice]:
    """Set the scales of all chip layers from data (PTQ).

    The network runs in float; the scales are powers of two, as the chip needs them. They are set when all are known: on
    an error every layer keeps its own.

    A checkpoint holds `io_max`, from which a layer with `use_auto_scale` takes its scale again. A layer without forgets
    the new scale when it is saved, and a warning names it.

    Args:
        model: Network with chip layers; changed in place, its mode stays as it is.
        loader: Batches: the input, or a tuple whose first entry is the input. An input is a tensor, or a tuple of the
            network's positional inputs.
        method: 'max' covers the largest magnitude seen; 'percentile' the given one; 'mse' takes the power of two with
            the smallest mean squared error, so that a few outliers do not cost everybody else a bit.
        percentile: Share of magnitudes that 'percentile' covers, in percent.
        batches: Largest number of batches to use; None for all.
        freeze: Keep these scales through training. Otherwise the next `train()` starts to find them anew, as the
            vendor's library does.

    Returns:
        One entry per tensor, in network order.

    Raises:
        UnknownOptionError: no such method.
        InvalidValueError: a percentile outside its range.
        CalibrationError: no data, or a layer that saw only zeros or was never reached; it is named.
        UnsupportedError: the network has no chip layers, or none whose scales are set from data.

    Example:
        >>> from witin_nn import LayerConfigFactory, WitinLinear
        >>> net = nn.Sequential(WitinLinear(2, 1, layer_config=LayerConfigFactory.get_default_config()))
        >>> choice = calibrate(net, [torch.tensor([[0.5, 3.0]])], "max")[0]
        >>> choice.layer, choice.tensor, choice.io_max, choice.scale
        ('0', 'x', 3.0, 64.0)
    """
    if method not in METHODS:
        raise UnknownOptionError(
            "unknown calibration method", given=method, allowed=", ".join(METHODS), hint=nearest(method, METHODS)
        )
    if not 0 < percentile <= 100:
        raise InvalidValueError(
            "no such percentile", given=percentile, allowed="above 0, up to 100", where="calibrate(percentile=)"
        )
    layers = {name: layer for name, layer in chip_layers(model).items() if isinstance(layer, WitinLayer)}
    if not layers:
        raise UnsupportedError("no layer of this network takes its scales from data", given=type(model).__name__)
    seen = _collect(model, layers, loader, batches)
    choices = []
    for name, layer in layers.items():
        if name not in seen:
            raise CalibrationError(
                "the layer was never reached by the calibration data",
                where=name,
                hint="Give data that reaches it, or take the layer out of the network.",
            )
        for tensor, parts in seen[name].items():
            bits = layer.observers[tensor].q_bit_in
            choices.append(_choice(name, tensor, torch.cat(parts), bits, method, percentile))
    _apply(layers, choices, freeze)
    return choices


def _choice(name: str, tensor: str, values: Tensor, bits: int, method: str, percentile: float) -> ScaleChoice:
    io_max = _io_max(values, bits, method, percentile, f"{name}, {tensor}")
    grid = Grid(bits, True, power_of_two_scale(io_max, bits))
    return ScaleChoice(name, tensor, values.abs().max().item(), io_max, grid.scale, _sqnr(values, grid))


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
            stacklevel=3,
        )


def _collect(
    model: nn.Module, layers: dict[str, WitinLayer], loader: Iterable[Any], batches: int | None
) -> dict[str, dict[str, list[Tensor]]]:
    """A sample of the values of each watched tensor, by layer; its largest magnitude is always among them."""
    kept: dict[str, dict[str, list[Tensor]]] = {}
    generator = torch.Generator().manual_seed(0)

    def keep(name: str, layer: WitinLayer, inputs: tuple[Any, ...], output: Any) -> None:
        of_layer = kept.setdefault(name, {})
        for tensor, value in layer.calibration_tensors(inputs, output).items():
            flat = value.detach().flatten().float().cpu()
            if flat.numel() > _KEPT_PER_BATCH:
                picked = torch.randint(flat.numel(), (_KEPT_PER_BATCH,), generator=generator)
                flat = torch.cat([flat[picked], flat[flat.abs().argmax()].view(1)])
            of_layer.setdefault(tensor, []).append(flat)

    def hook(name: str) -> Callable[..., None]:
        signature = inspect.signature(layers[name].forward)

        def after(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            bound = signature.bind(*inputs, **named)
            bound.apply_defaults()
            keep(name, layer, tuple(bound.arguments.values()), output)

        return after

    handles = [layer.register_forward_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    count = 0
    try:
        with kept_modes(model), torch.no_grad():
            model.eval()
            for layer in layers.values():
                layer.set_mode("float")
            for batch in itertools.islice(loader, batches):
                model(*_inputs_of(batch, model))
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise CalibrationError("the calibration data is empty", where="calibrate", hint="Give at least one batch.")
    return kept


def _inputs_of(batch: Any, model: nn.Module) -> tuple[Any, ...]:
    first = batch[0] if isinstance(batch, (tuple, list)) else batch
    inputs = tuple(first) if isinstance(first, (tuple, list)) else (first,)
    parameter = next(model.parameters(), None)
    return inputs if parameter is None else tuple(x.to(parameter.device) for x in inputs)


def _io_max(values: Tensor, bits: int, method: str, percentile: float, where: str) -> float:
    largest = values.abs().max().item() if values.numel() else 0.0
    if not (math.isfinite(largest) and largest > 0):
        raise CalibrationError(
            "NaN or infinite values were seen" if largest else "only zeros were seen",
            given=largest,
            allowed="finite values, not all of them zero",
            where=where,
            hint="Look at the data that reaches this layer.",
        )
    if method == "max":
        return largest
    if method == "percentile":
        every = values.numel() // _LARGEST_QUANTILE + 1
        return max(torch.quantile(values.abs()[::every], percentile / 100).item(), largest * 2.0**-16)
    top = bits - 1 - int(math.log2(power_of_two_scale(largest, bits)))
    errors = {}
    for exponent in range(top, top - 5, -1):
        grid = Grid(bits, True, power_of_two_scale(2.0**exponent, bits))
        errors[exponent] = (fake_quantise(values, grid) - values).square().mean().item()
    return float(2.0 ** min(errors, key=lambda exponent: errors[exponent]))


def _sqnr(values: Tensor, grid: Grid) -> float:
    noise = (fake_quantise(values, grid) - values).square().mean().item()
    signal = values.square().mean().item()
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf

"""Post-training quantisation: run data through the float network and set every scale from what it saw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid, power_of_two_scale
from chipfit.chips.modes import chip_layers, kept_modes
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.errors import CalibrationError, UnknownOptionError, nearest

METHODS = ("max", "percentile", "mse")
_KEPT_PER_BATCH = 1 << 14


@dataclass(frozen=True)
class ScaleChoice:
    """What calibration chose for one tensor.

    Args:
        layer: Name of the layer.
        tensor: 'x', 'x1', 'x2', 'y' or 'weight'.
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

    The network runs in float; the scales are powers of two, as the chip needs them.

    Args:
        model: Network with chip layers; changed in place, its mode stays as it is.
        loader: Batches: a tensor, or a tuple whose first entry is the input.
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
        CalibrationError: no data, or a layer that saw only zeros or was never reached; it is named.
        UnsupportedError: the network has no chip layers.
    """
    if method not in METHODS:
        raise UnknownOptionError(
            "unknown calibration method", given=method, allowed=", ".join(METHODS), hint=nearest(method, METHODS)
        )
    layers = {name: layer for name, layer in chip_layers(model).items() if isinstance(layer, WitinLayer)}
    seen = _collect(model, layers, loader, batches)
    choices = []
    for name, layer in layers.items():
        for tensor, observer in layer.observers.items():
            values = seen.get((name, tensor))
            if values is None:
                raise CalibrationError(
                    "the layer was never reached by the calibration data", where=f"{name}, {tensor}", hint="Give data."
                )
            io_max = _io_max(values, observer.q_bit_in, method, percentile, f"{name}, {tensor}")
            with torch.no_grad():
                observer.io_max.fill_(io_max)
            observer.scale = power_of_two_scale(io_max, observer.q_bit_in)
            grid = Grid(observer.q_bit_in, True, observer.scale)
            choices.append(
                ScaleChoice(name, tensor, values.abs().max().item(), io_max, observer.scale, _sqnr(values, grid))
            )
        if freeze:
            layer.freeze_scales()
    return choices


def _collect(
    model: nn.Module, layers: dict[str, WitinLayer], loader: Iterable[Any], batches: int | None
) -> dict[tuple[str, str], Tensor]:
    """A sample of the values of each watched tensor, its largest magnitude always among them."""
    kept: dict[tuple[str, str], list[Tensor]] = {}
    generator = torch.Generator().manual_seed(0)

    def keep(name: str, layer: WitinLayer, inputs: tuple[Any, ...], output: Any) -> None:
        for tensor, value in layer.calibration_tensors(inputs, output).items():
            flat = value.detach().flatten().float().cpu()
            if flat.numel() > _KEPT_PER_BATCH:
                picked = torch.randint(flat.numel(), (_KEPT_PER_BATCH,), generator=generator)
                flat = torch.cat([flat[picked], flat[flat.abs().argmax()].view(1)])
            kept.setdefault((name, tensor), []).append(flat)

    handles = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: keep(name, module, inputs, output))
        for name, layer in layers.items()
    ]
    try:
        with kept_modes(model), torch.no_grad():
            model.eval()
            for layer in layers.values():
                layer.set_mode("float")
            for count, batch in enumerate(loader):
                if count == batches:
                    break
                model(_input_of(batch, model))
    finally:
        for handle in handles:
            handle.remove()
    if not kept:
        raise CalibrationError("the calibration data is empty", where="calibrate", hint="Give at least one batch.")
    return {key: torch.cat(values) for key, values in kept.items()}


def _input_of(batch: Any, model: nn.Module) -> Tensor:
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    parameter = next(model.parameters(), None)
    moved: Tensor = x if parameter is None else x.to(parameter.device)
    return moved


def _io_max(values: Tensor, bits: int, method: str, percentile: float, where: str) -> float:
    largest = values.abs().max().item()
    if not (math.isfinite(largest) and largest > 0):
        raise CalibrationError(
            "only zeros or non-finite values were seen", given=largest, where=where, hint="Look at the data."
        )
    if method == "max":
        return largest
    if method == "percentile":
        return max(torch.quantile(values.abs()[: 1 << 24], percentile / 100).item(), largest * 2.0**-16)
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

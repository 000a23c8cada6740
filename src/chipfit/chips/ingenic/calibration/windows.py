"""Calibration of Ingenic layers: where each weight is clipped, and what that does to a channel's size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.calibration.float_view import inner_of, norm_of
from chipfit.chips.ingenic.calibration.nearest import place, weights_of
from chipfit.chips.ingenic.calibration.units import rescale_norm
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight, batchNorm2d, weight_gain

FACTORS = (0.8, 1.0, 1.2, 1.5, 1.8, 2.1, 2.4, 2.7, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
"""Half-widths of the weight's window, in deviations, that calibration tries."""


@torch.no_grad()
def calibrate_weights(
    model: nn.Module, cover: bool, from_float: bool
) -> tuple[dict[str, tuple[QuantizeWeight, Tensor]], dict[str, float]]:
    """Choose the window of each quantised weight by its mean squared error, or its peaks where it lies open for that.

    A narrow window makes the quantiser stretch the clipped channels. Batch norm can absorb that, so where there is one
    the error is taken after the best gain a channel, and mean and variance are changed by it.

    Args:
        model: The network, changed in place.
        cover: Clip nothing, instead.
        from_float: Whether the batch norms are those of a float network.

    Returns:
        Quantiser and weight of each layer, and of the layers whose clip followed the size of their weight by what it
        was multiplied.
    """
    found: dict[str, tuple[QuantizeWeight, Tensor]] = {}
    moved: dict[str, float] = {}
    for name, layer in model.named_modules():
        held = weights_of(layer)
        if held is None:
            continue
        quantiser, weights = held
        if quantiser.laid_open in ("float", "trained"):
            moved[name] = place(layer, quantiser, weights, cover)
            found[name] = quantiser, weights[0]
            continue
        norm = norm_of(layer)
        old = None if norm is None or from_float or quantiser.laid_open else weight_gain(weights[0], quantiser)
        quantiser.laid_open = None
        if all(map(is_constant, weights)):
            pass  # no window clips it
        elif cover:
            window = max(((w - w.mean()).abs().max() / w.std(correction=0)).item() for w in weights)
            quantiser.factor = max(window * 1.000001, 0.1)
        else:
            errors = {f: sum(_weight_error(w, quantiser, f, norm) for w in weights) for f in FACTORS}
            quantiser.factor = min(errors, key=lambda f: errors[f])
        if hasattr(layer, "weight_factor"):
            layer.weight_factor = quantiser.factor
        if norm is not None:
            ratio = (1.0 if old is None else old) / weight_gain(weights[0], quantiser)
            rescale_norm(norm, ratio.flatten(), inner_of(layer).bias)
            quantiser.absorbed = True
        found[name] = quantiser, weights[0]
    return found, moved


def is_constant(weight: Tensor) -> bool:
    """Whether all weights are the same, whose deviation would be nothing but rounding."""
    return bool((weight == weight.flatten()[0]).all())


def _weight_error(weight: Tensor, quantiser: QuantizeWeight, factor: float, norm: batchNorm2d | None) -> float:
    quantised = quantiser.quantised(weight, factor)
    gain = 1.0 if norm is None else weight_gain(weight, quantiser, factor)
    return (quantised * gain - weight).square().sum().item()

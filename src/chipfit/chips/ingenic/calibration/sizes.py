"""Sizes of weights: the chips stretch small ones, and have no channel of zeros.

A weight quantiser adds its epsilon to a peak below it (0.05 on Txx, Xs1, Xs2 and of depthwise convolutions, 1e-4 on
the T40 family): what is far smaller comes out as large as that, and a channel of zeros as that below zero. So a small
weight is multiplied by a power of two, and what follows takes it back: the batch norm of the layer, its clip, or a norm
that is put there for it and stays as it is in training. A dead channel, whose weights cannot move one code of its
output, becomes what it is: its constant.

Source: spec/ingenic.md, section 1.3.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.calibration.float_view import inner_of, norm_of
from chipfit.chips.ingenic.calibration.nearest import weights_of
from chipfit.chips.ingenic.calibration.units import gain_of, rescale_norm
from chipfit.chips.ingenic.devices import device
from chipfit.chips.ingenic.operators.activations import HOMOGENEOUS
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight
from chipfit.chips.ingenic.operators.fixed_norm import give_norm
from chipfit.chips.ingenic.operators.layer import WeightedLayer
from chipfit.chips.ingenic.operators.recurrent import LSTM
from chipfit.chips.ingenic.quantizers import epsilon
from chipfit.errors import ChipfitWarning

_DEAD = 2.0**-30
"""Share of the largest channel's reach below which no channel moves a code, whatever it reads."""
_NEVER = 1e30
"""A variance behind which a sum no longer moves a float32."""
_LARGEST = 2.0**56
"""Largest factor that the variance of a norm can take back."""


@dataclass(frozen=True)
class _Sizes:
    """A layer's weight, channel by channel.

    Args:
        weight: Output channels first.
        peaks: Largest magnitude a channel.
        dead: Channels that are constant.
        factors: Powers of two that bring every channel that lives to where nothing is stretched.
    """

    weight: Tensor
    peaks: Tensor
    dead: Tensor
    factors: Tensor


@torch.no_grad()
def settle_sizes(model: nn.Module) -> dict[str, float]:
    """Bring the weights of a network that is calibrated from float to sizes that the quantisers leave alone.

    Args:
        model: The network, its clips made up for in the weights; changed in place, to the same function.

    Returns:
        What the clips of some layers have to be multiplied by, since all that the layer computes was.

    Warns:
        ChipfitWarning: Weights are stretched where nothing can take it back; they are named.
    """
    clips, left = {}, []
    for name, layer in model.named_modules():
        held = weights_of(layer)
        if held is None:
            continue
        quantiser, weights = held
        if isinstance(layer, LSTM) and any(0 < w.abs().max().item() < epsilon_of(quantiser) for w in weights):
            left.append(name)
        if not isinstance(layer, WeightedLayer) or not layer.quantize:
            continue
        inner = inner_of(layer)
        sizes = _sizes(inner.weight, quantiser, norm_of(layer))
        if sizes is None:
            continue
        if norm_of(layer) is None and not bool(sizes.dead.any()) and _divides(layer):
            factor = sizes.factors.max()
            inner.weight *= factor
            if inner.bias is not None:
                inner.bias *= factor
            clips[name] = factor.item()
        elif (norm_of(layer) is not None or layer.converted) and sizes.factors.max() <= _LARGEST:
            give_norm(layer)
            _take_back(layer, inner, sizes, epsilon_of(quantiser))
        else:
            left.append(name)
    if left:
        warnings.warn(
            f"{', '.join(left)}: the largest weight is below the chip's epsilon, which stretches it to a multiple of "
            "itself. Give the layer a batch norm, or larger weights and a smaller factor behind it",
            ChipfitWarning,
            stacklevel=2,
        )
    return clips


def epsilon_of(quantiser: QuantizeWeight) -> float:
    """The peak below which a quantiser stretches a weight.

    Example:
        >>> epsilon_of(QuantizeWeight(8, 3.0, "T40")), epsilon_of(QuantizeWeight(8, 3.0, "Txx"))
        (0.0001, 0.05)
    """
    return epsilon(device(quantiser.target_device, "calibrate").has_zero)


def _sizes(weight: Tensor, quantiser: QuantizeWeight, norm: Any) -> _Sizes | None:
    """The sizes of a weight; None where its quantiser leaves it alone, or it is not finite."""
    peaks = weight.detach().double().abs().flatten(1).amax(1)
    gain = torch.ones_like(peaks)
    if norm is not None:
        owner = norm.batch_norm
        gain = norm.aweight(owner.weight).double() / (owner.running_var.double() + norm.eps).sqrt()
    reach, least = peaks * gain, epsilon_of(quantiser)
    if not bool(torch.isfinite(reach).all()):
        return None
    dead = reach <= reach.max() * _DEAD
    shared = weight.dim() == 2
    if shared and least > 0.01 and not bool(dead.all()):
        dead = torch.zeros_like(dead)  # among others that live, a grid with a zero has zeros
    live = torch.where(dead, torch.full_like(peaks, math.inf), peaks)
    smallest = (peaks.max() if shared else live).expand_as(peaks)
    small = ~dead & (smallest < least)
    factors = torch.where(small, torch.exp2(torch.ceil(torch.log2(least / smallest))), torch.ones_like(peaks))
    if not bool((small | dead).any()):
        return None
    return _Sizes(weight, peaks, dead, factors)


def _divides(layer: WeightedLayer) -> bool:
    """Whether the layer's clip can take back a factor of its sum, in every mode."""
    activation = layer.float_activation
    return (
        layer.quantizes_output
        and layer.QuantizeFeature.bits < 32
        and not layer.QuantizeFeature.gate
        and not layer.offset
        and layer.ceiling == math.inf
        and not isinstance(layer.QuantizeFeature.clip_max_value, Tensor)
        and (activation is None or isinstance(activation, HOMOGENEOUS))
    )


def _take_back(layer: WeightedLayer, inner: Any, sizes: _Sizes, least: float) -> None:
    """Multiply the weight, and have the norm behind the sum divide again; dead channels become their constants."""
    norm: Any = norm_of(layer)
    weight, dead = inner.weight, sizes.dead
    owner = norm.batch_norm
    bias = torch.zeros_like(owner.running_mean) if inner.bias is None else inner.bias
    gain = gain_of(norm)
    constant = (bias - owner.running_mean) * gain + owner.bias
    factors = sizes.factors.to(weight)
    weight *= factors.view(-1, *[1] * (weight.dim() - 1))
    rescale_norm(norm, factors, inner.bias)
    if bool(dead.any()):
        # The window of the weight follows from the deviation of all of it: these shall not change that.
        live = weight[~dead]
        size = max(live.square().mean().sqrt().item() if live.numel() else 0.0, 2 * least)
        row = torch.full_like(weight[0].flatten(), size)
        row[1::2] *= -1
        weight[dead] = row.view_as(weight[0])
        owner.running_mean[dead] = bias[dead]
        owner.running_var[dead] = _NEVER
        owner.weight[dead] = 0.01
        owner.bias[dead] = constant[dead]

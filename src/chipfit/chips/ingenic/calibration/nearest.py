"""Calibration of weights that get the nearest codes; see `chipfit.chips.ingenic.nearest_codes`.

While clips are chosen and made up for, such a weight lies in its layer as the one that it stands for: changes to single
inputs of a layer are no affine changes of what the quantiser is given. At the end each gets its peak, and is held as
the quantiser wants it.

No peak can be below 0.05. Where one would be, the channel is made larger and a batch norm behind it takes that out
again; without one the whole layer is, and the clip of its output with it, so that what it gives is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.calibration.float_view import clip_of, inner_of, norm_of, set_clip, weight_quantiser
from chipfit.chips.ingenic.calibration.units import rescale_norm
from chipfit.chips.ingenic.devices import device
from chipfit.chips.ingenic.nearest_codes import (
    SMALLEST_PEAK,
    affine_image,
    best_peaks,
    covering_peaks,
    latent_weight,
    open_window,
)
from chipfit.chips.ingenic.operators.activations import HOMOGENEOUS
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight, batchNorm2d, held_weight
from chipfit.chips.ingenic.operators.layer import WeightedLayer
from chipfit.chips.ingenic.operators.recurrent import LSTM
from chipfit.chips.ingenic.quantizers import rows_of
from chipfit.fit.contract import ScaleChoice
from chipfit.fit.methods import sqnr

CODES = ("nearest", "vendor")
"""How weights come to their codes: the nearest ones, or as a weight does that is given to the vendor's quantiser."""

_ROOM = 2 * SMALLEST_PEAK
"""Peak that a small channel is made to have: training may halve it."""

_MOST = 2.0**20
"""A channel that would have to grow by more is dead: nothing but what training left of it."""


def weights_of(layer: nn.Module) -> tuple[QuantizeWeight, list[nn.Parameter]] | None:
    """The quantiser of a layer's weight, and what it quantises; None where there is nothing to quantise."""
    quantiser = weight_quantiser(layer)
    if quantiser is None:
        return None
    if isinstance(layer, LSTM):
        return quantiser, [parameter for key, parameter in layer.named_parameters() if key.startswith("weight_")]
    return (quantiser, [inner_of(layer).weight]) if isinstance(layer, WeightedLayer) else None


@contextmanager
def laid_open(model: nn.Module, codes: str | None, from_float: bool) -> Iterator[None]:
    """Let the weights that are to have the nearest codes lie as what they stand for; `place` ends it for each.

    Args:
        model: The network; its weights are as before if what is done meanwhile fails.
        codes: One of `CODES`, or None: nearest where a weight has them, and where a float network was converted.
        from_float: Whether the weights are those of a float network.
    """
    found = {quantiser: weights for quantiser, weights in filter(None, map(weights_of, model.modules()))}
    before = {q: (dict(vars(q)), [weight.detach().clone() for weight in weights]) for q, weights in found.items()}
    for quantiser, weights in found.items():
        _lay_open(quantiser, weights, codes, from_float)
    try:
        yield
    except BaseException:
        for quantiser, (settings, saved) in before.items():
            vars(quantiser).clear()
            vars(quantiser).update(settings)
            with torch.no_grad():
                for weight, value in zip(found[quantiser], saved, strict=True):
                    weight.copy_(value)
        raise


@torch.no_grad()
def _lay_open(quantiser: QuantizeWeight, weights: list[nn.Parameter], codes: str | None, from_float: bool) -> None:
    default = quantiser.nearest or (quantiser.converted and from_float)
    has_zero = device(quantiser.target_device, "calibrate").has_zero
    wanted = has_zero and (codes == "nearest" or (codes is None and default))
    trained, left = not from_float, quantiser.nearest and not wanted
    if quantiser.nearest:
        trained = trained and _moved(quantiser, weights)
        quantiser.excess = None if trained else quantiser.excess
        for weight in weights:
            weight.copy_(held_weight(weight, quantiser))
        quantiser.nearest, quantiser.excess = False, None
    elif wanted and trained:
        for weight in weights:  # what its codes stand for, since a batch norm behind it was trained with that
            weight.copy_(quantiser.quantised(weight, quantiser.factor))
        quantiser.absorbed = False
    quantiser.laid_open = ("trained" if trained else "float") if wanted else "vendor" if left else None


def _moved(quantiser: QuantizeWeight, weights: list[nn.Parameter]) -> bool:
    """Whether weights were trained since they were placed: those that a peak clips then no longer are at the ends."""
    if quantiser.excess is None:
        return True
    latent = rows_of(weights[0]).abs()
    at_end = latent == latent.amax(1, keepdim=True)
    return not bool(at_end[rows_of(quantiser.excess) != 0].all())


@torch.no_grad()
def place(layer: nn.Module, quantiser: QuantizeWeight, weights: list[nn.Parameter], cover: bool) -> float:
    """Give each weight that lies open its peaks, and hold it as the quantiser wants it.

    Args:
        layer: The layer.
        quantiser: The quantiser of its weights.
        weights: What it quantises.
        cover: Clip nothing, instead of the least squared error. Trained codes stay in any case.

    Returns:
        What the layer divides its output by, over what it divided by before.
    """
    bits = quantiser.bits
    cover = cover or quantiser.laid_open == "trained" or len(weights) > 1
    moved = _enlarge(layer, weights[0], bits) if isinstance(layer, WeightedLayer) else 1.0
    for weight in weights:
        peaks = (covering_peaks if cover else best_peaks)(weight, bits).clamp(min=SMALLEST_PEAK)
        latent = latent_weight(weight, peaks, bits)
        excess = weight - affine_image(latent, bits)
        # The rest is rounding.
        excess = torch.where(excess.abs() > 1e-5 * weight.abs().max(), excess, torch.zeros_like(excess))
        if len(weights) == 1 and bool(excess.any()):
            quantiser.excess = excess
        weight.copy_(latent)
    quantiser.factor = open_window(*weights)
    if isinstance(layer, WeightedLayer):
        layer.weight_factor = quantiser.factor
    quantiser.nearest, quantiser.absorbed, quantiser.laid_open = True, False, None
    return moved


def _enlarge(layer: WeightedLayer, weight: nn.Parameter, bits: int) -> float:
    """Make channels larger whose peak the quantiser cannot have, and take it out again behind the sum."""
    inner = inner_of(layer)
    peaks = covering_peaks(weight, bits)
    norm = norm_of(layer)
    if norm is not None:
        grown = (_ROOM / peaks.clamp(min=1e-30)).clamp(max=_MOST)
        ratios = torch.where(peaks < SMALLEST_PEAK, grown, torch.ones_like(peaks)).expand(weight.shape[0])
        if bool((ratios != 1).any()):
            weight.mul_(ratios.view(-1, *[1] * (weight.dim() - 1)))
            rescale_norm(norm, ratios, inner.bias)
            _silence(norm, peaks * ratios < SMALLEST_PEAK)
        return 1.0
    alive = peaks[peaks * 2.0 ** (bits + 1) >= peaks.max()]
    smallest = alive.min().item() if len(alive) else 0.0
    if smallest >= SMALLEST_PEAK or smallest * _MOST < SMALLEST_PEAK or not _scales(layer):
        return 1.0
    ratio = _ROOM / smallest
    weight.mul_(ratio)
    if inner.bias is not None:
        inner.bias.mul_(ratio)
    set_clip(layer, clip_of(layer) * ratio)
    return ratio


def _scales(layer: WeightedLayer) -> bool:
    """Whether a layer's output stays the same when its sum and its clip are multiplied by a number."""
    activations = (layer.activation_fn, layer.float_activation)
    plain = all(activation is None or isinstance(activation, HOMOGENEOUS) for activation in activations)
    return plain and layer.quantizes_output and not layer.offset and layer.ceiling == math.inf


def _silence(norm: batchNorm2d, dead: Tensor) -> None:
    """Give the dead channels the smallest gain, and the variance that makes up for it.

    Their weights have a code that is not zero; batch statistics would make it as loud as any other channel.
    """
    owner: Any = norm.batch_norm
    gain = norm.aweight(owner.weight)
    smallest = norm.aweight(torch.zeros_like(gain))
    variance = (owner.running_var + norm.eps) * (smallest / gain).square() - norm.eps
    owner.running_var.copy_(torch.where(dead, variance.clamp(min=0), owner.running_var))
    owner.weight.copy_(torch.where(dead, smallest, owner.weight))


@torch.no_grad()
def choice_of(name: str, quantiser: QuantizeWeight, weight: Tensor) -> ScaleChoice:
    """What calibration chose for a weight with the nearest codes."""
    shown, peak = held_weight(weight, quantiser), weight.abs().max().item()
    return ScaleChoice(
        name,
        "weight",
        shown.abs().max().item(),
        peak,
        2 ** (quantiser.bits - 1) / peak,
        sqnr(shown, quantiser.quantised(weight, quantiser.factor)),
        quantiser.factor,
        "nearest",
    )

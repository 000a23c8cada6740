"""How networks of Ingenic operators are fitted to data."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.calibration.calibrate import calibrate, restore
from chipfit.chips.ingenic.calibration.float_view import float_view, inner_of, norm_of, quantised_layers
from chipfit.chips.ingenic.calibration.units import gain_of
from chipfit.chips.ingenic.operators.activations import HOMOGENEOUS
from chipfit.chips.ingenic.operators.blocks import batchNorm2d
from chipfit.chips.ingenic.operators.bridges import ToFeature
from chipfit.chips.ingenic.operators.layer import WeightedLayer
from chipfit.fit.collect import first_tensor
from chipfit.fit.contract import Balance, BiasTarget, Equalising, Fitting, Looked, WeightWidth

_SMALLEST_GAIN = 0.01
"""The chips' batch norms have no smaller gain (spec/ingenic.md, section 1.4)."""


def _compared(model: nn.Module) -> dict[str, nn.Module]:
    ends = quantised_layers(model)
    names = {name or type(model).__name__: module for name, module in model.named_modules()}
    return {
        name: module
        for name, module in names.items()
        if name in ends or (isinstance(module, WeightedLayer) and module.quantize)
    }


def _bias_targets(model: nn.Module) -> dict[str, BiasTarget]:
    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, WeightedLayer) or not layer.quantize:
            continue
        norm, inner, name = norm_of(layer), inner_of(layer), name or type(model).__name__
        if norm is not None:
            found[name] = BiasTarget(norm, norm.batch_norm.bias, 1)
        elif isinstance(inner, nn.Module):
            bias = inner.bias
            dim = -1 if isinstance(inner, nn.Linear) else 1
            found[name] = BiasTarget(inner, bias if isinstance(bias, Tensor) else None, dim)
    return found


def _look(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Looked | None:
    """Normalised values: what was clipped lies at 1, of a signed feature also at -1."""
    quantiser = getattr(layer, "QuantizeFeature", None)
    bits = getattr(quantiser, "bits", 32)
    trouble = _trouble(layer, inputs)
    if bits >= 32:
        return Looked(trouble=trouble)
    y = first_tensor(output)
    signed = bool(getattr(quantiser, "signed", False))
    highest = 1 - 2.0 ** (1 - bits) if signed else 1.0
    dim = -1 if getattr(layer, "Linear", None) is not None else 1
    takes = inputs[0] if isinstance(layer, ToFeature) and not layer.signed else None
    return Looked(y, -highest if signed else None, highest - 1e-6, 1 << bits, dim, takes, trouble=trouble)


def _trouble(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[str, str] | None:
    """What these chips compute otherwise than torch."""
    if not isinstance(layer, WeightedLayer):
        return None
    if layer.device.family == "TXX":
        return "weight codes are rounded downward, which shifts means", "chipfit.correct_bias(model, loader), or train"
    signed = isinstance(inputs[0], tuple) and len(inputs[0]) == 3 and inputs[0][-1] < 0
    if layer.device.family == "T40F" and signed and (_pads(inner_of(layer)) or _padded(inputs[0][0])):
        return "the border of a signed feature is -1, not 0", "a ReLU before it, or train (QAT)"
    return None


def _pads(inner: Any) -> bool:
    """Whether a convolution puts a border around its input by itself."""
    same = getattr(inner, "same", False) and max(getattr(inner, "kernel_size", (1,))) > 1
    return bool(same or any(getattr(inner, "padding", (0,))))


def _padded(x: Tensor) -> bool:
    """Whether a normalised feature has a border of -1 already."""
    sides = (x[..., :1, :], x[..., -1:, :], x[..., :1], x[..., -1:]) if x.dim() == 4 else ()
    return any(bool((side == -1).all()) for side in sides)


def _widths(model: nn.Module) -> dict[str, WeightWidth]:
    return {
        name: WeightWidth(inner_of(layer), layer.weight_bitwidth if layer.quantize else 32)
        for name, layer in model.named_modules()
        if isinstance(layer, WeightedLayer) and isinstance(inner_of(layer), nn.Module)
    }


def _parts(module: nn.Module) -> Balance | None:
    """A layer with weights; its own batch norm takes its side of the numbers.

    On the T40 family a signed feature has the border -1 whatever the channel, so its channels stay as they are. So does
    a weight that is held for the nearest codes.
    """
    if not isinstance(module, WeightedLayer) or inner_of(module).QuantizeWeight.nearest:
        return None
    signed = module.clip_min_value < 0 or isinstance(module.activation_fn, (ops.LeakyReLU, ops.PReLU, ops.Linear))
    plain = module.activation_fn is None or isinstance(module.activation_fn, HOMOGENEOUS)
    fits = plain and not module.offset and module.ceiling == math.inf
    fits = fits and not (signed and module.device.family == "T40F")
    norm, takes = norm_of(module), not getattr(module, "is_focus", False)
    if norm is None:
        return Balance(inner_of(module), fits, takes)
    return Balance(inner_of(module), fits, takes, partial(gain_of, norm), partial(_divide, norm))


@torch.no_grad()
def _divide(norm: batchNorm2d, ratio: Tensor) -> Tensor:
    owner: Any = norm.batch_norm
    owner.weight.clamp_(min=_SMALLEST_GAIN)
    ratio = torch.minimum(ratio, owner.weight / _SMALLEST_GAIN)
    owner.weight /= ratio
    owner.bias /= ratio
    return ratio


def _flattens(module: nn.Module) -> bool:
    if isinstance(module, ops.AdaptiveAvgpool2D):
        return not module.keepdim
    return isinstance(module, ops.Flatten) and len(module.shape_list) == 2


FITTING = Fitting(
    calibrate=calibrate,
    float_view=float_view,
    compared=_compared,
    bias_targets=_bias_targets,
    look=_look,
    restore=restore,
    equalising=Equalising(_parts, pools=(ops.Maxpool2D, ops.Avgpool2D, ops.AdaptiveAvgpool2D), flattens=_flattens),
    widths=_widths,
)

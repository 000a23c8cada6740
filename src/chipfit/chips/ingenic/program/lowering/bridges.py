"""Lowering rules of what a converted network has between the chip's operators and torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.chips.ingenic.program.lowering.edges import Lowered, Maker, float32, read
from chipfit.chips.ingenic.program.lowering.functions import Function
from chipfit.chips.ingenic.program.lowering.parts import requantiser
from chipfit.chips.ingenic.program.ops import Finish, Norm


def to_feature(m: Maker, name: str, layer: ToFeature, inputs: Lowered) -> Lowered:
    """ToFeature: real numbers, or codes that went through torch as numbers, to codes."""
    to = requantiser(layer.QuantizeFeature)
    if isinstance(inputs, Function):
        return (inputs.table(m, name, to), *layer.tags)
    x, _ = read(inputs)
    y = m.add(name, Finish(x.grid, requantise=to.op), (x,), to.grid, to.limits, name)
    return (y, *layer.tags)


def to_tensor(m: Maker, name: str, layer: ToTensor, inputs: Lowered) -> Lowered:
    """ToTensor: codes to the real numbers that they stand for, times a factor a channel."""
    x, _ = read(inputs)
    none = m.builder.keep(f"{name}.none", torch.zeros(1))
    scale = float32(layer.scale)
    y = m.add(name, Finish(x.grid, norm=Norm(none, m.builder.keep(f"{name}.scale", scale), none)), (x,), layer=name)
    return replace(y, left=(x, scale)) if x.grid is not None else y


def pad_feature(m: Maker, name: str, layer: PadFeature, inputs: Lowered) -> Lowered:
    """PadFeature."""
    prepared = isinstance(inputs, (tuple, list)) and len(inputs) == 5
    x, feature = read(inputs, first_layer=prepared)
    code = round(layer.border(feature, prepared) * (x.grid.n if x.grid is not None else 1.0))
    y = m.padded(name, x, layer.pads, code)
    return (y, *inputs[1:]) if prepared or feature.tagged else y


LAYERS: dict[type[nn.Module], Callable[..., Lowered]] = {
    ToFeature: to_feature,
    ToTensor: to_tensor,
    PadFeature: pad_feature,
}
"""Rules by class of layer."""

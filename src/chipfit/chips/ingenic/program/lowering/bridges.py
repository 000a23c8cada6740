"""Lowering rules of what a converted network has between the chip's operators and torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.chips.ingenic.program.lowering.edges import Lowered, add, border_code, coded, float32, padded, read
from chipfit.chips.ingenic.program.lowering.functions import Function
from chipfit.chips.ingenic.program.lowering.parts import requantiser
from chipfit.chips.ingenic.program.ops import Finish, Norm
from chipfit.program.lowering.builder import Builder, Call


def to_feature(b: Builder, call: Call, layer: ToFeature, inputs: Lowered) -> Lowered:
    """ToFeature: real numbers, or codes that went through torch as numbers, to codes."""
    to = requantiser(layer.QuantizeFeature)
    norm = _normalisation(b, call.name, layer)
    if isinstance(inputs, Function):
        return (inputs.table(b, call, to), *_tags(layer))
    x, _ = read(inputs)
    op = Finish(x.grid, norm=norm, requantise=to.op)
    return (add(b, call.name, op, (x,), to.grid, to.limits, call.layer), *_tags(layer))


def _normalisation(b: Builder, name: str, layer: ToFeature) -> Norm | None:
    """What an input is multiplied by and what is added, where the layer does so."""
    if layer.gain is None or layer.bias is None:
        return None
    none = b.keep(f"{name}.none", torch.zeros(1))
    return Norm(none, b.keep(f"{name}.gain", float32(layer.gain)), b.keep(f"{name}.shift", float32(layer.bias)))


def _tags(layer: ToFeature) -> tuple[Any, ...]:
    """What the layer says of the tensor that it gives; of an image, its mean and divisor too."""
    if layer.image:
        return (8, 128.0, 128.0, -1.0) if layer.signed else (8, 0.0, 255.0, 0.0)
    return layer.output_bitwidth, -1.0 if layer.signed else 0.0


def to_tensor(b: Builder, call: Call, layer: ToTensor, inputs: Lowered) -> Lowered:
    """ToTensor: codes to the real numbers that they stand for, times a factor a channel."""
    x, given = read(inputs)
    x = coded(x, given, layer.device)
    none = b.keep(f"{call.name}.none", torch.zeros(1))
    scale = float32(layer.scale)
    norm = Norm(none, b.keep(f"{call.name}.scale", scale), none)
    y = add(b, call.name, Finish(x.grid, norm=norm), (x,), layer=call.layer)
    return replace(y, origin=(x, torch.from_numpy(scale))) if x.grid is not None else y


def pad_feature(b: Builder, call: Call, layer: PadFeature, inputs: Lowered) -> Lowered:
    """PadFeature."""
    prepared = isinstance(inputs, (tuple, list)) and len(inputs) == 5
    x, given = read(inputs, first_layer=prepared)
    if layer.fill == "zero":
        code = border_code(x, given, layer.device, prepared)
    else:  # what loses against every value
        code = -round(x.grid.n if x.grid is not None else 1.0) if given.signed else 0
    y = padded(b, call.name, x, layer.pads, code)
    return (y, *inputs[1:]) if prepared else given.around(y)


LAYERS: dict[type[nn.Module], Callable[..., Lowered]] = {
    ToFeature: to_feature,
    ToTensor: to_tensor,
    PadFeature: pad_feature,
}
"""Rules by class of layer."""

"""How activations are written: by name inside a fused node, as standard nodes elsewhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph
from chipfit.chips.ingenic.magik.rules import HSIGMOID_OFFSET
from chipfit.errors import UnsupportedError


class Fused(NamedTuple):
    """An activation inside a node.

    Args:
        name: `activate_name`.
        leaky: `with_negtive_alpha`.
        alpha: Constant with the slope of each channel below zero: 1 for Linear, 0 where negative values are cut.
    """

    name: str
    leaky: bool
    alpha: str


def is_hswish(module: nn.Module | None) -> bool:
    """Whether a layer keeps an Hswish, which no node has a name for."""
    return isinstance(module, chips.Hswish)


def _slopes(module: nn.Module) -> Tensor | float | None:
    """Slopes below zero of a leaky activation; None for another."""
    if isinstance(module, (chips.LeakyReLU, nn.LeakyReLU)):
        return float((module.leaky if isinstance(module, chips.LeakyReLU) else module).negative_slope)
    if isinstance(module, (chips.PReLU, nn.PReLU)):
        return (module.prelu if isinstance(module, chips.PReLU) else module).weight.detach()
    return None


def _prelu_name(path: str, module: nn.Module) -> str:
    """Name of a PReLU's slopes: that in `state_dict`."""
    return f"{path}.activation_fn.{'prelu.' if isinstance(module, chips.PReLU) else ''}weight"


def fused_activation(g: MagikGraph, path: str, layer: Any, channels: int, signed: bool) -> Fused:
    """The activation of a quantised layer.

    Raises:
        UnsupportedError: a node has no name for it.
    """
    module, offset = layer.activation_fn, layer.offset
    if offset:
        if offset != HSIGMOID_OFFSET:
            raise UnsupportedError(
                "the node has no field for the offset of Hsigmoid", given=offset, allowed=str(HSIGMOID_OFFSET)
            )
        return Fused("Hsigmoid", False, g.filled(0.0, channels))
    if module is None:
        return (
            Fused("Linear", False, g.filled(1.0, channels))
            if signed
            else Fused("ReluX", False, g.filled(0.0, channels))
        )
    slopes = _slopes(module)
    if slopes is None:
        raise UnsupportedError(
            "the activation has no name in the file",
            given=type(module).__name__,
            allowed="ReLU, ReLU6, Linear, LeakyReLU, PReLU, Hsigmoid, Hswish",
        )
    if isinstance(slopes, float):
        g.exact(path, "negative_slope", slopes)
        return Fused("LeakyRelu", True, g.constant(f"{path}/negative_alpha", torch.full((channels,), slopes)))
    if slopes.numel() == 1 and channels > 1:
        g.layers.setdefault(path, {})["shared_slope"] = _prelu_name(path, module)
        return Fused("PRelu", True, g.constant(f"{path}/negative_alpha", slopes.expand(channels)))
    return Fused("PRelu", True, g.constant(_prelu_name(path, module), slopes))


def add_activation(g: MagikGraph, path: str, unit: str, module: nn.Module | None, x: Edge) -> Edge:
    """Add an activation as nodes of its own; its values are not needed, so the sample stays.

    Raises:
        UnsupportedError: the chips do not have it.
    """
    name = f"{unit}/activation"
    if module is None or isinstance(module, (chips.Linear, nn.Identity)):
        return x
    if isinstance(module, (chips.ReLU6, nn.ReLU6)):
        return g.add("Clip", name, x, sample=x.sample, min=0.0, max=6.0)
    if isinstance(module, nn.Hardtanh):
        return g.add("Clip", name, x, sample=x.sample, min=float(module.min_val), max=float(module.max_val))
    if isinstance(module, (chips.ReLU, nn.ReLU)):
        return g.add("Relu", name, x, sample=x.sample)
    if isinstance(module, (nn.Sigmoid, nn.Tanh)):
        return g.add(type(module).__name__, name, x, sample=x.sample)
    if isinstance(module, (chips.Hsigmoid, chips.Hswish)):
        return _gated(g, unit, module, x)
    slopes = _slopes(module)
    if isinstance(slopes, float):
        g.exact(path, "negative_slope", slopes)
        return g.add("LeakyRelu", name, x, sample=x.sample, alpha=slopes)
    if slopes is not None:
        shaped = slopes.reshape(-1, *[1] * (x.sample.dim() - 2))
        constant = g.constant(_prelu_name(path, module), shaped)
        x = g.marker(f"{unit}/prelu_start", "prelu_start", {"in_channels": slopes.numel()}, x)
        x = g.add("PRelu", name, x, constant, sample=x.sample)
        return g.marker(f"{unit}/prelu_end", "prelu_end", {"in_channels": slopes.numel()}, x)
    raise UnsupportedError(
        "the activation has no nodes in the file",
        given=type(module).__name__,
        hint="Apply it behind the last layer, outside the network.",
    )


def check_activations(g: MagikGraph, layer: nn.Module) -> None:
    """The channels of a layer's activations that count them, those that a quantiser stands for included.

    Raises:
        UnsupportedError: they are no multiple of what the target needs; fewer than 4 are those of an image.
    """
    for part in layer.modules():
        for module in (part, getattr(part, "float_activation", None)):
            channels = getattr(module, "in_channels", 0)  # of what an old file was unpickled from, not known
            if isinstance(module, (chips.PReLU, chips.Hsigmoid, chips.Hswish)) and channels >= 4:
                g.fits(channels, f"channels of {type(module).__name__}")


def _gated(g: MagikGraph, unit: str, module: Any, x: Edge) -> Edge:
    """Hsigmoid, `clip(x + offset, 0, limit) / limit`, and Hswish, which multiplies x by it."""
    gate, whole = (module.sigmoid, True) if isinstance(module, chips.Hswish) else (module, False)
    attr = {"offset_value": gate.offset_value, "clip_max_value": gate.clip_max_value}
    start, sample = x, x.sample
    if whole:
        start = x = g.marker(f"{unit}/hswish_start", "hswish_start", attr, x)
    x = g.marker(f"{unit}/hsigmoid_start", "hsigmoid_start", attr, x)
    offset = g.constant(f"{unit}/offset", [gate.offset_value])
    limit = g.constant(f"{unit}/limit", [gate.clip_max_value])
    g.exact(unit, "offset_value", gate.offset_value)
    g.exact(unit, "gate_clip", gate.clip_max_value)
    x = g.add("Add", f"{unit}/gate_add", x, offset, sample=sample)
    x = g.add("Clip", f"{unit}/gate_clip", x, sample=sample, min=0.0, max=gate.clip_max_value)
    x = g.add("Div", f"{unit}/gate_div", x, limit, sample=sample)
    x = g.marker(f"{unit}/hsigmoid_end", "hsigmoid_end", attr, x)
    if not whole:
        return x
    x = g.add("Mul", f"{unit}/gate_mul", start, x, sample=sample)
    return g.marker(f"{unit}/hswish_end", "hswish_end", attr, x)

"""What the conversion rules of the Ingenic targets share: activations, limits, identity layers, images of any rank."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chipfit.chips.ingenic.devices import DEVICES, T40F, TXX, Device
from chipfit.chips.ingenic.operators.activations import Hsigmoid, Hswish, LeakyReLU, Linear, PReLU
from chipfit.chips.ingenic.operators.convolution_variants import DepthwiseConv2D
from chipfit.chips.ingenic.operators.layer import WeightedLayer
from chipfit.chips.ingenic.operators.movement import Flatten
from chipfit.convert.words import FeatureOut, Mapped, Operation, Shape, on_cpu
from chipfit.hardware import Chip

SIGNED_ACTIVATIONS = ("leaky_relu", "prelu", "hardswish")
"""Activations after which a feature has negative codes."""
Limits = list[tuple[str, str]]
"""Limits of the chip that an operation breaks, each with what to do about it."""


def device_of(chip: Chip) -> Device:
    """The target of a chip."""
    return next(device for device in DEVICES.values() if device.name.lower() == chip.name)


def relaxed(device: Device) -> Any:
    """A target that takes any number of channels: the conversion lists what does not fit, and goes on."""
    return replace(device, channel_multiple=1)


def npu(operator: str, limits: Limits, build: Callable[[], nn.Module] | None = None, **feature: Any) -> Mapped:
    """An operation that the chip computes.

    Args:
        operator: The chip's operator.
        limits: What it breaks.
        build: Makes its module.
        **feature: Fields of `FeatureOut`.
    """
    problems, suggestions = [limit for limit, _ in limits], [advice for _, advice in limits if advice]
    return Mapped(operator, "npu", build, "", tuple(problems), tuple(suggestions), feature=FeatureOut(**feature))


def channel_limits(count: int, device: Device, which: str = "input ", exempt: tuple[int, ...] = ()) -> Limits:
    """The limit of a channel count."""
    multiple = device.channel_multiple
    if count % multiple == 0 or count in exempt:
        return []
    padded = -(-count // multiple) * multiple
    return [(f"{count} {which}channels, multiples of {multiple}", f"Pad the {count} {which}channels to {padded}.")]


def ends_of(operation: Operation) -> tuple[Any, Any]:
    """Lower and upper end of a clamp; None for none."""
    options = operation.options
    return options.get("min", options.get("min_val")), options.get("max", options.get("max_val"))


def is_absorbed(activation: Operation, device: Device) -> bool:
    """Whether the chip has an activation inside the operator before it.

    Args:
        activation: The activation.
        device: The target.
    """
    kind = activation.kind
    if kind in ("clamp", "hardtanh"):
        low, high = ends_of(activation)
        return low == 0 and (high is None or (isinstance(high, (int, float)) and high > 0))
    if kind in ("relu", "relu6"):
        return True
    if device.family == "T02" or kind not in (*SIGNED_ACTIVATIONS, "hardsigmoid"):
        return False
    # The slopes of a function are computed, or nobody's own.
    return kind != "prelu" or isinstance(activation.module, nn.PReLU)


def ceiling_of(activation: Operation) -> float | None:
    """What an activation like ReLU6 cuts at; None for no end."""
    if activation.kind == "relu6":
        return 6
    high = ends_of(activation)[1] if activation.kind in ("clamp", "hardtanh") else None
    return None if high is None else float(high)


def bound(layer: WeightedLayer, operation: Operation) -> None:
    """Tell a layer of an activation that cuts elsewhere than ReLU6: its clip can be there, as well as anywhere."""
    top = None if operation.activation is None else ceiling_of(operation.activation)
    if top is not None and top != 6 and not operation.last:
        layer.ceiling = top
        object.__setattr__(layer, "float_activation", nn.Hardtanh(0.0, top))


def activation_of(operation: Operation, channels: int, device: Device) -> nn.Module | None:
    """The module to give as `activation_fn`; without an activation the output is signed."""
    target: Any = relaxed(device)
    absorbed = operation.activation
    if absorbed is None:
        # Only the name of the activation counts, and T02 has the others' clip of both signs.
        return None if operation.last else Linear(device.name if device.name in TXX + T40F else "Txx")
    top = ceiling_of(absorbed)
    if operation.last and top is not None and top != 6:
        return nn.Hardtanh(0.0, top)
    if absorbed.kind in ("relu", "relu6", "clamp", "hardtanh"):
        return nn.ReLU6() if top == 6 else nn.ReLU()
    if absorbed.kind == "leaky_relu":
        return LeakyReLU(absorbed.options.get("negative_slope", 0.01), target)
    if absorbed.kind == "prelu":
        learned = PReLU(channels, target)
        learned.prelu = absorbed.module  # type: ignore[assignment]  # is_absorbed lets nn.PReLU alone through
        return learned
    return Hsigmoid(channels, target_device=target) if absorbed.kind == "hardsigmoid" else Hswish(channels, target)


def is_signed(operation: Operation) -> bool:
    """Whether an operator with weights gives negative codes."""
    return operation.activation is None or operation.activation.kind in SIGNED_ACTIVATIONS


def widths(operation: Operation) -> dict[str, Any]:
    """Arguments of a quantised layer with weights."""
    return {
        "quantize": True,
        "weight_bitwidth": operation.weight_bits,
        "input_bitwidth": operation.bits,
        "output_bitwidth": 32 if operation.last else operation.bits,
        "last_layer": operation.last,
        "auto_bitwidth": False,
        "pre_lstm_layer": "lstm" in operation.readers,
    }


def as_image(layer: nn.Module, before: Shape, after: Shape, device: Device) -> nn.Module:
    """A layer on images for features of any rank from 2 on.

    Args:
        layer: The layer.
        before: Shape of its input on the example.
        after: Shape of its output.
        device: The target.
    """
    if len(before) == 4:
        return layer
    image = [-1, before[1], 1, math.prod(before[2:])]
    return nn.Sequential(Flatten(image, device.name), layer, Flatten([-1, *after[1:]], device.name))


def named(**parts: nn.Module | None) -> nn.Module:
    """The parts that are there, one after the other; a single one as it is."""
    there = OrderedDict((name, part) for name, part in parts.items() if part is not None)
    return next(iter(there.values())) if len(there) == 1 else nn.Sequential(there)


def per_channel(
    operation: Operation, device: Device, gain: torch.Tensor | float = 1.0, bias: torch.Tensor | float | None = None
) -> Mapped:
    """A 1x1 depthwise convolution, which multiplies and adds a channel at a time, activates and quantises anew.

    Args:
        operation: The operation that it stands for; its `activation` is taken in.
        device: The target.
        gain: Factor, one or one a channel.
        bias: Summand, likewise; None for none.
    """
    if device.family == "T02":
        return on_cpu("T02 has no depthwise convolution", "Give the activation to a convolution.")
    shape = operation.shape
    if len(shape) < 2:
        return on_cpu("a feature has a batch and channels")
    limits = channel_limits(shape[1], device, "")
    plain = operation.activation is None and not isinstance(gain, torch.Tensor) and not isinstance(bias, torch.Tensor)
    if plain and all(operation.nonnegative) and gain >= 0 and (bias or 0) >= 0:
        operation = replace(operation, activation=replace(operation, kind="relu"))  # no codes for negative values

    def build() -> nn.Module:
        layer = _depthwise(shape[1], operation, device, bias is not None)
        bound(layer, operation)
        layer.Conv2d.QuantizeWeight.converted = True
        with torch.no_grad():
            layer.Conv2d.weight.copy_(torch.as_tensor(gain, dtype=torch.float32).expand(shape[1]).view(-1, 1, 1, 1))
            if bias is not None and layer.Conv2d.bias is not None:
                layer.Conv2d.bias.copy_(torch.as_tensor(bias, dtype=torch.float32).expand(shape[1]))
        if not isinstance(gain, torch.Tensor):
            layer.Conv2d.weight.requires_grad_(False)  # a number of the user's forward, not a parameter
            if layer.Conv2d.bias is not None:
                layer.Conv2d.bias.requires_grad_(False)
        return as_image(layer, shape, shape, device)

    return npu("DepthwiseConv2D", limits, build, signed=is_signed(operation))


def _depthwise(channels: int, operation: Operation, device: Device, bias: bool) -> DepthwiseConv2D:
    return DepthwiseConv2D(
        channels,
        kernel_h=1,
        kernel_w=1,
        activation_fn=activation_of(operation, channels, device),
        enable_bias=bias,
        target_device=relaxed(device),
        **(widths(operation) | {"weight_bitwidth": 8}),
    )

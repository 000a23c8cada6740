"""Conversion rules of the Ingenic targets for what has weights: convolutions, linear layers, batch norm."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chipfit.chips.ingenic.bitwidths import CONV_BOUND, LINEAR_BOUND
from chipfit.chips.ingenic.conversion.parts import (
    Limits,
    activation_of,
    bound,
    channel_limits,
    is_signed,
    named,
    npu,
    per_channel,
    relaxed,
    widths,
)
from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.operators.bridges import PadFeature
from chipfit.chips.ingenic.operators.convolution import Conv2D
from chipfit.chips.ingenic.operators.convolution_variants import Conv1D, DepthwiseConv2D
from chipfit.chips.ingenic.operators.linear import FullConnected
from chipfit.chips.ingenic.operators.pooling import Unpool2D
from chipfit.convert.words import Mapped, Operation, on_cpu

_SMALLEST_GAIN = 0.01


def conv(operation: Operation, device: Device) -> Mapped:
    """Conv1d and Conv2d, of any groups."""
    old: Any = operation.module
    inputs, outputs, groups = old.in_channels, old.out_channels, old.groups
    depthwise = groups == inputs and groups > 1 and outputs == inputs and isinstance(old, nn.Conv2d)
    flat = isinstance(old, nn.Conv1d)
    if old.padding_mode != "zeros":
        return on_cpu(f"borders of mode {old.padding_mode}", "Use padding_mode='zeros'.")
    if device.family == "T02" and (depthwise or flat):
        return on_cpu(f"T02 has no {'depthwise convolution' if depthwise else 'Conv1D'}", "Use Conv2d with groups=1.")
    if len(set(old.dilation)) > 1:
        return on_cpu("dilation that differs by direction", "Use one dilation.")
    if device.family == "TXX" and old.dilation[0] != 1:
        return on_cpu(f"dilation {tuple(old.dilation)}, only 1", "Use a larger kernel or stride.")
    limits = channel_limits(inputs, device, exempt=() if depthwise else (1, 2, 3, 12))
    if groups > 1 and not depthwise and device.family == "T40F" and (inputs // groups % 32 or outputs // groups % 32):
        advice = "Use groups=1 or depthwise."
        limits.append((f"{groups} groups of {inputs // groups} channels, multiples of 32", advice))
    border, pads = _border(operation, device)
    if device.family == "T02" and (border != 1 or tuple(old.kernel_size) != (3, 3)):
        reason = f"T02 pads 3x3 kernels by 1, not {tuple(old.kernel_size)} by {old.padding}"
        size = max(old.kernel_size)
        return on_cpu(reason, f"Use {max(1, (size - 1) // 2)} 3x3 kernel(s) in a row, with padding=1.")
    if device.family == "T40F" and not operation.first and not operation.nonnegative[0] and (border or any(pads)):
        limits.append(("signed codes have no zero: the border is -1", "Put a ReLU before it, or fine-tune."))
    kernel = math.prod(old.kernel_size)
    terms, largest = (kernel, LINEAR_BOUND) if depthwise else (kernel * inputs, CONV_BOUND)
    bits = _weight_bits(operation, terms, largest, device, limits)

    def build() -> nn.Module:
        common = {
            "activation_fn": activation_of(operation, outputs, device),
            "enable_batch_norm": operation.norm is not None,
            "target_device": relaxed(device),
            **(widths(operation) | bits),
        }
        if flat:
            layer: Any = Conv1D(
                *(inputs, outputs, old.kernel_size[0], old.stride[0]),
                padding=border if isinstance(border, int) else border[0],
                dilation=old.dilation[0],
                groups=groups,
                bias=old.bias is not None,
                first_layer=operation.first,
                **common,
            )
        else:
            shared = {"stride": tuple(old.stride), "kernel_h": old.kernel_size[0], "kernel_w": old.kernel_size[1]}
            shared |= {"enable_bias": old.bias is not None, "padding": border, "dilation": old.dilation[0], **common}
            if depthwise:
                layer = DepthwiseConv2D(inputs, **shared)
            else:
                shared |= {"first_layer": operation.first, "is_focus": bool(operation.options.get("focus"))}
                layer = Conv2D(inputs, outputs, groups=groups, **shared)
        weighted = layer.convd if flat else layer
        bound(weighted, operation)
        take(weighted.Conv2d, weighted.BatchNorm2d, operation, old.weight.unsqueeze(2) if flat else old.weight)
        border_layer = PadFeature(pads, target_device=device.name) if pads else None
        return named(pad=border_layer, conv=layer)

    operator = "Conv1D" if flat else "DepthwiseConv2D" if depthwise else "Conv2D"
    begins = not depthwise and device.family != "T02"  # T02 has no Preprocess
    mapped = npu(f"Pad, {operator}" if pads else operator, limits, build, signed=is_signed(operation), begins=begins)
    if limits and max(old.kernel_size) >= 7 and not depthwise:  # it runs, but where something has to change anyway
        advice = (
            f"Kernel {max(old.kernel_size)}: {(max(old.kernel_size) - 1) // 2} kernels of 3x3 in a row reach as far."
        )
        mapped = replace(mapped, suggestions=(*mapped.suggestions, advice))
    return mapped


def take(inner: Any, block: Any, operation: Operation, weight: torch.Tensor) -> None:
    """Give a layer the user's own parameters, and the batch norm that it keeps."""
    old: Any = operation.module
    inner.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight.detach().clone())
    inner.weight.requires_grad_(old.weight.requires_grad)
    inner.bias = old.bias
    inner.QuantizeWeight.converted = True
    if operation.norm is not None:
        block.take(operation.norm)


def _weight_bits(operation: Operation, terms: int, largest: int, device: Device, limits: Limits) -> dict[str, int]:
    """Width of the weights; below 8 bits, Txx, Xs1 and Xs2 bound the sums (spec/ingenic.md, section 3.2)."""
    if device.family != "TXX" or operation.weight_bits >= 8 or operation.first or operation.last:
        return {}
    if terms * 2**operation.bits * 2 ** (operation.weight_bits - 1) <= largest:
        return {}
    wide = f"sums of {terms} products of {operation.bits} and {operation.weight_bits} bits"
    limits.append((wide, "Its weight stays at 8 bits; use fewer input channels."))
    return {"weight_bitwidth": 8}


def _border(operation: Operation, device: Device) -> tuple[int | tuple[int, ...], tuple[int, ...]]:
    """What to give the layer as its padding, and what a border of its own has to add.

    The chip leaves ceil(size / stride) outputs, half of the border before the first pixel (section 1.5); with a
    dilation, and on T02, it is the border itself.
    """
    old: Any = operation.module
    dilation = old.dilation[0]
    if old.padding == "valid":
        sides = [(0, 0)] * len(old.kernel_size)
    elif old.padding == "same":
        totals = [dilation * (kernel - 1) for kernel in old.kernel_size]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(before, before) for before in old.padding]
    flat = tuple(side for pair in reversed(sides) for side in pair)
    if not any(flat):
        return 0, ()
    if device.family == "T02":
        return (1, ()) if set(flat) == {1} else (0, flat)
    if dilation != 1:
        even = all(before == after for before, after in sides)
        return (tuple(before for before, _ in sides), ()) if even else (0, flat)
    for size, kernel, step, (before, after) in zip(
        operation.shape[2:], old.kernel_size, old.stride, sides, strict=True
    ):
        total = (-(-size // step) - 1) * step + kernel - size
        outputs = (size + before + after - kernel) // step + 1
        if outputs != -(-size // step) or before != total // 2:
            return 0, flat
    return 1, ()


def linear(operation: Operation, device: Device) -> Mapped:
    """Linear, of any rank."""
    old: Any = operation.module
    limits = channel_limits(old.in_features, device)
    if len(operation.shape) < 2:
        return on_cpu("a feature has a batch and channels", "Give it a batch.")
    bits = _weight_bits(operation, old.in_features, LINEAR_BOUND, device, limits)

    def build() -> nn.Module:
        layer = FullConnected(
            old.in_features,
            old.out_features,
            activation_fn=activation_of(operation, old.out_features, device),
            first_layer=operation.first,
            enable_batch_norm=operation.norm is not None,
            enable_bias=old.bias is not None,
            data_format="NHWC" if len(operation.shape) > 2 else "NCHW",
            target_device=relaxed(device),
            **(widths(operation) | bits),
        )
        bound(layer, operation)
        take(layer.Linear, layer.BatchNorm1d, operation, old.weight)
        return layer

    return npu("FullConnected", limits, build, signed=is_signed(operation), begins=device.family != "T02")


def conv_transpose(operation: Operation, device: Device) -> Mapped:
    """ConvTranspose2d: zeros between the pixels, a border, and a convolution with the kernel turned round."""
    old: Any = operation.module
    if device.family == "T02":
        return on_cpu("T02 has neither the borders nor the kernels that it takes", "Use Upsample and a 3x3 Conv2d.")
    if device.family == "TXX" and any(step != 1 for step in old.dilation):
        return on_cpu(f"dilation {tuple(old.dilation)}, only 1", "Use Upsample and a 3x3 Conv2d.")
    if len(set(old.dilation)) > 1:
        return on_cpu("dilation that differs by direction", "Use one dilation.")
    limits = channel_limits(old.in_channels, device)
    if not operation.nonnegative[0] and device.family == "T40F" and any(step > 1 for step in old.stride):
        limits.append(("signed codes have no zero to put between the pixels, -1 stands there", "Put a ReLU before it."))
    bits = _weight_bits(operation, math.prod(old.kernel_size) * old.in_channels, CONV_BOUND, device, limits)
    sizes = zip(old.kernel_size, old.stride, old.padding, old.output_padding, old.dilation, strict=True)
    pads: list[int] = []
    for kernel, step, padding, extra, dilation in sizes:
        before = dilation * (kernel - 1) - padding
        pads = [before, before + extra - (step - 1), *pads]

    def build() -> nn.Module:
        layer = Conv2D(
            *(old.in_channels, old.out_channels),
            kernel_h=old.kernel_size[0],
            kernel_w=old.kernel_size[1],
            activation_fn=activation_of(operation, old.out_channels, device),
            enable_bias=old.bias is not None,
            groups=old.groups,
            dilation=old.dilation[0],
            target_device=relaxed(device),
            **(widths(operation) | bits),
        )
        bound(layer, operation)
        grouped = old.weight.detach().unflatten(0, (old.groups, -1)).transpose(1, 2)  # (g, out / g, in / g, ...)
        take(layer.Conv2d, None, operation, grouped.flatten(0, 1).flip(-2, -1))
        high, wide = old.stride
        spread = high > 1 or wide > 1
        unpool = Unpool2D(high, wide, "zero", quantize=True, target_device=device.name) if spread else None
        pad = PadFeature(tuple(pads), target_device=device.name) if any(pads) else None
        return named(unpool=unpool, pad=pad, conv=layer)

    return npu("Unpool2D, Pad, Conv2D", limits, build, signed=is_signed(operation))


def batch_norm(operation: Operation, device: Device) -> Mapped:
    """A batch norm on its own: a depthwise 1x1 convolution, since the chip's BatchNorm has no gain below 0.01."""
    old: Any = operation.module
    if old.running_mean is None:
        return on_cpu("a batch norm without running statistics", "Set track_running_stats=True.")
    gain = torch.ones_like(old.running_var) if old.weight is None else old.weight.detach()
    factor = gain.double() / torch.sqrt(old.running_var.double() + old.eps)
    bias = -old.running_mean.double() * factor
    if old.bias is not None:
        bias = bias + old.bias.detach().double()
    return per_channel(operation, device, factor.float(), bias.float())


def keeps_norm(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether the chip's operator can have a batch norm behind its sum: the gain has to be 0.01 or more.

    A negative gain becomes positive, by turning the sign of the channel's weights, bias and mean.

    Args:
        layer: The layer before it; its channels may change sign.
        norm: The batch norm; likewise.
    """
    weighted: Any = layer
    batch: Any = norm
    if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)) or batch.weight is None or batch.momentum is None:
        return False
    if bool((batch.weight.abs() < _SMALLEST_GAIN).any()):
        return False
    with torch.no_grad():
        sign = torch.where(batch.weight < 0, -1.0, 1.0).to(batch.weight)
        weighted.weight *= sign.view(-1, *[1] * (weighted.weight.dim() - 1))
        if weighted.bias is not None:
            weighted.bias *= sign
        batch.running_mean *= sign
        batch.weight *= sign
    return True


RULES: dict[str, Callable[[Operation, Device], Mapped]] = {
    **dict.fromkeys(("conv1d", "conv2d"), conv),
    "conv_transpose2d": conv_transpose,
    "linear": linear,
    "batch_norm": batch_norm,
}
"""Rules by kind of operation."""

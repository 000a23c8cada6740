"""Lowering rules of the Ingenic layers with weights or normalisation.

Each rule takes the builder, the call, the layer, and its lowered input, and gives its lowered output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from chipfit.arithmetic.bounds import FLOAT32_EXACT, accumulator_bound
from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.program.lowering import bridges, moves
from chipfit.chips.ingenic.program.lowering.edges import (
    Description,
    Lowered,
    add,
    border_code,
    codes,
    float32,
    padded,
    read,
    same_pads,
)
from chipfit.chips.ingenic.program.lowering.parts import REAL, activation_of, norm_of, requantiser, target
from chipfit.chips.ingenic.program.lowering.weights import weight_codes
from chipfit.chips.ingenic.program.ops import Activation, Affine, Combine, Finish
from chipfit.errors import UnsupportedError
from chipfit.program.core.ops import Accumulate
from chipfit.program.lowering.builder import Builder, Call, Value


def _weighted(
    b: Builder,
    call: Call,
    layer: Any,
    inner: Any,
    norm: Any,
    x: Value,
    feature: Description,
    geometry: Callable[..., Any],
) -> Lowered:
    """A layer with weights; `geometry` pads the codes and says what sum is taken."""
    if not layer.quantize or layer.weight_bitwidth >= 32:
        raise UnsupportedError(
            "the layer is not quantised", given=f"weight_bitwidth={layer.weight_bitwidth}", allowed="2 to 8 bits"
        )
    name = call.name
    q = codes(b, name, x, feature, layer.device)
    n = q.grid.n if q.grid is not None else 1.0
    settings = inner.QuantizeWeight
    found, scale = weight_codes(
        float32(inner.weight), settings.bits, settings.factor, settings.target_device, settings.sequential
    )
    q, weight, op = geometry(q, torch.from_numpy(found))
    op = replace(op, weight_tensor=b.keep(f"{name}.weight", weight), largest=q.largest)
    bound = accumulator_bound(weight, q.largest).largest
    total = add(b, f"{name}.sum", op, (q,), None, (-bound, bound), exact=bound <= FLOAT32_EXACT)
    bias = None if inner.bias is None else b.keep(f"{name}.bias", float32(inner.bias))
    factor = b.keep(f"{name}.scale", scale / np.float32(n))
    axis = -1 if op.kind == "linear" else 1
    activation = activation_of(b, name, layer.activation_fn, layer.offset)
    slopes = b.tensors[activation.slope_tensor].numel() if activation.slope_tensor else 1
    if axis == -1 and len(total.shape) > 2 and slopes > 1:
        raise UnsupportedError("PReLU on a sequence has its slopes along time, not along the channels")
    to = requantiser(layer.QuantizeFeature)
    finish = Finish(None, Affine(factor, bias), norm_of(b, name, norm), activation, to.op, axis)
    y = add(b, name, finish, (total,), to.grid, to.limits, call.layer)
    return y if layer.last_layer else (y, layer.output_bitwidth, layer.clip_min_value)


def _convolved(b: Builder, call: Call, layer: Any, x: Value, feature: Description, first_layer: bool) -> Lowered:
    conv = layer.Conv2d
    flat = len(x.shape) == 3

    def geometry(q: Value, weight: Tensor) -> tuple[Value, Tensor, Accumulate]:
        pads: tuple[int, ...] = (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0])
        if conv.same:
            pads = same_pads((1, q.shape[2]) if flat else q.shape[2:], conv.kernel_size, conv.stride)
        stride, dilation = tuple(conv.stride), tuple(conv.dilation)
        if flat:
            if any(pads[2:]) or conv.kernel_size[0] != 1:
                raise UnsupportedError("a convolution over a sequence that pads or sums across it")
            pads, stride, dilation, weight = pads[:2], stride[1:], dilation[1:], weight.squeeze(2)
        q = padded(b, call.name, q, pads, border_code(q, feature, layer.device, first_layer))
        return q, weight, Accumulate("conv", "", 0, stride, dilation, conv.groups)

    return _weighted(b, call, layer, conv, layer.BatchNorm2d, x, feature, geometry)


def conv2d(b: Builder, call: Call, layer: chips.Conv2D, inputs: Lowered) -> Lowered:
    """Conv2D."""
    x, feature = read(inputs, layer.input_bitwidth, layer.first_layer)
    if layer.is_focus:
        x = moves.focused(b, call.inner("focus"), x)
    return _convolved(b, call, layer, x, feature, layer.first_layer)


def depthwise(b: Builder, call: Call, layer: chips.DepthwiseConv2D, inputs: Lowered) -> Lowered:
    """DepthwiseConv2D."""
    x, feature = read(inputs, layer.input_bitwidth)
    return _convolved(b, call, layer, x, feature, False)


def conv_transpose(b: Builder, call: Call, layer: chips.ConvTranspose2D, inputs: Lowered) -> Lowered:
    """ConvTranspose2D: its parts one after the other."""
    x = moves.unpool(b, call.inner("Unpool2D"), layer.Unpool2D, inputs)
    if layer.DepthwiseConv2D is not None:
        x = depthwise(b, call.inner("DepthwiseConv2D"), layer.DepthwiseConv2D, x)
    return conv2d(b, call.inner("Conv2D"), layer.Conv2D, x)


def conv1d(b: Builder, call: Call, layer: chips.Conv1D, inputs: Lowered) -> Lowered:
    """Conv1D."""
    return conv2d(b, call.inner("convd"), layer.convd, inputs)


def full_connected(b: Builder, call: Call, layer: chips.FullConnected, inputs: Lowered) -> Lowered:
    """FullConnected."""
    x, feature = read(inputs, layer.input_bitwidth, layer.first_layer)

    def geometry(q: Value, weight: Tensor) -> tuple[Value, Tensor, Accumulate]:
        return q, weight, Accumulate("linear", "", 0)

    return _weighted(b, call, layer, layer.Linear, layer.BatchNorm1d, x, feature, geometry)


def batch_norm(b: Builder, call: Call, layer: chips.BatchNorm, inputs: Lowered) -> Lowered:
    """BatchNorm, of codes or of real numbers."""
    x, feature = read(inputs, layer.input_bitwidth, layer.first_layer)
    signed = layer.signed or feature.signed
    to = REAL
    if layer.quantize:
        quantiser = layer.QuantizeFeature
        quantiser.bits, quantiser.signed = feature.bits, signed
        to = requantiser(quantiser)
    activation = activation_of(b, call.name, layer.activation_fn, layer.offset)
    op = Finish(x.grid, None, norm_of(b, call.name, layer.BatchNorm2d), activation, to.op)
    y = add(b, call.name, op, (x,), to.grid, to.limits, call.layer)
    return y, feature.bits, -layer.clip_max_value * signed


def se_block(b: Builder, call: Call, layer: chips.Se_Block, inputs: Lowered) -> Lowered:
    """Se_Block: mean, two convolutions, product."""
    x, feature = read(inputs, layer.input_bitwidth)
    described = (x, feature.bits, feature.minimum)
    pooled = moves.adaptive_avgpool(b, call.inner("adaptivepool"), layer.adaptivepool, described)
    hidden = conv2d(b, call.inner("conv1"), layer.conv1, pooled)
    gate, _ = read(conv2d(b, call.inner("conv2"), layer.conv2, hidden))
    to = REAL
    if layer.quantizes_output:
        to = target(layer.output_bitwidth, feature.signed, layer.device.has_zero, 1.0)
    op = Combine("mul", x.grid, gate.grid, Activation(), to.op)
    y = add(b, call.name, op, (x, gate), to.grid, to.limits, call.layer)
    return y if layer.last_layer else (y, layer.output_bitwidth, -1.0 if feature.signed else 0.0)


LAYERS: dict[type[nn.Module], Callable[..., Lowered]] = {
    chips.Conv2D: conv2d,
    chips.DepthwiseConv2D: depthwise,
    chips.ConvTranspose2D: conv_transpose,
    chips.Conv1D: conv1d,
    chips.FullConnected: full_connected,
    chips.BatchNorm: batch_norm,
    chips.Se_Block: se_block,
    **moves.LAYERS,
    **bridges.LAYERS,
}
"""Rules by class of layer."""

REFUSED: dict[type[nn.Module], str] = {
    chips.LSTM: "its quantised arithmetic was never measured",
    chips.SoftAttention: "its tanh and softmax are float, and its quantised arithmetic was never measured",
    chips.MILPoolAttention: "its softmax is float, and its quantised arithmetic was never measured",
    chips.RoIPooling: "its regions are real numbers",
}
"""Layers that cannot be lowered, and why."""

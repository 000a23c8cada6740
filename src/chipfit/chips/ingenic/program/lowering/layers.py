"""Lowering rules of the Ingenic layers with weights or normalisation.

Each rule takes the maker, the layer's name, the layer, and its lowered input, and gives its lowered output.
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
from chipfit.chips.ingenic.operators.features import Feature
from chipfit.chips.ingenic.operators.padding import same_pads
from chipfit.chips.ingenic.program.lowering import bridges, moves
from chipfit.chips.ingenic.program.lowering.edges import Edge, Lowered, Maker, border_code, float32, read
from chipfit.chips.ingenic.program.lowering.parts import REAL, activation_of, norm_of, requantiser
from chipfit.chips.ingenic.program.lowering.parts import target as target_grid
from chipfit.chips.ingenic.program.ops import Activation, Affine, Combine, Finish
from chipfit.errors import UnsupportedError
from chipfit.program.core.ops import Accumulate


def _weighted(
    m: Maker, name: str, layer: Any, inner: Any, norm: Any, x: Edge, feature: Feature, geometry: Callable[..., Any]
) -> Lowered:
    """A layer with weights; `geometry` pads the codes and says what sum is taken."""
    if not layer.quantize or layer.weight_bitwidth >= 32:
        raise UnsupportedError(
            "the layer is not quantised", given=f"weight_bitwidth={layer.weight_bitwidth}", allowed="2 to 8 bits"
        )
    q = m.codes(name, x, feature, layer.device)
    n = q.grid.n if q.grid is not None else 1.0
    codes, scale = inner.QuantizeWeight.codes(inner.weight)
    weight = codes.detach().cpu().round().to(torch.int64)
    q, weight, op = geometry(q, weight)
    op = replace(op, weight_tensor=m.builder.keep(f"{name}.weight", weight), largest=q.largest)
    bound = accumulator_bound(weight, q.largest).largest
    total = m.add(f"{name}.sum", op, (q,), None, (-bound, bound), exact=bound <= FLOAT32_EXACT)
    bias = None if inner.bias is None else m.builder.keep(f"{name}.bias", float32(inner.bias))
    factor = m.builder.keep(f"{name}.scale", float32(scale).numpy() / np.float32(n))
    axis = -1 if op.kind == "linear" else 1
    activation = activation_of(m, name, layer.activation_fn, layer.offset)
    slopes = m.builder.tensors[activation.slope_tensor].numel() if activation.slope_tensor else 1
    if axis == -1 and total.sample.dim() > 2 and slopes > 1:
        raise UnsupportedError("PReLU on a sequence has its slopes along time, not along the channels")
    target = requantiser(layer.QuantizeFeature)
    finish = Finish(None, Affine(factor, bias), norm_of(m, name, norm), activation, target.op, axis)
    y = m.add(name, finish, (total,), target.grid, target.limits, name)
    return y if layer.last_layer else (y, layer.output_bitwidth, layer.clip_min_value)


def _convolved(m: Maker, name: str, layer: Any, x: Edge, feature: Feature, first_layer: bool) -> Lowered:
    conv = layer.Conv2d
    flat = x.sample.dim() == 3

    def geometry(q: Edge, weight: Tensor) -> tuple[Edge, Tensor, Accumulate]:
        pads: tuple[int, ...] = (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0])
        if conv.same:
            height, width = (1, q.shape[2]) if flat else q.shape[2:]
            pads = same_pads(height, width, conv.kernel_size, conv.stride)
        stride, dilation = tuple(conv.stride), tuple(conv.dilation)
        if flat:
            if any(pads[2:]) or conv.kernel_size[0] != 1:
                raise UnsupportedError("a convolution over a sequence that pads or sums across it")
            pads, stride, dilation, weight = pads[:2], stride[1:], dilation[1:], weight.squeeze(2)
        q = m.padded(name, q, pads, border_code(q, feature, layer.device, first_layer))
        return q, weight, Accumulate("conv", "", 0, stride, dilation, conv.groups)

    return _weighted(m, name, layer, conv, layer.BatchNorm2d, x, feature, geometry)


def conv2d(m: Maker, name: str, layer: chips.Conv2D, inputs: Lowered) -> Lowered:
    """Conv2D."""
    x, feature = read(inputs, layer.input_bitwidth, layer.first_layer)
    if layer.is_focus:
        x = moves.focused(m, f"{name}.focus", x)
    return _convolved(m, name, layer, x, feature, layer.first_layer)


def depthwise(m: Maker, name: str, layer: chips.DepthwiseConv2D, inputs: Lowered) -> Lowered:
    """DepthwiseConv2D."""
    x, feature = read(inputs, layer.input_bitwidth)
    return _convolved(m, name, layer, x, feature, False)


def conv_transpose(m: Maker, name: str, layer: chips.ConvTranspose2D, inputs: Lowered) -> Lowered:
    """ConvTranspose2D: its parts one after the other."""
    x = moves.unpool(m, f"{name}.Unpool2D", layer.Unpool2D, inputs)
    if layer.DepthwiseConv2D is not None:
        x = depthwise(m, f"{name}.DepthwiseConv2D", layer.DepthwiseConv2D, x)
    return conv2d(m, f"{name}.Conv2D", layer.Conv2D, x)


def conv1d(m: Maker, name: str, layer: chips.Conv1D, inputs: Lowered) -> Lowered:
    """Conv1D."""
    return conv2d(m, f"{name}.convd", layer.convd, inputs)


def full_connected(m: Maker, name: str, layer: chips.FullConnected, inputs: Lowered) -> Lowered:
    """FullConnected."""
    x, feature = read(inputs, layer.input_bitwidth, layer.first_layer)

    def geometry(q: Edge, weight: Tensor) -> tuple[Edge, Tensor, Accumulate]:
        return q, weight, Accumulate("linear", "", 0)

    return _weighted(m, name, layer, layer.Linear, layer.BatchNorm1d, x, feature, geometry)


def batch_norm(m: Maker, name: str, layer: chips.BatchNorm, inputs: Lowered) -> Lowered:
    """BatchNorm, of codes or of real numbers."""
    x, feature = read(inputs, layer.input_bitwidth, layer.first_layer)
    signed = layer.signed or feature.signed
    target = REAL
    if layer.quantize:
        quantiser = layer.QuantizeFeature
        quantiser.bits, quantiser.signed = feature.bits, signed
        target = requantiser(quantiser)
    activation = activation_of(m, name, layer.activation_fn, layer.offset)
    op = Finish(x.grid, None, norm_of(m, name, layer.BatchNorm2d), activation, target.op)
    return m.add(name, op, (x,), target.grid, target.limits, name), feature.bits, -layer.clip_max_value * signed


def se_block(m: Maker, name: str, layer: chips.Se_Block, inputs: Lowered) -> Lowered:
    """Se_Block: mean, two convolutions, product."""
    x, feature = read(inputs, layer.input_bitwidth)
    pooled = moves.adaptive_avgpool(m, f"{name}.adaptivepool", layer.adaptivepool, (x, feature.bits, feature.minimum))
    hidden = conv2d(m, f"{name}.conv1", layer.conv1, pooled)
    gate, _ = read(conv2d(m, f"{name}.conv2", layer.conv2, hidden))
    target = REAL
    if layer.quantizes_output:
        has_zero = layer.device.has_zero
        target = target_grid(layer.output_bitwidth, feature.signed, has_zero, 1.0)
    op = Combine("mul", x.grid, gate.grid, Activation(), target.op)
    y = m.add(name, op, (x, gate), target.grid, target.limits, name)
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

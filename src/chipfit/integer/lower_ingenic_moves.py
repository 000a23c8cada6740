"""Lowering rules of the Ingenic operators without weights: pooling, sums and products, what moves or selects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.features import Feature
from chipfit.chips.ingenic.padding import same_pads
from chipfit.chips.ingenic.quantizers import quantize_feature
from chipfit.errors import UnsupportedError
from chipfit.integer import ops
from chipfit.integer.lower_ingenic_edges import (
    Edge,
    Lowered,
    Maker,
    border_code,
    carry,
    joined_grid,
    joined_limits,
    read,
)
from chipfit.integer.lower_ingenic_parts import REAL, activation_of, target
from chipfit.integer.ops_ingenic import (
    Activation,
    AverageCodes,
    CodeGrid,
    Combine,
    Enlarge,
    Finish,
    Maximum,
    Mean,
    TableRows,
)

# --- pooling


def maxpool(m: Maker, name: str, layer: chips.Maxpool2D, inputs: Lowered) -> Lowered:
    """Maxpool2D: codes have the order of their values."""
    x, feature = read(inputs)
    x = _same_padded(m, name, layer, x, feature)
    return carry(feature, m.moved(name, ops.MaxPool(layer.kernel, layer.stride, (0, 0), (1, 1), False), x, name))


def _same_padded(m: Maker, name: str, layer: Any, x: Edge, feature: Feature) -> Edge:
    if not layer.same:
        return x
    pads = same_pads(x.shape[2], x.shape[3], layer.kernel, layer.stride)
    return m.padded(name, x, pads, border_code(x, feature, layer.device))


def _mean(m: Maker, name: str, layer: Any, inputs: Lowered, windows: bool, keepdim: bool) -> Lowered:
    """Float32 sum of the numbers that the codes stand for, over how many they are."""
    x, feature = read(inputs, layer.input_bitwidth)
    if not layer.quantize:
        raise UnsupportedError("the mean is not quantised", allowed="quantize=True")
    if feature.signed and not layer.signed:
        raise UnsupportedError(
            "the example has no negative value here, so the layer still takes its signed input for unsigned",
            hint="Lower the network with an example that reaches below zero here.",
        )
    q = m.codes(name, x, feature, layer.device)
    if windows:
        q = _same_padded(m, name, layer, q, feature)
    op = Mean(q.grid, layer.kernel, layer.stride) if windows else Mean(q.grid, keepdim=keepdim)
    if getattr(layer, "last_layer", False):
        return m.add(name, op, (q,), layer=name)
    to = target(feature.bits, layer.signed, layer.device.has_zero, 1.0)
    mean = m.add(f"{name}.mean", op, (q,))
    y = m.add(name, Finish(requantise=to.op), (mean,), to.grid, to.limits, name)
    return y, feature.bits, -1.0 if layer.signed else 0.0


def avgpool(m: Maker, name: str, layer: chips.Avgpool2D, inputs: Lowered) -> Lowered:
    """Avgpool2D."""
    return _mean(m, name, layer, inputs, True, True)


def adaptive_avgpool(m: Maker, name: str, layer: chips.AdaptiveAvgpool2D, inputs: Lowered) -> Lowered:
    """AdaptiveAvgpool2D."""
    return _mean(m, name, layer, inputs, False, layer.keepdim)


def unpool(m: Maker, name: str, layer: chips.Unpool2D, inputs: Lowered) -> Lowered:
    """Unpool2D by zeros or by repeating."""
    x, feature = read(inputs)
    if layer.fill == "bilinear":
        raise UnsupportedError("bilinear interpolation leaves the grid", allowed="mode 'zero' or 'nearest'")
    fill = border_code(x, feature, layer.device) if layer.quantize and layer.fill == "zero" else 0
    mode: Any = layer.fill
    limits = joined_limits([x])
    if limits is not None and layer.fill == "zero":
        limits = min(limits[0], fill), max(limits[1], fill)
    y = m.add(name, Enlarge(layer.kernel, mode, fill), (x,), x.grid, limits, name)
    return y if layer.last_layer else carry(feature, y)


# --- two features


def shortcut(m: Maker, name: str, layer: chips.Shortcut, inputs: Lowered) -> Lowered:
    """Shortcut: a sum, on Txx, Xs1 and Xs2 the mean of the codes."""
    (a, first), (b, second) = (read(x) for x in inputs)
    negative, bits = first.signed or second.signed, layer.output_bitwidth
    to, has_zero = REAL, layer.device.has_zero
    if layer.quantizes_output:
        if has_zero:
            bits = first.bits if first.tagged else layer.input_bitwidth
        to = target(bits, negative, has_zero, min(layer.clip_max_value, 2.0))  # of more than 2, 2 counts
    if to.op is not None and has_zero:
        if a.grid is None or b.grid is None:
            raise UnsupportedError("the chip averages codes here, and an input is real numbers")
        n = 2 ** (bits - 1) - 1 if negative else 2**bits - 1
        op = AverageCodes(a.grid, b.grid, n)
        y = m.add(name, op, (a, b), CodeGrid("plain", float(n)), (-n if negative else 0, n), name)
    else:
        activation = activation_of(m, name, layer.activation_fn)
        y = m.add(name, Combine("add", a.grid, b.grid, activation, to.op), (a, b), to.grid, to.limits, name)
    return y if layer.last_layer else (y, bits, -layer.clip_max_value if negative else 0.0)


def product(m: Maker, name: str, layer: chips.Mul, inputs: Lowered) -> Lowered:
    """Mul."""
    (a, first), (b, second) = (read(x) for x in inputs)
    negative = first.signed or second.signed
    bits = max(f.bits if f.tagged else layer.input_bitwidth for f in (first, second))
    to = target(bits, negative, layer.device.has_zero, 1.0) if layer.quantizes_output else REAL
    op = Combine("mul", a.grid, b.grid, Activation(), to.op)
    y = m.add(name, op, (a, b), to.grid, to.limits, name)
    return y if layer.last_layer else (y, bits, -1.0 if negative else 0.0)


def maximum(m: Maker, name: str, layer: chips.Max, inputs: Lowered) -> Lowered:
    """Max."""
    (a, first), (b, _) = (read(x) for x in inputs)
    y = m.add(name, Maximum(), (a, b), joined_grid([a, b]), joined_limits([a, b]), name)
    return (y, first.bits, -1.0 if first.signed else 0.0) if first.tagged else y


# --- moving and selecting


def preprocess(m: Maker, name: str, layer: chips.Preprocess, inputs: Lowered) -> Lowered:
    """Preprocess: only a description."""
    x, _ = read(inputs)
    return x, 8, layer.mean, layer.var, 0.0 if layer.mean == 0 else -1.0


def flatten(m: Maker, name: str, layer: chips.Flatten, inputs: Lowered) -> Lowered:
    """Flatten, whose shape leaves the batch free."""
    x, feature = read(inputs)
    shape = tuple(layer.shape_list)
    if shape.count(-1) != 1:
        raise UnsupportedError("the shape fixes the batch", given=list(shape), allowed="one -1, for the batch")
    return carry(feature, m.moved(name, ops.Reshape(shape), x, name))


def route(m: Maker, name: str, layer: chips.Route, inputs: Lowered) -> Lowered:
    """Route."""
    parts = [read(x) for x in inputs]
    edges = [edge for edge, _ in parts]
    y = m.add(name, ops.Cat(1), tuple(edges), joined_grid(edges), joined_limits(edges), name)
    return carry(parts[0][1], y)


def channel_split(m: Maker, name: str, layer: chips.Channel_Split, inputs: Lowered) -> Lowered:
    """Channel_Split."""
    x, feature = read(inputs)
    parts, start = [], 0
    for i, channels in enumerate(layer.split):
        parts.append(carry(feature, m.moved(f"{name}.{i}", ops.Slice(1, start, start + channels, 1), x)))
        start += channels
    return parts


def pixel_shuffle(m: Maker, name: str, layer: chips.Pixel_Shuffle, inputs: Lowered) -> Lowered:
    """Pixel_Shuffle."""
    x, feature = read(inputs)
    r = layer.upscale_factor
    _, channels, height, width = x.shape
    parts = m.moved(f"{name}.parts", ops.Reshape((-1, channels // r**2, r, r, height, width)), x)
    ordered = m.moved(f"{name}.order", ops.Permute((0, 1, 4, 2, 5, 3)), parts)
    return carry(feature, m.moved(name, ops.Reshape((-1, channels // r**2, height * r, width * r)), ordered, name))


def focused(m: Maker, name: str, x: Edge, layer: str = "") -> Edge:
    """Each 2x2 patch to channels."""
    parts = []
    for i, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        rows = m.moved(f"{name}.rows{i}", ops.Slice(2, row, None, 2), x)
        parts.append(m.moved(f"{name}.{i}", ops.Slice(3, column, None, 2), rows))
    return m.add(name, ops.Cat(1), tuple(parts), x.grid, joined_limits(parts), layer)


def focus(m: Maker, name: str, layer: chips.Focus, inputs: Lowered) -> Lowered:
    """Focus."""
    x, feature = read(inputs)
    return carry(feature, focused(m, name, x, name))


def embedding(m: Maker, name: str, layer: chips.Embedding, inputs: Lowered) -> Lowered:
    """Embedding: a table of codes."""
    x, feature = read(inputs, first_layer=layer.first_layer)
    to = target(layer.output_bitwidth, False, True, 6.0)
    if not layer.quantize or to.grid is None or to.limits is None or not x.value.type.real:
        raise UnsupportedError("the embedding is not quantised, or its input is codes", allowed="quantize=True")
    table = layer.embedding.weight.detach().cpu()
    values = quantize_feature(table, layer.output_bitwidth, 0.0, 6.0, layer.target_device)
    codes = (values * to.grid.n).round().to(torch.int64)
    op = TableRows(m.builder.keep(f"{name}.table", codes))
    if not layer.multi_inputs:
        y = m.add(name, op, (x,), to.grid, to.limits, name)
    else:
        half = x.shape[1] // 2
        halves = [m.moved(f"{name}.index{i}", ops.Slice(1, i * half, (i + 1) * half, 1), x) for i in (0, 1)]
        rows = [m.add(f"{name}.rows{i}", op, (part,), to.grid, to.limits) for i, part in enumerate(halves)]
        y = m.add(name, ops.Cat(2), tuple(rows), to.grid, to.limits, name)
    return (y, layer.output_bitwidth, 0.0) if feature.tagged else y


def nothing(m: Maker, name: str, layer: nn.Module, inputs: Lowered) -> Lowered:
    """NOp, dropout in evaluation, identity."""
    return inputs


LAYERS: dict[type[nn.Module], Callable[..., Lowered]] = {
    chips.Maxpool2D: maxpool,
    chips.Avgpool2D: avgpool,
    chips.AdaptiveAvgpool2D: adaptive_avgpool,
    chips.Unpool2D: unpool,
    chips.Shortcut: shortcut,
    chips.Mul: product,
    chips.Max: maximum,
    chips.Preprocess: preprocess,
    chips.Flatten: flatten,
    chips.Route: route,
    chips.Channel_Split: channel_split,
    chips.Pixel_Shuffle: pixel_shuffle,
    chips.Focus: focus,
    chips.Embedding: embedding,
    **dict.fromkeys((chips.NOp, nn.Identity, nn.Dropout, nn.Dropout2d), nothing),
}
"""Rules by class of layer."""

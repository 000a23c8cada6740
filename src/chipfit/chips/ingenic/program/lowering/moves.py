"""Lowering rules of the Ingenic operators without weights: pooling, sums and products, what moves or selects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.program.lowering.edges import (
    Description,
    Lowered,
    add,
    border_code,
    coded,
    codes,
    float32,
    joined_grid,
    limits_of,
    moved,
    padded,
    read,
    same_pads,
)
from chipfit.chips.ingenic.program.lowering.parts import REAL, activation_of, target
from chipfit.chips.ingenic.program.ops import (
    Activation,
    AverageCodes,
    Combine,
    Enlarge,
    Finish,
    FloatMean,
    Maximum,
    TableRows,
)
from chipfit.chips.ingenic.program.reference import requantise
from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.lowering.builder import Builder, Call, Value
from chipfit.program.types import Grid

# --- pooling


def maxpool(b: Builder, call: Call, layer: chips.Maxpool2D, inputs: Lowered) -> Lowered:
    """Maxpool2D: codes have the order of their values."""
    x, feature = read(inputs)
    x = _same_padded(b, call, layer, x, feature)
    return feature.around(
        moved(b, call.name, ops.MaxPool(layer.kernel, layer.stride, (0, 0), (1, 1), False), x, call.layer)
    )


def _same_padded(b: Builder, call: Call, layer: Any, x: Value, feature: Description) -> Value:
    if not layer.same:
        return x
    pads = same_pads(x.shape[2:], layer.kernel, layer.stride)
    return padded(b, call.name, x, pads, border_code(x, feature, layer.device))


def _mean(b: Builder, call: Call, layer: Any, inputs: Lowered, windows: bool, keepdim: bool) -> Lowered:
    """Float32 sum of the numbers that the codes stand for, over how many they are."""
    x, feature = read(inputs, layer.input_bitwidth)
    if not layer.quantize:
        raise UnsupportedError("the mean is not quantised", allowed="quantize=True")
    if feature.signed and not layer.signed:
        raise UnsupportedError(
            "the example has no negative value here, so the layer still takes its signed input for unsigned",
            hint="Lower the network with an example that reaches below zero here.",
        )
    q = codes(b, call.name, x, feature, layer.device)
    if windows:
        q = _same_padded(b, call, layer, q, feature)
    op = FloatMean(q.grid, layer.kernel, layer.stride) if windows else FloatMean(q.grid, keepdim=keepdim)
    if getattr(layer, "last_layer", False):
        return add(b, call.name, op, (q,), layer=call.layer)
    to = target(feature.bits, layer.signed, layer.device.has_zero, 1.0)
    mean = add(b, f"{call.name}.mean", op, (q,))
    y = add(b, call.name, Finish(requantise=to.op), (mean,), to.grid, to.limits, call.layer)
    return y, feature.bits, -1.0 if layer.signed else 0.0


def avgpool(b: Builder, call: Call, layer: chips.Avgpool2D, inputs: Lowered) -> Lowered:
    """Avgpool2D."""
    return _mean(b, call, layer, inputs, True, True)


def adaptive_avgpool(b: Builder, call: Call, layer: chips.AdaptiveAvgpool2D, inputs: Lowered) -> Lowered:
    """AdaptiveAvgpool2D."""
    return _mean(b, call, layer, inputs, False, layer.keepdim)


def unpool(b: Builder, call: Call, layer: chips.Unpool2D, inputs: Lowered) -> Lowered:
    """Unpool2D by zeros or by repeating."""
    x, feature = read(inputs)
    if layer.fill == "bilinear":
        raise UnsupportedError("bilinear interpolation leaves the grid", allowed="mode 'zero' or 'nearest'")
    fill = border_code(x, feature, layer.device) if layer.quantize and layer.fill == "zero" else 0
    mode: Any = layer.fill
    limits = limits_of([x])
    if limits is not None and layer.fill == "zero":
        limits = min(limits[0], fill), max(limits[1], fill)
    y = add(b, call.name, Enlarge(layer.kernel, mode, fill), (x,), x.grid, limits, call.layer)
    return y if layer.last_layer else feature.around(y)


# --- two features


def shortcut(b: Builder, call: Call, layer: chips.Shortcut, inputs: Lowered) -> Lowered:
    """Shortcut: a sum, on Txx, Xs1 and Xs2 the mean of the codes."""
    (left, first), (right, second) = (read(x) for x in inputs)
    negative, bits = first.signed or second.signed, layer.output_bitwidth
    to, has_zero = REAL, layer.device.has_zero
    if layer.quantizes_output:
        if has_zero:
            bits = first.bits if first.tagged else layer.input_bitwidth
        to = target(bits, negative, has_zero, min(layer.clip_max_value, 2.0))  # of more than 2, 2 counts
    if to.op is not None and has_zero:
        left, right = (coded(x, f, layer.device) for x, f in ((left, first), (right, second)))
        if left.grid is None or right.grid is None:
            raise UnsupportedError("the chip averages codes here, and an input is real numbers")
        n = 2 ** (bits - 1) - 1 if negative else 2**bits - 1
        op = AverageCodes(left.grid, right.grid, n)
        y = add(b, call.name, op, (left, right), Grid("plain", float(n)), (-n if negative else 0, n), call.layer)
    else:
        activation = activation_of(b, call.name, layer.activation_fn)
        sum_ = Combine("add", left.grid, right.grid, activation, to.op)
        y = add(b, call.name, sum_, (left, right), to.grid, to.limits, call.layer)
    return y if layer.last_layer else (y, bits, -layer.clip_max_value if negative else 0.0)


def product(b: Builder, call: Call, layer: chips.Mul, inputs: Lowered) -> Lowered:
    """Mul."""
    (left, first), (right, second) = (read(x) for x in inputs)
    negative = first.signed or second.signed
    bits = max(f.bits if f.tagged else layer.input_bitwidth for f in (first, second))
    to = target(bits, negative, layer.device.has_zero, 1.0) if layer.quantizes_output else REAL
    op = Combine("mul", left.grid, right.grid, Activation(), to.op)
    y = add(b, call.name, op, (left, right), to.grid, to.limits, call.layer)
    return y if layer.last_layer else (y, bits, -1.0 if negative else 0.0)


def maximum(b: Builder, call: Call, layer: chips.Max, inputs: Lowered) -> Lowered:
    """Max."""
    (left, first), (right, _) = (read(x) for x in inputs)
    both = [left, right]
    y = add(b, call.name, Maximum(), (left, right), joined_grid(both), limits_of(both), call.layer)
    return (y, first.bits, -1.0 if first.signed else 0.0) if first.tagged else y


# --- moving and selecting


def preprocess(b: Builder, call: Call, layer: chips.Preprocess, inputs: Lowered) -> Lowered:
    """Preprocess: only a description."""
    x, _ = read(inputs)
    return x, 8, layer.mean, layer.var, 0.0 if layer.mean == 0 else -1.0


def flatten(b: Builder, call: Call, layer: chips.Flatten, inputs: Lowered) -> Lowered:
    """Flatten, whose shape leaves the batch free."""
    x, feature = read(inputs)
    shape = tuple(layer.shape_list)
    if shape.count(-1) != 1:
        raise UnsupportedError("the shape fixes the batch", given=list(shape), allowed="one -1, for the batch")
    return feature.around(moved(b, call.name, ops.Reshape(shape), x, call.layer))


def route(b: Builder, call: Call, layer: chips.Route, inputs: Lowered) -> Lowered:
    """Route."""
    parts = [read(x) for x in inputs]
    values = [value for value, _ in parts]
    y = add(b, call.name, ops.Cat(1), tuple(values), joined_grid(values), limits_of(values), call.layer)
    return parts[0][1].around(y)


def channel_split(b: Builder, call: Call, layer: chips.Channel_Split, inputs: Lowered) -> Lowered:
    """Channel_Split."""
    x, feature = read(inputs)
    parts, start = [], 0
    for i, channels in enumerate(layer.split):
        parts.append(feature.around(moved(b, f"{call.name}.{i}", ops.Slice(1, start, start + channels, 1), x)))
        start += channels
    return parts


def pixel_shuffle(b: Builder, call: Call, layer: chips.Pixel_Shuffle, inputs: Lowered) -> Lowered:
    """Pixel_Shuffle."""
    x, feature = read(inputs)
    r = layer.upscale_factor
    _, channels, height, width = x.shape
    parts = moved(b, f"{call.name}.parts", ops.Reshape((-1, channels // r**2, r, r, height, width)), x)
    ordered = moved(b, f"{call.name}.order", ops.Permute((0, 1, 4, 2, 5, 3)), parts)
    return feature.around(
        moved(b, call.name, ops.Reshape((-1, channels // r**2, height * r, width * r)), ordered, call.layer)
    )


def focused(b: Builder, call: Call, x: Value, layer: str = "") -> Value:
    """Each 2x2 patch to channels."""
    parts = []
    for i, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        rows = moved(b, f"{call.name}.rows{i}", ops.Slice(2, row, None, 2), x)
        parts.append(moved(b, f"{call.name}.{i}", ops.Slice(3, column, None, 2), rows))
    return add(b, call.name, ops.Cat(1), tuple(parts), x.grid, limits_of(parts), layer)


def focus(b: Builder, call: Call, layer: chips.Focus, inputs: Lowered) -> Lowered:
    """Focus."""
    x, feature = read(inputs)
    return feature.around(focused(b, call, x, call.layer))


def embedding(b: Builder, call: Call, layer: chips.Embedding, inputs: Lowered) -> Lowered:
    """Embedding: a table of codes."""
    x, feature = read(inputs, first_layer=layer.first_layer)
    to = target(layer.output_bitwidth, False, True, 6.0)
    if not layer.quantize or to.op is None or not x.type.real:
        raise UnsupportedError("the embedding is not quantised, or its input is codes", allowed="quantize=True")
    rows = requantise(torch.from_numpy(float32(layer.embedding.weight)), to.op)
    op = TableRows(b.keep(f"{call.name}.table", rows))
    if not layer.multi_inputs:
        y = add(b, call.name, op, (x,), to.grid, to.limits, call.layer)
    else:
        half = x.shape[1] // 2
        halves = [moved(b, f"{call.name}.index{i}", ops.Slice(1, i * half, (i + 1) * half, 1), x) for i in (0, 1)]
        found = [add(b, f"{call.name}.rows{i}", op, (part,), to.grid, to.limits) for i, part in enumerate(halves)]
        y = add(b, call.name, ops.Cat(2), tuple(found), to.grid, to.limits, call.layer)
    return (y, layer.output_bitwidth, 0.0) if feature.tagged else y


def nothing(b: Builder, call: Call, layer: nn.Module, inputs: Lowered) -> Lowered:
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

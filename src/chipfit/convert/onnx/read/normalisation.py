"""Normalisation: over the batch by running statistics, over channels, groups and axes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.weighted import filled
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import RefusedError, UnfitError, Value

_BATCH: tuple[Any, ...] = (None, None, nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@reads("BatchNormalization")
def _batch(
    c: Builder,
    x: Value,
    scale: Value,
    bias: Value,
    mean: Value,
    variance: Value,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Value:
    known("training_mode", training_mode, (0,))
    if not 2 <= x.rank <= 5:
        raise UnfitError(f"a batch norm of a tensor with {x.rank} axes")
    layer = _BATCH[x.rank](scale.tensor.numel(), epsilon)
    for own, given in (
        (layer.weight, scale),
        (layer.bias, bias),
        (layer.running_mean, mean),
        (layer.running_var, variance),
    ):
        filled(own, given.tensor)
    return c.layer(layer.eval(), scale, x)


@reads("InstanceNormalization")
def _instance(c: Builder, x: Value, scale: Value, bias: Value, *, epsilon: float = 1e-5) -> Value:
    layer = nn.GroupNorm(scale.tensor.numel(), scale.tensor.numel(), epsilon)
    filled(layer.weight, scale.tensor)
    filled(layer.bias, bias.tensor)
    return c.layer(layer, scale, x)


@reads("GroupNormalization")
def _group(
    c: Builder, x: Value, scale: Value, bias: Value, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Value:
    channels = x.size(1)
    weight, shift = scale.tensor, bias.tensor
    if c.opset < 21:  # one number a group, until then
        weight, shift = (t.repeat_interleave(channels // num_groups) for t in (weight, shift))
    layer = nn.GroupNorm(num_groups, channels, epsilon)
    filled(layer.weight, weight)
    filled(layer.bias, shift)
    return c.layer(layer, scale, x)


@reads("LayerNormalization")
def _layer(
    c: Builder,
    x: Value,
    scale: Value,
    bias: Value | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Value:
    shape = [x.size(i) for i in range(x.axis(axis), x.rank)]
    if not scale.constant or (bias is not None and not bias.constant):
        return c.call(F.layer_norm, x, shape, scale, bias, epsilon)
    layer = nn.LayerNorm(shape, epsilon, bias=bias is not None)
    filled(layer.weight, scale.tensor.expand(shape))
    if bias is not None:
        filled(layer.bias, bias.tensor.expand(shape))
    return c.layer(layer, scale, x)


@reads("LRN")
def _lrn(c: Builder, x: Value, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Value:
    if size % 2 == 0:
        raise RefusedError(f"an even size, {size}, is not read; allowed: odd ones")
    return c.call(F.local_response_norm, x, size, alpha, beta, bias)


@reads("LpNormalization")
def _lp(c: Builder, x: Value, *, axis: int = -1, p: int = 2) -> Value:
    known("p", p, (1, 2))
    return c.call(F.normalize, x, float(p), x.axis(axis), 0.0)


@reads("MeanVarianceNormalization")
def _mean_variance(c: Builder, x: Value, *, axes: list[int] | None = None) -> Value:
    chosen = [x.axis(axis) for axis in axes or (0, 2, 3)]
    centred = c.call(torch.sub, x, c.call(torch.mean, x, chosen, True))
    spread = c.call(torch.sqrt, c.call(torch.mean, c.call(torch.square, centred), chosen, True))
    return c.call(torch.div, centred, c.call(torch.add, spread, 1e-9))

"""Functions of one tensor, number by number, and normal distributions over an axis."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.weighted import filled
from chipfit.convert.onnx.table import READS, Reading, known, reads
from chipfit.convert.onnx.values import Value

_PLAIN: dict[str, Any] = {
    **{"Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Softplus": F.softplus, "Softsign": F.softsign},
    **{"HardSwish": F.hardswish, "Mish": F.mish, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log},
    **{"Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": operator.neg, "Reciprocal": torch.reciprocal},
    **{"Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign},
    **{"Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Sinh": torch.sinh, "Cosh": torch.cosh},
    **{"Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Not": torch.logical_not, "IsNaN": torch.isnan},
}
"""Operators without attributes, and torch's functions."""


def _plain(function: Any) -> Reading:
    def read(c: Builder, x: Value) -> Value:
        return c.call(function, x)

    return Reading(read, 1, 1, frozenset())


READS.update({name: _plain(function) for name, function in _PLAIN.items()})


@reads("LeakyRelu")
def _leaky(c: Builder, x: Value, *, alpha: float = 0.01) -> Value:
    return c.call(F.leaky_relu, x, alpha)


@reads("Elu")
def _elu(c: Builder, x: Value, *, alpha: float = 1.0) -> Value:
    return c.call(F.elu, x, alpha)


@reads("Celu")
def _celu(c: Builder, x: Value, *, alpha: float = 1.0) -> Value:
    return c.call(F.celu, x, alpha)


@reads("Selu")
def _selu(
    c: Builder, x: Value, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Value:
    if math.isclose(alpha, 1.6732632, rel_tol=1e-6) and math.isclose(gamma, 1.0507010, rel_tol=1e-6):
        return c.call(F.selu, x)
    return c.call(operator.mul, c.call(F.elu, x, alpha), gamma)


@reads("HardSigmoid")
def _hard_sigmoid(c: Builder, x: Value, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return c.call(F.hardsigmoid, x)
    line = c.call(operator.add, c.call(operator.mul, x, alpha), beta)
    return c.call(torch.clamp, line, 0.0, 1.0)


@reads("ThresholdedRelu")
def _thresholded(c: Builder, x: Value, *, alpha: float = 1.0) -> Value:
    return c.call(F.threshold, x, alpha, 0.0)


@reads("Gelu")
def _gelu(c: Builder, x: Value, *, approximate: str = "none") -> Value:
    known("approximate", approximate, ("none", "tanh"))
    return c.call(F.gelu, x, approximate=approximate)


@reads("PRelu")
def _prelu(c: Builder, x: Value, slope: Value) -> Value:
    per_channel = (x.sizes[1], *(1,) * (x.rank - 2)) if x.rank > 1 else ()
    shape = slope.sizes
    while len(shape) > len(per_channel) and shape[0] == 1:
        shape = shape[1:]
    if x.live and slope.constant and (slope.tensor.numel() == 1 or shape == per_channel):
        layer = nn.PReLU(slope.tensor.numel())
        filled(layer.weight, slope.tensor.reshape(-1))
        return c.layer(layer, slope, x)
    negative = c.call(operator.mul, x, slope)
    return c.call(torch.where, c.call(operator.lt, x, 0), negative, x)


@reads("Clip")
def _clip(
    c: Builder,
    x: Value,
    low: Value | None = None,
    high: Value | None = None,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Value:
    least, most = (c.number(low) if low is not None else min), (c.number(high) if high is not None else max)
    if x.floats:
        least = None if least is not None and least <= -3.4e38 else least
        most = None if most is not None and most >= 3.4e38 else most
    if (least, most) == (0, 6) and x.floats:
        return c.call(F.relu6, x)
    if (least, most) == (0, None) and x.floats:
        return c.call(F.relu, x)
    return x if least is None and most is None else c.call(torch.clamp, x, least, most)


@reads("Softmax", function=torch.softmax)
@reads("LogSoftmax", function=torch.log_softmax)
def _softmax(c: Builder, x: Value, *, axis: int | None = None, function: Any) -> Value:
    if c.opset >= 13:
        return c.call(function, x, x.axis(-1 if axis is None else axis))
    first = x.axis(1 if axis is None else axis)  # over all axes from this one on
    if first == x.rank - 1 or all(size == 1 for size in x.sizes[first + 1 :]):
        return c.call(function, x, first)
    flat = c.call(function, c.call(torch.flatten, x, first), first)
    return c.call("unflatten", flat, first, [x.size(axis) for axis in range(first, x.rank)])

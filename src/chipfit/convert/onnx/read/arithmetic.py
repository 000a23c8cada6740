"""Arithmetic of several tensors, comparisons, kinds of numbers."""

from __future__ import annotations

import operator
from typing import Any

import torch

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.weighted import with_bias
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import RefusedError, Value

_DTYPES: dict[int, torch.dtype] = {
    **{1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64},
    **{9: torch.bool, 10: torch.float16, 11: torch.float64},
}
"""By number of the file's kind."""


def dtype_of(number: int) -> torch.dtype:
    """Torch's kind of numbers for the file's.

    Raises:
        RefusedError: one that is not read.
    """
    if number not in _DTYPES:
        raise RefusedError(f"numbers of kind {number} are not read; allowed: float, double, integers, bool")
    return _DTYPES[number]


def _two(c: Builder, function: Any, a: Value, b: Value) -> Value:
    """A function of two tensors that broadcast; of Python's numbers where one is a constant of one element."""
    return c.call(function, c.operand(a, b), c.operand(b, a))


@reads("Add")
def _add(c: Builder, a: Value, b: Value) -> Value:
    return with_bias(c, a, b) or with_bias(c, b, a) or _two(c, operator.add, a, b)


@reads("Sub", function=operator.sub)
@reads("Mul", function=operator.mul)
@reads("Equal", function=operator.eq)
@reads("Less", function=operator.lt)
@reads("Greater", function=operator.gt)
@reads("LessOrEqual", function=operator.le)
@reads("GreaterOrEqual", function=operator.ge)
@reads("And", function=operator.and_)
@reads("Or", function=operator.or_)
@reads("Xor", function=operator.xor)
@reads("Pow", function=operator.pow)
def _binary(c: Builder, a: Value, b: Value, *, function: Any) -> Value:
    return _two(c, function, a, b)


@reads("Div")
def _div(c: Builder, a: Value, b: Value) -> Value:
    if a.floats:
        return _two(c, operator.truediv, a, b)
    return c.call(torch.div, a, b, rounding_mode="trunc")


@reads("Mod")
def _mod(c: Builder, a: Value, b: Value, *, fmod: int = 0) -> Value:
    return c.call(torch.fmod if fmod else torch.remainder, a, b)


@reads("Max", function=torch.maximum)
@reads("Min", function=torch.minimum)
@reads("Sum", function=operator.add)
def _several(c: Builder, *parts: Value, function: Any) -> Value:
    made = parts[0]
    for part in parts[1:]:
        number = c.operand(part, made)
        if isinstance(number, Value) or function is operator.add:
            made = c.call(function, made, number)
        else:
            made = c.call(torch.clamp, made, **{"min" if function is torch.maximum else "max": number})
    return made


@reads("Mean")
def _mean(c: Builder, *parts: Value) -> Value:
    made = _several(c, *parts, function=operator.add)
    return c.call(operator.truediv, made, len(parts)) if len(parts) > 1 else made


@reads("Where")
def _where(c: Builder, condition: Value, a: Value, b: Value) -> Value:
    return c.call(torch.where, condition, a, b)


@reads("Cast")
def _cast(c: Builder, x: Value, *, to: int, saturate: int = 1) -> Value:
    dtype = dtype_of(to)
    return x if dtype == x.dtype else c.call("to", x, dtype)


@reads("CastLike")
def _cast_like(c: Builder, x: Value, like: Value, *, saturate: int = 1) -> Value:
    return x if like.dtype == x.dtype else c.call("to", x, like.dtype)


@reads("Identity")
def _identity(c: Builder, x: Value) -> Value:
    return x


@reads("Dropout")
def _dropout(
    c: Builder,
    x: Value,
    share: Value | None = None,
    training: Value | None = None,
    *,
    ratio: float = 0.5,
    seed: int = 0,
) -> Value:
    if training is not None and bool(c.number(training)):
        raise RefusedError("dropout in training is not read")
    return x


@reads("Constant")
def _constant(
    c: Builder,
    *,
    value: Value | None = None,
    value_float: float | None = None,
    value_floats: list[float] | None = None,
    value_int: int | None = None,
    value_ints: list[int] | None = None,
) -> Value:
    if value is not None:
        return value
    whole = next((v for v in (value_int, value_ints) if v is not None), None)
    if whole is not None:
        return c.known(torch.tensor(whole, dtype=torch.int64))
    real = next((v for v in (value_float, value_floats) if v is not None), None)
    known("a constant without numbers", real is not None, (True,))
    return c.known(torch.tensor(real, dtype=torch.float32))

"""Convolutions and matrix products."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.padding import padded, spatial
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import UnfitError, Value

_CONVS: tuple[Any, ...] = (None, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_FUNCTIONS: tuple[Any, ...] = (None, F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (None, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def unset(kind: Any, *args: Any, **options: Any) -> Any:
    """A layer whose parameters have no values yet: random ones would take longer than the file's."""
    with torch.device("meta"):
        layer = kind(*args, **options)
    return layer.to_empty(device="cpu")


def filled(parameter: Any, values: Tensor) -> None:
    """Put the file's numbers into a parameter.

    Raises:
        UnfitError: they have another shape.
    """
    if parameter.shape != values.shape:
        raise UnfitError(f"a weight of shape {tuple(values.shape)} where {tuple(parameter.shape)} is needed")
    with torch.no_grad():
        parameter.copy_(values)


@reads("Conv")
def _conv(
    c: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Value:
    window = spatial(x, weight.probes[0].shape[2:], strides, dilations, pads, auto_pad)
    rank = len(window.kernel)
    if kernel_shape is not None and tuple(kernel_shape) != window.kernel:
        raise UnfitError(f"kernel_shape {kernel_shape} for a weight of kernel {list(window.kernel)}")
    x, padding = padded(c, x, window.pads, value=0.0)
    rest = (window.strides, padding, window.dilations)
    if not weight.constant or (bias is not None and not bias.constant):
        return c.call(_CONV_FUNCTIONS[rank], x, weight, bias, *rest, group)
    outputs, inputs = weight.tensor.shape[:2]
    options = {"groups": group, "bias": bias is not None}
    layer = unset(_CONVS[rank], inputs * group, outputs, window.kernel, *rest, **options)
    _set(layer, weight, bias)
    return c.layer(layer, weight, x, key=_key("conv", weight, bias, *rest, group))


def _set(layer: Any, weight: Value, bias: Value | None) -> None:
    filled(layer.weight, weight.tensor)
    if bias is not None:
        filled(layer.bias, bias.tensor)


def _key(kind: str, weight: Value, bias: Value | None, *rest: Any) -> Any:
    """What tells layers apart, where their constants have names; layers whose bias was added are none's."""
    names = (weight.name, bias.name if bias is not None else None)
    return (kind, *names, *rest) if weight.name and names[1] != "" else None


@reads("ConvTranspose")
def _conv_transpose(
    c: Builder,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Value:
    known("auto_pad", auto_pad, ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
    kernel = tuple(weight.tensor.shape[2:])
    rank = len(kernel)
    if x.rank != rank + 2 or not 1 <= rank <= 3 or (kernel_shape and tuple(kernel_shape) != kernel):
        raise UnfitError(f"a kernel of {rank} axes for a tensor of {x.rank}")
    step, spread = _each(strides, rank), _each(dilations, rank)
    more, border = _each(output_padding, rank, 0), list(pads or (0,) * (2 * rank))
    if len(border) != 2 * rank:
        raise UnfitError(f"{len(border)} pads for {rank} axes")
    if output_shape is not None or auto_pad.startswith("SAME"):
        total = []
        for i in range(rank):
            size = x.size(2 + i)
            want = output_shape[i - rank] if output_shape is not None else size * step[i]
            total.append(step[i] * (size - 1) + more[i] + (kernel[i] - 1) * spread[i] + 1 - want)
        more = tuple(m + max(-n, 0) for m, n in zip(more, total, strict=True))
        total = [max(n, 0) for n in total]
        less, rest = [n // 2 for n in total], [n - n // 2 for n in total]
        # As onnxruntime has it: the greater half comes last with SAME_UPPER, and first otherwise.
        border = less + rest if auto_pad == "SAME_UPPER" else rest + less
    before, after = border[:rank], border[rank:]
    crop = before != after or any(m >= max(s, d) for m, s, d in zip(more, step, spread, strict=True))
    outputs, inputs = weight.tensor.shape[1] * group, weight.tensor.shape[0]
    padding, extra = ((0,) * rank, (0,) * rank) if crop else (tuple(before), more)
    layer = unset(_TRANSPOSED[rank], inputs, outputs, kernel, step, padding, extra, group, bias is not None, spread)
    _set(layer, weight, bias)
    y = c.layer(layer, weight, x, key=_key("transposed", weight, bias, step, padding, extra, spread, group))
    if crop:  # zeros behind the last place, then the border off
        if bias is not None and any(m > a for m, a in zip(more, after, strict=True)):
            raise UnfitError("output_padding beyond the border of a layer with bias")
        edges = [edge for b, a, m in zip(before[::-1], after[::-1], more[::-1], strict=True) for edge in (-b, m - a)]
        y = c.call(F.pad, y, tuple(edges))
    return y


def _each(given: list[int] | None, rank: int, otherwise: int = 1) -> tuple[int, ...]:
    found = tuple(given) if given else (otherwise,) * rank
    if len(found) != rank:
        raise UnfitError(f"{len(found)} numbers for {rank} axes")
    return found


@reads("Gemm")
def _gemm(
    c: Builder,
    a: Value,
    b: Value,
    bias: Value | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Value:
    if a.rank != 2 or b.rank != 2:
        raise UnfitError("factors that are no matrices")
    if transA:
        a = c.call("transpose", a, 0, 1)
    outputs = b.probes[0].shape[0 if transB else 1]
    plain = bias is None or (bias.constant and bias.tensor.numel() == outputs and bias.rank <= 2)
    if b.constant and a.live and plain and (bias is None or bias.sizes[-1:] == (outputs,)):
        weight = b.tensor if transB else b.tensor.T
        shift = None if bias is None else bias.tensor.reshape(-1) * beta
        key = (alpha, beta, transB, None if bias is None else bias.name)
        return linear(c, a, b, weight if alpha == 1 else weight * alpha, shift, () if "" in key else key)
    product = c.call(torch.matmul, a, c.call("transpose", b, 0, 1) if transB else b)
    if alpha != 1:
        product = c.call(operator.mul, product, alpha)
    if bias is None:
        return product
    return c.call(operator.add, product, c.operand(bias, product) if beta == 1 else c.call(operator.mul, bias, beta))


def linear(c: Builder, x: Value, given: Value, weight: Tensor, bias: Tensor | None, key: Any = ()) -> Value:
    """Call a linear layer."""
    layer = unset(nn.Linear, weight.shape[1], weight.shape[0], bias is not None)
    filled(layer.weight, weight)
    if bias is not None:
        filled(layer.bias, bias)
    return c.layer(layer, given, x, key=("linear", given.name, key) if given.name and key else None)


@reads("MatMul")
def _matmul(c: Builder, a: Value, b: Value) -> Value:
    if a.live and b.constant and b.rank == 2 and a.rank >= 2 and b.floats:
        return linear(c, a, b, b.tensor.T, None)
    return c.call(torch.matmul, a, b)


@reads("Einsum")
def _einsum(c: Builder, *parts: Value, equation: str = "") -> Value:
    if len(equation) > 100:
        raise UnfitError("an equation of more than 100 signs")
    return c.call(torch.einsum, equation, *parts)


def with_bias(c: Builder, made: Value, bias: Value) -> Value | None:
    """A layer without bias and the constant added to it, as the layer with bias.

    Args:
        c: The network under construction.
        made: What the layer gives.
        bias: What is added.

    Returns:
        The layer's call; None where it cannot take the constant in.
    """
    layer = None if made.node is None else c.layers.get(made.node)
    if layer is None or getattr(layer, "bias", ...) is not None or not bias.constant or not bias.floats:
        return None
    if type(layer) is nn.Linear:
        shape: tuple[int, ...] = (layer.out_features,)
    elif type(layer) in _CONVS:
        shape = (layer.out_channels,) + (1,) * (made.rank - 2)
    else:
        return None
    given = tuple(bias.tensor.shape)
    lead = given[: len(given) - len(shape)]
    if given[len(lead) :] != shape or any(size != 1 for size in lead) or len(given) > made.rank:
        return None
    if not c.called_once(made):
        return None
    layer.bias = nn.Parameter(bias.tensor.reshape(-1).clone())
    return made

"""The reference of the core operations in int64, one plain function each; it shares nothing with training layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.errors import NonFiniteError
from chipfit.program.core import ops
from chipfit.program.dialect import Context
from chipfit.program.grid import value
from chipfit.program.integers import half_even_quotient, shifted

# --- numbers in and out


def quantised(x: Tensor, op: ops.Quantise, where: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """Real numbers to codes, held in a dtype."""
    if bool(torch.isnan(x).any()):
        raise NonFiniteError("the input holds NaN, which has no code", given=int(torch.isnan(x).sum()), where=where)
    scaled = x * op.scale + op.zero if op.zero else x * op.scale
    return scaled.round_().clamp_(op.lo, op.hi).to(dtype)


def quantise(op: ops.Quantise, args: list[Tensor], context: Context) -> Tensor:
    """`Quantise`."""
    return quantised(args[0], op, context.name)


def dequantise(op: ops.Dequantise, args: list[Tensor], context: Context) -> Tensor:
    """`Dequantise`."""
    return value(args[0], context.sources[0].grid)


# --- codes to codes


def rescale(op: ops.Rescale, args: list[Tensor], _: Context) -> Tensor:
    """`Rescale`."""
    if op.shift >= 0:
        return ((args[0] << op.shift) + op.zero).clamp(op.lo, op.hi)
    return shifted(args[0] + (op.zero << -op.shift), op.shift).clamp(op.lo, op.hi)


def summed_products(x: Tensor, weight: Tensor, op: ops.Accumulate) -> Tensor:
    """The sums of products of an `Accumulate`, without its bias, in the dtype of the arguments."""
    if op.kind == "linear":
        return F.linear(x, weight)
    conv: Any = F.conv1d if len(op.stride) == 1 else F.conv2d
    total: Tensor = conv(x, weight, None, op.stride, 0, op.dilation, op.groups)
    return total


def per_channel(values: Tensor, op: ops.Accumulate | ops.Geometry) -> Tensor:
    """View one value an output channel so that it broadcasts over an operation's output."""
    return values if op.kind == "linear" else values.view(-1, *[1] * len(op.stride))


def accumulate(op: ops.Accumulate, args: list[Tensor], context: Context) -> Tensor:
    """`Accumulate`."""
    total = summed_products(args[0], context.tensors[op.weight_tensor], op)
    return total if op.bias_tensor is None else total + per_channel(context.tensors[op.bias_tensor], op)


def look_up(op: ops.LookUp, args: list[Tensor], context: Context) -> Tensor:
    """`LookUp`."""
    table, index = context.tensors[op.table_tensor], args[0] - op.first
    if table.shape[0] == 1:
        return table[0][index]
    rows = torch.arange(table.shape[0]).view(-1, *[1] * (index.dim() - 2))
    return table[rows.expand(index.shape), index]


def constant(op: ops.Constant, _: list[Tensor], context: Context) -> Tensor:
    """`Constant`."""
    return context.tensors[op.codes_tensor]


def closed(compute: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, list[Tensor], Context], Tensor]:
    """An operation of two inputs that shifts what it computes and clips it: `Add`, `Mul`, `MatMul`."""

    def reference(op: Any, args: list[Tensor], _: Context) -> Tensor:
        return shifted(compute(args[0], args[1]), op.shift).clamp(op.lo, op.hi)

    return reference


def multiply_add(op: ops.MultiplyAdd, args: list[Tensor], context: Context) -> Tensor:
    """`MultiplyAdd`."""
    channels = (-1, *[1] * (args[0].dim() - 2))
    weight, bias = (context.tensors[name].view(channels) for name in (op.weight_tensor, op.bias_tensor))
    return shifted(args[0] * weight + bias, op.shift).clamp(op.lo, op.hi)


def mean_code(q: Tensor, dims: tuple[int, ...], keepdim: bool, sum_lo: int, sum_hi: int) -> Tensor:
    """`half_even(clip(sum, sum_lo, sum_hi) / n)` over axes."""
    n = 1
    for dim in dims:
        n *= q.shape[dim]
    return half_even_quotient(q.sum(dims, keepdim=keepdim).clamp(sum_lo, sum_hi), n)


def mean(op: ops.Mean, args: list[Tensor], _: Context) -> Tensor:
    """`Mean`."""
    return mean_code(args[0], op.dims, op.keepdim, op.sum_lo, op.sum_hi)


# --- moving and selecting, of numbers in any dtype


def max_pool(op: ops.MaxPool, args: list[Tensor], _: Context) -> Tensor:
    """`MaxPool`."""
    pool: Any = F.max_pool1d if len(op.kernel) == 1 else F.max_pool2d
    # codes have far fewer than 53 bits, so float64 orders them exactly; torch's int64 pooling lacks the 1-D case
    pooled: Tensor = pool(args[0].double(), op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
    return pooled.to(args[0].dtype)


def sum_pool(op: ops.SumPool, args: list[Tensor], _: Context) -> Tensor:
    """`SumPool`."""
    windows = args[0]
    for axis, (kernel, stride) in enumerate(zip(op.kernel, op.stride, strict=True)):
        windows = windows.unfold(args[0].dim() - len(op.kernel) + axis, kernel, stride)
    return windows.sum(tuple(range(-len(op.kernel), 0)))


def pad(op: ops.Pad, args: list[Tensor], _: Context) -> Tensor:
    """`Pad`."""
    if op.mode == "constant":
        return F.pad(args[0], op.pads, value=op.value)
    return F.pad(args[0].double(), op.pads, mode=op.mode).to(args[0].dtype)


def slice_(op: ops.Slice, args: list[Tensor], _: Context) -> Tensor:
    """`Slice`."""
    stop = args[0].shape[op.dim] if op.stop is None else op.stop
    return args[0].movedim(op.dim, 0)[op.start : stop : op.step].movedim(0, op.dim)

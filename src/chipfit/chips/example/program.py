"""From NPU layers to integer operations: codes computed from the parameters anew, with nothing of what trains."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from chipfit.arithmetic.bounds import accumulator_bound
from chipfit.chips.example.layers import NpuAdd, NpuConv2d, NpuLinear
from chipfit.program import ops
from chipfit.program.lowering.builder import Builder, Call, Value, grid, type_for
from chipfit.program.lowering.rules import Lowering


def _on_grid(b: Builder, call: Call, layer: Any, tensor: str, x: Value) -> Value:
    """An input on the layer's own grid: the layer before it may have another, and the network's input has none."""
    exponent = int(getattr(layer, f"{tensor}_exponent"))
    return b.on_grid(f"{call.name}.{tensor}", x, grid(8, True, 2.0**exponent))


def _weighted(b: Builder, call: Call, layer: Any, q: Value, total: ops.Accumulate) -> Value:
    """A sum of products, then multiplier and bias of each channel."""
    weight = layer.weight.detach().numpy()
    largest = np.abs(weight.reshape(len(weight), -1)).max(1)
    scale = np.where(largest > 0, largest, np.float32(1)) / np.float32(127)
    codes = np.rint(np.clip(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)), -127, 127)).astype(np.int64)
    wide, x_exponent, y_exponent = scale.astype(np.float64), int(layer.x_exponent), int(layer.y_exponent)
    multiplier = np.rint(wide * 2.0 ** (y_exponent - x_exponent + 20)).astype(np.int64)
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy().astype(np.float64)
    bias = np.rint(bias * 2.0**x_exponent / wide).astype(np.int64) * multiplier
    bound = accumulator_bound(torch.from_numpy(codes), 128).largest
    op = replace(total, weight_tensor=b.keep(f"{call.name}.weight", codes))
    sums = b.add(f"{call.name}.sum", op, (q,), type_for(-bound, bound, 1.0), -bound, bound)
    tensors = b.keep(f"{call.name}.multiplier", multiplier), b.keep(f"{call.name}.bias", bias)
    finish = ops.MultiplyAdd(*tensors, -20, -128, 127)
    return b.add(call.name, finish, (sums,), grid(8, True, 2.0**y_exponent), layer=call.layer)


def _linear(b: Builder, call: Call, layer: NpuLinear, x: Value) -> Value:
    return _weighted(b, call, layer, _on_grid(b, call, layer, "x", x), ops.Accumulate("linear", "", 128))


def _conv(b: Builder, call: Call, layer: Any, x: Value) -> Value:
    q, border = _on_grid(b, call, layer, "x", x), tuple(layer._reversed_padding_repeated_twice)
    if any(border):
        q = b.add(f"{call.name}.pad", ops.Pad(border, "constant", 0), (q,), q.type)
    op = ops.Accumulate("conv", "", 128, layer.stride, layer.dilation, layer.groups)
    return _weighted(b, call, layer, q, op)


def _add(b: Builder, call: Call, layer: Any, x: Value, y: Value) -> Value:
    first, second = b.aligned(call.name, [_on_grid(b, call, layer, t, v) for t, v in (("x1", x), ("x2", y))])
    target = grid(8, True, 2.0 ** int(layer.y_exponent))
    shift = round(np.log2(target.scale / first.type.scale))
    return b.add(call.name, ops.Add(shift, -128, 127), (first, second), target, layer=call.layer)


LOWERING = Lowering({NpuLinear: _linear, NpuConv2d: _conv, NpuAdd: _add})

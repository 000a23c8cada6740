"""Lowering rules of the Witmem digital unit, by the text of spec/witmem-digital.md, section 3.

A function of one tensor becomes a table with an entry for every input code. The table is the float64 function rounded;
where float32 rounds an entry the other way, because it lies too close to a tie, the node says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.chips.witmem import digital
from chipfit.chips.witmem.program import ops
from chipfit.chips.witmem.program.lowering.codes import clipped_range
from chipfit.chips.witmem.program.lowering.codes import shifting_scales as _scales
from chipfit.errors import UnsupportedError
from chipfit.program.lowering.builder import Builder, Call, Value, grid, half_even_codes, log2_of
from chipfit.program.types import ValueType

WIDEST_TABLE = 16
"""Input bits up to which a function is tabulated."""
_QUOTIENT_LIMIT = 8.0

Function = Callable[[Tensor], Tensor]


def _tabulated(
    b: Builder,
    call: Call,
    layer: Any,
    function: str,
    real: Function,
    x: Value,
    scale_y: float,
    clip: float | None = None,
    exact: bool = True,
) -> Value:
    """A table over all codes of the input's grid.

    Args:
        b: The builder.
        call: The call.
        layer: Has the output's width and sign.
        function: Name, for people.
        real: From codes in a floating dtype, shape `(entries,)`, to real results, for each row of the table if several.
        x: The input, on its grid.
        scale_y: Codes per unit of the output.
        clip: Limit of the real result.
        exact: Whether everything before the function was exact in float32.
    """
    bits = x.type.bits or 0
    if bits > WIDEST_TABLE:
        raise UnsupportedError("the input is too wide for a table", given=bits, allowed=f"up to {WIDEST_TABLE} bits")
    y = grid(layer.y_bits, layer.y_signed, scale_y)
    lo, hi = clipped_range(clip, scale_y, y.lo, y.hi)
    codes = torch.arange(x.type.lo, x.type.hi + 1)

    def entries(inputs: Tensor) -> Tensor:
        return (real(inputs) * scale_y).round().clamp(lo, hi).to(torch.int64)

    table = entries(codes.double())
    # torch's float32 functions differ in the last place between whole vectors and single values
    single = torch.cat([entries(code.view(1).float()) for code in codes], dim=-1)
    exact = exact and torch.equal(entries(codes.float()), table) and torch.equal(single, table)
    op = ops.LookUp(function, b.keep(f"{call.name}.table", table.view(-1, len(codes))), x.type.lo)
    return b.add(call.name, op, (x,), y, int(table.min()), int(table.max()), call.layer, exact)


def gelu(b: Builder, call: Call, layer: digital.WitinGELU, input: Value) -> Value:
    """WitinGELU."""
    scales = _scales(layer)
    x = b.on_grid(f"{call.name}.input", input, grid(layer.x_quant_bits, True, scales["x"]))
    lift = layer.gelu_shift_num or 0.0

    def real(codes: Tensor) -> Tensor:
        return F.gelu(codes / scales["x"], approximate=layer.approximate) + lift

    return _tabulated(b, call, layer, "gelu", real, x, scales["y"], layer.output_fp_clip)


def _limited(function: str, real: Function) -> Any:
    """Rule of sigmoid or tanh: `x_clip` narrows the range of the input's codes."""

    def rule(b: Builder, call: Call, layer: Any, input: Value) -> Value:
        scales = _scales(layer)
        on = grid(layer.x_quant_bits, True, scales["x"])
        lo, hi = clipped_range(layer.x_clip, scales["x"], on.lo, on.hi)
        x = b.on_grid(f"{call.name}.input", input, on, lo, hi)
        return _tabulated(b, call, layer, function, lambda codes: real(codes / scales["x"]), x, scales["y"])

    return rule


def prelu(b: Builder, call: Call, layer: digital.WitinPReLU, input: Value) -> Value:
    """WitinPReLU: a table a channel."""
    scales = _scales(layer)
    x = b.on_grid(f"{call.name}.input", input, grid(layer.x_quant_bits, True, scales["x"]))
    on = grid(layer.weight_quant_bits, True, scales["weight"])
    slope_codes = half_even_codes(layer.weight.detach().cpu().numpy(), scales["weight"], on.lo, on.hi)
    slope = torch.from_numpy(slope_codes).view(-1, 1) / scales["weight"]

    def real(codes: Tensor) -> Tensor:
        u = codes / scales["x"]
        return torch.where(u > 0, u, u * slope.to(u.dtype))

    return _tabulated(b, call, layer, "prelu", real, x, scales["y"], layer.output_fp_clip)


def _root(codes: Tensor, shift: int) -> Tensor:
    return torch.floor(torch.sqrt(codes * 2.0**shift))


def sqrt(b: Builder, call: Call, layer: digital.WitinSqrt, input: Value) -> Value:
    """WitinSqrt."""
    scales, shift = _scales(layer), layer.sqrt_left_shift_bits
    x = b.on_grid(f"{call.name}.input", input, grid(layer.x_quant_bits, False, scales["x"]))

    def real(codes: Tensor) -> Tensor:
        return _root(codes, shift) / 2.0 ** (shift // 2) / math.sqrt(scales["x"])

    return _tabulated(b, call, layer, "sqrt", real, x, scales["y"], layer.output_fp_clip)


def invsqrt(b: Builder, call: Call, layer: digital.WitinInvSqrt, input: Value) -> Value:
    """WitinInvSqrt: 0 where the root is 0."""
    scales, shift = _scales(layer), layer.sqrt_left_shift_bits
    x = b.on_grid(f"{call.name}.input", input, grid(layer.x_quant_bits, False, scales["x"]))
    numerator = 2.0 ** (shift // 2) * math.sqrt(scales["x"])

    def real(codes: Tensor) -> Tensor:
        root = _root(codes, shift)
        return torch.where(root == 0, torch.zeros_like(root), numerator / root.clamp(min=1))

    return _tabulated(b, call, layer, "invsqrt", real, x, scales["y"], layer.output_fp_clip)


def batch_norm(b: Builder, call: Call, layer: digital.WitinBatchNorm2d, input: Value) -> Value:
    """WitinBatchNorm2d on its running statistics; they are folded in float32, as the training layer folds them."""
    if layer.running_mean is None or layer.running_var is None:
        raise UnsupportedError("batch norm without running statistics depends on the other samples of the batch")
    scales, eps = _scales(layer), layer.eps
    mean, var = layer.running_mean, layer.running_var
    x_grid = grid(layer.x_quant_bits, True, scales["x"])
    x = b.on_grid(f"{call.name}.input", input, x_grid)
    if not layer.affine:
        centre, spread = (
            torch.from_numpy(half_even_codes(v.cpu().numpy(), scales["x"], x_grid.lo, x_grid.hi)).view(-1, 1)
            for v in (mean, torch.sqrt(var))
        )

        def real(codes: Tensor) -> Tensor:
            return (codes - centre) / (spread.to(codes.dtype) + eps)

        return _tabulated(b, call, layer, "batch_norm", real, x, scales["y"])
    weight = layer.weight / torch.sqrt(var + eps)
    bias = layer.bias - mean * weight
    scale = scales["x"] * scales["weight"]
    w_grid = grid(layer.weight_quant_bits, True, scales["weight"])
    b_grid = grid(layer.x_quant_bits + layer.weight_quant_bits, True, scale)
    w_codes, b_codes = (
        half_even_codes(v.detach().cpu().numpy(), on.scale, on.lo, on.hi)
        for v, on in ((weight, w_grid), (bias, b_grid))
    )
    y = grid(layer.y_bits, True, scales["y"])
    op = ops.MultiplyAdd(
        b.keep(f"{call.name}.weight", w_codes),
        b.keep(f"{call.name}.bias", b_codes),
        log2_of(scales["y"] / scale, "ratio of scales"),
        y.lo,
        y.hi,
    )
    exact = -x_grid.lo * int(np.abs(w_codes).max()) + int(np.abs(b_codes).max()) <= FLOAT32_EXACT
    return b.add(call.name, op, (x,), y, layer=call.layer, exact_in_float32=exact)


# --- two operands


def _pair(b: Builder, call: Call, layer: Any, x1: Any, x2: Any, left: float, right: float) -> tuple[Value, Value]:
    """Both operands on their grids."""
    return (
        b.on_grid(f"{call.name}.x1", x1, grid(layer.x_left_quant_bits, True, left)),
        b.on_grid(f"{call.name}.x2", x2, grid(layer.x_right_quant_bits, True, right)),
    )


def _closed(
    b: Builder,
    call: Call,
    layer: Any,
    kind: type[Any],
    pair: tuple[Value, Value],
    scale: float,
    scale_y: float,
    most: int,
) -> Value:
    """A result at `scale`, of magnitude `most` at the most, brought to the output grid."""
    y, shift = grid(layer.y_bits, True, scale_y), log2_of(scale_y / scale, "ratio of scales")
    # beyond 2^24 float32 rounds the result, which shows unless it saturates the output anyway
    exact = most <= FLOAT32_EXACT or shift + 24 >= layer.y_bits
    return b.add(call.name, kind(shift, y.lo, y.hi), pair, y, layer=call.layer, exact_in_float32=exact)


def add(b: Builder, call: Call, layer: digital.WitinElementAdd, x1: Any, x2: Any) -> Value:
    """WitinElementAdd, at the smaller scale."""
    scales = _scales(layer)
    scale = min(scales["x1"], scales["x2"])
    pair = _pair(b, call, layer, x1, x2, scale, scale)
    return _closed(b, call, layer, ops.Add, pair, scale, scales["y"], -pair[0].type.lo - pair[1].type.lo)


def mul(b: Builder, call: Call, layer: digital.WitinElementMul, x1: Any, x2: Any) -> Value:
    """WitinElementMul."""
    scales = _scales(layer)
    pair = _pair(b, call, layer, x1, x2, scales["x1"], scales["x2"])
    scale = scales["x1"] * scales["x2"]
    return _closed(b, call, layer, ops.Mul, pair, scale, scales["y"], pair[0].type.lo * pair[1].type.lo)


def matmul(b: Builder, call: Call, layer: digital.WitinMatMul, x1: Value, x2: Value) -> Value:
    """WitinMatMul."""
    scales = _scales(layer)
    pair = _pair(b, call, layer, x1, x2, scales["x1"], scales["x2"])
    inner = (x1.shape if isinstance(x1, Tensor) else call.input_shapes[0][0])[-1]
    most = inner * pair[0].type.lo * pair[1].type.lo
    return _closed(b, call, layer, ops.MatMul, pair, scales["x1"] * scales["x2"], scales["y"], most)


def divide(b: Builder, call: Call, layer: digital.WitinElementDivide, x1: Any, x2: Any) -> Value:
    """WitinElementDivide: the quotient is an integer at scale_left / scale_right, limited to ±8."""
    scales = _scales(layer)
    ratio = scales["x1"] / scales["x2"]
    if ratio > 1 << 20 or max(layer.x_left_quant_bits, layer.x_right_quant_bits) > 20:
        raise UnsupportedError(
            "scales so far apart, or codes so wide, that 1/0 is not ±8", given=ratio, allowed="up to 2^20"
        )
    pair = _pair(b, call, layer, x1, x2, scales["x1"], scales["x2"])
    y = grid(layer.y_bits, True, scales["y"])
    lo, hi = clipped_range(layer.output_fp_clip, scales["y"], y.lo, y.hi)
    lo, hi = clipped_range(_QUOTIENT_LIMIT, scales["y"], lo, hi)
    op = ops.Divide(log2_of(scales["y"] / ratio, "ratio of scales"), lo, hi)
    return b.add(call.name, op, pair, y, lo, hi, call.layer)


def cat(b: Builder, call: Call, layer: digital.WitinCat, x1: Value, x2: Value) -> Value:
    """WitinCat: each operand to its own grid, widened to the wider's bits, then to the output's."""
    scales, wide = _scales(layer), max(layer.x_left_quant_bits, layer.x_right_quant_bits)
    y = grid(layer.y_bits, True, scales["y"])
    lo, hi = clipped_range(layer.output_fp_clip, scales["y"], y.lo, y.hi)
    parts = []
    for side, x, bits in (("x1", x1, layer.x_left_quant_bits), ("x2", x2, layer.x_right_quant_bits)):
        own = b.on_grid(f"{call.name}.{side}", x, grid(wide, True, scales[side] * 2.0 ** (wide - bits)))
        parts.append(b.on_grid(f"{call.name}.{side}.y", own, y, lo, hi))
    axis = layer.dim % len(call.shapes[0])
    if call.shapes[0][axis] != call.shapes[1][axis]:
        raise UnsupportedError("a concatenation along the batch")
    return b.add(call.name, ops.Cat(axis), tuple(parts), y, lo, hi, call.layer)


def hypot(b: Builder, call: Call, layer: digital.WitinHypot, x1: Value, x2: Value) -> Value:
    """WitinHypot: both operands on the left one's grid."""
    scales, shift, bits = _scales(layer), layer.sqrt_left_shift_bits, layer.x_left_quant_bits
    on = grid(bits, True, scales["x1"])
    pair = b.on_grid(f"{call.name}.x1", x1, on), b.on_grid(f"{call.name}.x2", x2, on)
    y = grid(layer.y_bits, False, scales["y"])
    lo, hi = clipped_range(layer.output_fp_clip, scales["y"], y.lo, y.hi)
    op = ops.Hypot(shift, log2_of(scales["y"] / scales["x1"], "ratio of scales") - shift // 2, lo, hi)
    return b.add(call.name, op, pair, y, lo, hi, call.layer, 2 * bits - 1 + shift <= 24)


# --- reductions


def mean(b: Builder, call: Call, layer: digital.WitinMean, input: Value) -> Value:
    """WitinMean: the output keeps the input's scale."""
    scales = _scales(layer)
    shape, twice = call.input_shapes[0]
    dims = tuple(range(len(shape))) if layer.dim is None else (int(layer.dim) % len(shape),)  # type: ignore[arg-type]  # an int
    if any(shape[d] != twice[d] for d in dims):
        raise UnsupportedError("a mean over the batch")
    on = grid(layer.x_quant_bits, True, scales["x"])
    x = b.on_grid(f"{call.name}.input", input, on)
    register = grid(layer.mean_sum_quant_bits, True, 1.0)
    op = ops.Mean(dims, layer.keepdim and layer.dim is not None, register.lo, register.hi)
    most = min(math.prod(shape[d] for d in dims) * -on.lo, -register.lo)
    return b.add(call.name, op, (x,), on, layer=call.layer, exact_in_float32=most < FLOAT32_EXACT // 2)


def layer_norm(b: Builder, call: Call, layer: digital.WitinClnBn2d, input: Value) -> Value:
    """WitinClnBn2d."""
    scales, shift, bits = _scales(layer), layer.sqrt_left_shift_bits, layer.x_quant_bits
    x = b.on_grid(f"{call.name}.input", input, grid(bits, True, scales["x"]))
    y = grid(layer.y_bits, True, scales["y"])
    lo, hi = clipped_range(layer.output_fp_clip, scales["y"], y.lo, y.hi)
    register: ValueType = grid(layer.mean_sum_quant_bits, True, 1.0)
    log2_scale = log2_of(scales["y"], "scale_y")
    op = ops.LayerNorm(layer.cln_simple, shift, log2_scale, register.lo, register.hi, lo, hi)
    shape = call.input_shapes[0][0]
    most = 1 << (bits - (1 if layer.cln_simple else 0))  # of a deviation
    finest = 2.0 ** max(-(shift // 2 + log2_scale), 0)  # a tie is at least 1 / (2 * root * finest) away
    exact = (
        shape[1] * shape[3] * most * most < FLOAT32_EXACT // 2
        and most * most * 2.0**shift <= FLOAT32_EXACT
        and most * 2.0 ** (shift / 2) * finest * 2.0 ** (layer.y_bits + 1) < FLOAT32_EXACT
    )
    return b.add(call.name, op, (x,), y, lo, hi, call.layer, exact)


LAYERS: dict[type[Any], Any] = {
    digital.WitinGELU: gelu,
    digital.WitinSigmoid: _limited("sigmoid", torch.sigmoid),
    digital.WitinTanh: _limited("tanh", torch.tanh),
    digital.WitinPReLU: prelu,
    digital.WitinSqrt: sqrt,
    digital.WitinInvSqrt: invsqrt,
    digital.WitinBatchNorm2d: batch_norm,
    digital.WitinElementAdd: add,
    digital.WitinElementMul: mul,
    digital.WitinMatMul: matmul,
    digital.WitinElementDivide: divide,
    digital.WitinCat: cat,
    digital.WitinHypot: hypot,
    digital.WitinMean: mean,
    digital.WitinClnBn2d: layer_norm,
}
"""Rules by class of layer."""

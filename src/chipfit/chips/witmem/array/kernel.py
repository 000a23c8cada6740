"""The fast form of `array_rule`: one autograd node, chains in place, inputs saved by reference, no mask stored.

It gives the rule's codes and, without noise, its gradients to the last bit (tests compare both with `==`), for every
layer without an input split, in fewer passes over memory. Where it does not apply, `array_forward` falls back on the
rule.

Sign handling: `q(-w) == -q(w)` unless a weight saturates, and then PN mode needs only one pass on signed codes, because
the positive and the negative part of an input never meet. Only the weight's gradient stays the sum of two parts that
are rounded apart, where an input has both signs; layers with the silicon's rounding, which the vendor's library lacks,
take it in one sum. With noise the two parts see different cells, so both run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chipfit.arithmetic.fake_quant import clip_window, masked_gradient
from chipfit.chips.witmem.array.numbers import BIAS_UNIT, ArraySpec, Geometry
from chipfit.chips.witmem.array.rule import CellDraw, array_rule, draw_cells
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.rounding import rule_named
from chipfit.noise.effects import CellNoise

_masked_gradient_into = torch.ops.aten.hardtanh_backward.grad_input
_convolution_backward = torch.ops.aten.convolution_backward


def array_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    lin: Geometry,
    spec: ArraySpec,
    watch: bool = False,
    draw: CellDraw | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute an array layer by the fastest way that gives the rule's codes.

    Args:
        x: Input, already padded where the padding is not zeros.
        weight: Float weight in torch's layout.
        bias: Float bias, shape `(out,)`.
        lin: The layer's linear map.
        spec: The numbers in force.
        watch: Whether to return the largest magnitude of the noise-free real output too.
        draw: The cells' noise, where several forwards meet the same cells; None draws it here.

    Returns:
        `(y, largest)`: output on its grid; its largest magnitude before it was quantised, or None without `watch`.
    """
    if not _fused(spec):
        y, v = array_rule(x, weight, bias, lin, spec, draw)
        return y, v.detach().abs().amax() if watch else None
    out = _ArrayLayer.apply(x, weight, bias, lin, spec, watch, draw)  # type: ignore[no-untyped-call]  # torch types no apply
    if not watch:
        return out, None
    y, largest_sum = out
    largest = largest_sum / spec.product_scale
    return y, largest.clamp_max(spec.fp_clip) if spec.fp_clip else largest


def _fused(spec: ArraySpec) -> bool:
    if spec.splits or spec.shared_offset or not (spec.noise is None or isinstance(spec.noise, CellNoise)):
        return False
    # Two quotients added in floating point equal one quotient of the sum only if the divisions are exact.
    return spec.power_of_two or not (spec.per_pass_quotient and spec.negative is HandleNegInType.PN)


@dataclass
class _Pass:
    """One pass through the array: which sign of the input it takes, and its codes."""

    sign: float  # 1: x; -1: -x, the rest clipped away; 0: both signs at once, or side by side
    weight_sign: float
    x_codes: Tensor
    w_codes: Tensor
    response: Tensor | None = None  # sign(w_codes) * eps: what the noise makes of the weight's gradient
    doubled: bool = False  # x beside -x, as twice the inputs, each half with its own cells


class _ArrayLayer(torch.autograd.Function):
    """y = round(clamp((q_w q_x + B) / G)) / s_y, with straight-through gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        lin: Geometry,
        spec: ArraySpec,
        watch: bool,
        draw: CellDraw | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        passes = _passes(x, weight, lin, spec)
        bias_units, bias_code = _bias_codes(bias, passes[0].w_codes, lin, spec)
        biases, bias_response = [bias_code], None
        largest_sum: Tensor | None = None
        cells = draw or draw_cells(weight, lin, spec)
        if cells is not None and isinstance(spec.noise, CellNoise):
            if watch:
                largest_sum = _accumulate(passes, biases, lin).abs_().amax()
            noise, level = spec.noise, spec.noise_level
            for one, eps in zip(passes, cells.passes, strict=True):
                clean, one.w_codes = one.w_codes, noise.disturb(one.w_codes, level, eps)
                one.response = clean.sign_().mul_(eps)
            rows = zip((bias_code, torch.zeros_like(bias_code)), cells.rows, strict=False)
            biases = [noise.disturb_rows(code, spec.bias_rows, level, eps) for code, eps in rows]
            bias_response = bias_code.sign() * cells.rows[0]
        t = _accumulate(passes, biases, lin)
        if spec.noise is None and t.device.type != "cpu":
            t.round_()  # a GPU may convolve through transforms whose sums of integers are off by a fraction
        if watch and spec.noise is None:
            largest_sum = t.abs().amax()
        if spec.noise is not None:
            t.div_(spec.whole_g)
        elif spec.power_of_two:
            t.mul_(1.0 / spec.g)
        else:
            t.div_(spec.product_scale).mul_(spec.scale_y)
        y = t.clamp(*_output_range(spec))
        y = y.round_() if spec.rounding == "witin_nn" else rule_named(spec.rounding)(y)
        y = y.mul_(1.0 / spec.scale_y) if spec.power_of_two else y.div_(spec.scale_y)
        ctx.passes = [(one.sign, one.weight_sign, one.response is not None, one.doubled) for one in passes]
        tensors = [z for one in passes for z in (one.x_codes, one.w_codes, one.response) if z is not None]
        ctx.save_for_backward(x, weight, t, bias_units, bias_response, *tensors)
        ctx.lin, ctx.spec = lin, spec
        if largest_sum is None:
            return _like(y, x)
        ctx.mark_non_differentiable(largest_sum)
        return _like(y, x), largest_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, t, bias_units, bias_response, *tensors = ctx.saved_tensors
        lin, spec, stack = ctx.lin, ctx.spec, iter(tensors)
        passes = [
            _Pass(sign, w_sign, next(stack), next(stack), next(stack) if noisy else None, doubled)
            for sign, w_sign, noisy, doubled in ctx.passes
        ]
        low, high = _output_range(spec)
        window = clip_window(1.0, low, high, 0.0, False, t.dtype)
        if not spec.power_of_two:
            grad = grad / spec.scale_y
        if t.stride() == grad.stride():
            g = masked_gradient(grad, t, *window)
        else:  # convert first: an element-wise pass over two layouts is slow
            g = torch.empty_like(t).copy_(grad)
            _masked_gradient_into(g, t, *window, grad_input=g)
        # code = acc / G and y = code / s_y, so every gradient by the accumulator carries 1 / (G * s_y)
        if spec.power_of_two:  # which is exact, and left to the end
            step = 1.0 / spec.product_scale
        else:
            g = g.div_(spec.whole_g) if spec.noise is not None else g.mul_(spec.scale_y).div_(spec.product_scale)
            step = 1.0

        need_x, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        gradients, grad_bias = _backward_passes(g, passes, lin, spec, need_x, need_w)
        if bias_response is not None and isinstance(spec.noise, CellNoise):
            grad_bias = spec.noise.rows_gradient(grad_bias, bias_response, spec.noise_level)
        lowest, highest = spec.bias_range
        grad_bias = masked_gradient(grad_bias, bias_units, *clip_window(1.0, lowest, highest, 0.0, False, t.dtype))
        total_x: Tensor | None = None
        total_w: Tensor | None = None
        for sign, weight_sign, gx, gw in gradients:
            if gx is not None:
                gx = _mask_input(_like(gx, x), x, sign, spec)
                total_x = gx if total_x is None else total_x.add_(gx)
            if gw is not None:
                if spec.shift_code:
                    gw.sub_(_per_output(grad_bias.mul(spec.shift_code), lin, gw.dim()))
                if spec.per_pass_quotient:  # each pass quantised a weight of its own; else one mask serves both
                    _masked_gradient_into(gw, weight, *_weight_window(spec, weight_sign, t.dtype), grad_input=gw)
                total_w = gw if total_w is None else total_w.sub_(gw) if weight_sign < 0 else total_w.add_(gw)
        if total_x is not None and step * spec.scale_x != 1.0:
            total_x.mul_(step * spec.scale_x)
        if total_w is not None:
            if not spec.per_pass_quotient:
                _masked_gradient_into(total_w, weight, *_weight_window(spec, 1.0, t.dtype), grad_input=total_w)
            if step * spec.scale_weight != 1.0:
                total_w.mul_(step * spec.scale_weight)
        if step * spec.product_scale != 1.0:
            grad_bias.mul_(step * spec.product_scale)
        return total_x, total_w, grad_bias, None, None, None, None


def _passes(x: Tensor, weight: Tensor, lin: Geometry, spec: ArraySpec) -> list[_Pass]:
    if spec.negative is HandleNegInType.PN and spec.noise is not None and not spec.per_pass_quotient:
        return [_doubled(x, weight, lin, spec)]
    q_w = _weight_codes(weight, 1.0, spec)
    if spec.negative is not HandleNegInType.PN:
        return [_Pass(1.0, 1.0, _input_codes(x, 1.0, spec), q_w)]
    if spec.noise is None and (not spec.per_pass_quotient or _odd_symmetric(weight, spec)):
        return [_Pass(0.0, 1.0, _input_codes(x, 0.0, spec), q_w)]
    return [
        _Pass(1.0, 1.0, _input_codes(x, 1.0, spec), q_w),
        _Pass(-1.0, -1.0, _input_codes(x, -1.0, spec), _weight_codes(weight, -1.0, spec)),
    ]


def _doubled(x: Tensor, weight: Tensor, lin: Geometry, spec: ArraySpec) -> _Pass:
    """Both signs as one array, written in place: memory of this size is dear to get."""
    channels, inputs = x.shape[lin.channel_dim], weight.shape[1]
    codes = torch.cat([x, x], lin.channel_dim)
    codes.narrow(lin.channel_dim, channels, channels).neg_()
    codes.mul_(spec.scale_x).clamp_(*spec.x_range).round_()
    q_w = weight.new_empty(weight.shape[0], 2 * inputs, *weight.shape[2:])
    positive, negative = q_w.chunk(2, 1)
    torch.mul(weight, spec.scale_weight, out=positive)
    torch.neg(positive.clamp_(*_weight_clip(spec)).round_(), out=negative)
    return _Pass(0.0, 1.0, codes, q_w, doubled=True)


def _input_codes(x: Tensor, sign: float, spec: ArraySpec) -> Tensor:
    lo, hi = spec.x_range
    codes = x.mul(spec.scale_x * (sign or 1.0))
    if spec.shift_code:
        codes.add_(spec.shift_code)
    return codes.clamp_(-hi if sign == 0 else lo, hi).round_()


def _weight_clip(spec: ArraySpec) -> tuple[float, float]:
    """Clip of the scaled weight: its codes' range, or `w_clip` where that is narrower."""
    lo, hi = spec.weight_range
    if not spec.w_clip:
        return lo, hi
    clip = float(np.float32(spec.w_clip) * np.float32(spec.scale_weight))
    # torch.clamp gives its upper bound where the two cross, as a negative w_clip makes them
    return (max(lo, -clip), min(hi, clip)) if clip > 0 else (min(max(lo, clip), hi),) * 2


def _weight_codes(weight: Tensor, sign: float, spec: ArraySpec) -> Tensor:
    return weight.mul(sign * spec.scale_weight).clamp_(*_weight_clip(spec)).round_()


def _weight_window(spec: ArraySpec, sign: float, dtype: torch.dtype) -> tuple[float, float]:
    below, above = clip_window(spec.scale_weight, *_weight_clip(spec), 0.0, False, dtype)
    return (below, above) if sign > 0 or not spec.per_pass_quotient else (-above, -below)


def _odd_symmetric(weight: Tensor, spec: ArraySpec) -> bool:
    """Whether negating a weight negates its code and keeps its gradient: no weight lies beyond the highest code."""
    largest = weight.detach().abs().amax() if weight.numel() else weight.new_zeros(())
    return bool(largest * spec.scale_weight <= spec.weight_range[1])


def _bias_codes(bias: Tensor, q_w: Tensor, lin: Geometry, spec: ArraySpec) -> tuple[Tensor, Tensor]:
    """Bias in units of 128 before it is clipped, and its codes."""
    if spec.power_of_two and not spec.shift_code:
        units = bias.mul(spec.product_scale / BIAS_UNIT)
    else:
        units = bias.mul(spec.product_scale)
        if spec.shift_code:
            units.sub_(lin.sum_over_inputs(q_w), alpha=spec.shift_code)
        units.div_(BIAS_UNIT)
    return units, units.clamp(*spec.bias_range).round_().mul_(BIAS_UNIT)


def _output_range(spec: ArraySpec) -> tuple[float, float]:
    """Clip of the output code before it is rounded: its bits, or `fp_clip` where that is narrower."""
    lo, hi = spec.y_range
    if not spec.fp_clip:
        return lo, hi
    clip = float(np.float32(spec.fp_clip) * np.float32(spec.scale_y))
    return (max(lo, -clip), min(hi, clip)) if clip > 0 else (min(max(lo, clip), hi),) * 2


def _accumulate(passes: list[_Pass], biases: list[Tensor], lin: Geometry) -> Tensor:
    first = passes[0]
    total = lin(first.x_codes, first.w_codes, biases[0])
    if len(passes) == 1:
        return total
    return total.add_(lin(passes[1].x_codes, passes[1].w_codes, biases[1] if len(biases) == 2 else None))


def _rows(x: Tensor) -> Tensor:
    """View a tensor as a matrix over its last dimension; unlike `reshape(-1, n)` an empty one too."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


_Gradient = tuple[float, float, Tensor | None, Tensor | None]
"""Sign of the input, sign of the weight, and the gradients by both."""


def _backward_passes(
    g: Tensor, passes: list[_Pass], lin: Geometry, spec: ArraySpec, need_x: bool, need_w: bool
) -> tuple[list[_Gradient], Tensor]:
    """Gradients of each sign by its input and weight codes, and the gradient by the bias code."""
    gradients: list[_Gradient] = []
    grad_bias: list[Tensor] = []  # of the first pass: the others hold no bias
    for one in passes:
        codes, both = one.x_codes, False
        if need_w and one.sign == 0 and not one.doubled and spec.rounding == "witin_nn":
            both = torch.compiler.is_compiling() or _has_both_signs(one.x_codes)
            codes = one.x_codes.clamp_min(0) if both else one.x_codes
        gx, gw, gb = _linear_backward(g, codes, one.w_codes, lin, need_x, need_w, not grad_bias)
        grad_bias += [] if gb is None else [gb]
        if both and gw is not None:
            _, negative, _ = _linear_backward(g, one.x_codes.clamp_max(0), one.w_codes, lin, False, True, False)
            gw = gw if negative is None else gw.add_(negative)
        signs = ((1.0, 1.0), (-1.0, -1.0)) if one.doubled else ((one.sign, one.weight_sign),)
        parts = _parts(gx, len(signs), lin.channel_dim), _parts(gw, len(signs), 1), _parts(one.response, len(signs), 1)
        for (sign, weight_sign), part_x, part_w, response in zip(signs, *parts, strict=True):
            if part_w is not None and response is not None and isinstance(spec.noise, CellNoise):
                spec.noise.gradient(part_w, response, spec.noise_level)
            gradients.append((sign, weight_sign, part_x, part_w))
    return gradients, grad_bias[0]


def _parts(x: Tensor | None, count: int, dim: int) -> tuple[Tensor | None, ...]:
    return (None,) * count if x is None else (x,) if count == 1 else x.chunk(count, dim)


def _has_both_signs(codes: Tensor) -> bool:
    if not codes.numel():
        return False
    low, high = codes.aminmax()
    return bool((low < 0) & (high > 0))


def _linear_backward(
    g: Tensor, x: Tensor, weight: Tensor, lin: Geometry, need_x: bool, need_w: bool, need_b: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if lin.kind == "linear":
        rows = _rows(g)
        gx = (rows @ weight).view(x.shape) if need_x else None
        gw = rows.t() @ _rows(x) if need_w else None
        return gx, gw, g.sum(list(range(g.dim() - 1))) if need_b else None
    out = weight.shape[1] * lin.groups if lin.kind == "conv_transpose" else weight.shape[0]
    gx, gw, gb = _convolution_backward(
        g,
        x,
        weight,
        [out],
        lin.stride,
        lin.padding,
        lin.dilation,
        lin.kind == "conv_transpose",
        lin.output_padding or (0,) * len(lin.stride),
        lin.groups,
        (need_x, need_w, need_b),
    )
    return gx, gw, gb


def _mask_input(gx: Tensor, x: Tensor, sign: float, spec: ArraySpec) -> Tensor:
    """Pass the gradient of the inputs that one pass takes; exact zeros pass none in PN mode."""
    below, above = clip_window(spec.scale_x, *spec.x_range, float(spec.shift_code), False, x.dtype)
    if spec.negative is HandleNegInType.PN:
        below = -above if sign <= 0 else 0.0
        above = above if sign >= 0 else 0.0
    _masked_gradient_into(gx, x, below, above, grad_input=gx)
    if sign < 0:
        gx.neg_()
    return gx.masked_fill_(x == 0, 0.0) if sign == 0 else gx


def _like(y: Tensor, x: Tensor) -> Tensor:
    """Give a result the memory layout that torch's own layer would give it."""
    return y.contiguous() if x.is_contiguous() and not y.is_contiguous() else y


def _per_output(values: Tensor, lin: Geometry, dims: int) -> Tensor:
    """View one value per output channel so that it broadcasts over this layer's weight."""
    return values.view(1, -1, *[1] * (dims - 2)) if lin.kind == "conv_transpose" else values.view(-1, *[1] * (dims - 1))

"""The arithmetic of a Witmem array layer, written once and plainly (spec/witmem-array.md, sections 4 to 6).

`array_rule` computes on integer codes held in floating point; its gradients are those of autograd with straight-through
rounding, taken in the order of operations that gives the vendor's gradients to the last bit. It covers every option.
`kernel.py` holds a faster form of its common cases, tested to be equal.

    q_x = round(clamp(x * s_x))      q_w = round(clamp(w * s_w))      B = 128 * round(clamp(b * s_x * s_w / 128))
    y   = round(clamp((q_w q_x + B) / G)) / s_y                        G = s_x * s_w / s_y
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chipfit.arithmetic.rounding import floor, half_even, straight_through
from chipfit.chips.witmem.array.numbers import BIAS_UNIT, ArraySpec, Geometry
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.rounding import rule_named
from chipfit.errors import InvalidValueError
from chipfit.noise.effects import CellNoise, ColumnNoise, draw_shared_offset

_round = straight_through(half_even)
_floor = straight_through(floor)


@dataclass(frozen=True)
class CellDraw:
    """One chip's cells: a standard normal draw for each of them, from `draw_cells`.

    Args:
        passes: One tensor for each array operation, shape of the weight; where one operation takes both signs of its
            input, it has twice the inputs.
        rows: Draws of the bias rows' cells, `(bias_rows, out)` each: of the rows that hold the bias, and, where a
            second pass is an array operation of its own, of its rows, which hold nothing.
        offset: Offset that all outputs share, in accumulator codes, or None.
    """

    passes: tuple[Tensor, ...]
    rows: tuple[Tensor, ...]
    offset: Tensor | None = None


def array_rule(
    x: Tensor, weight: Tensor, bias: Tensor, lin: Geometry, spec: ArraySpec, draw: CellDraw | None = None
) -> tuple[Tensor, Tensor]:
    """Compute an array layer.

    Args:
        x: Input, already padded where the padding is not zeros.
        weight: Float weight in torch's layout.
        bias: Float bias, shape `(out,)`.
        lin: The layer's linear map.
        spec: The numbers in force.
        draw: The cells' noise, where several forwards meet the same cells; None draws it here.

    Returns:
        `(y, v)`: the output on its grid, and the noise-free real output before it was quantised (of a split layer only
        the analog half), which auto-scale watches.
    """
    w = weight.clamp(-spec.w_clip, spec.w_clip) if spec.w_clip else weight
    scaled = w * spec.scale_weight
    q_w = _round(torch.clamp(scaled, *spec.weight_range))
    q_w_neg = _round(torch.clamp(-scaled, *spec.weight_range)) if spec.per_pass_quotient else -q_w
    bias_code = _bias_codes(bias, lin, spec, q_w)
    inputs = _input_codes(x, spec)
    cells = draw or draw_cells(weight, lin, spec)
    if spec.splits:
        return _split(inputs, (q_w, q_w_neg), bias_code, lin, spec, cells)

    with torch.set_grad_enabled(torch.is_grad_enabled() and not spec.noise_level):
        v = _clip(_quotient(inputs, (q_w, q_w_neg), bias_code, lin, spec), spec)
    t = v * spec.scale_y
    if spec.noise_level:
        noisy = _noisy_sum(inputs, (q_w, q_w_neg), bias_code, lin, spec, cells) / spec.whole_g
        t = _clip(noisy / spec.scale_y, spec) * spec.scale_y if spec.fp_clip else noisy
    return _requantise(t, spec) / spec.scale_y, v


def _input_codes(x: Tensor, spec: ArraySpec) -> list[Tensor]:
    """Input codes of each pass through the array."""
    if spec.negative is HandleNegInType.PN:
        return [_round(torch.clamp(part * spec.scale_x, *spec.x_range)) for part in (torch.relu(x), torch.relu(-x))]
    if spec.negative is HandleNegInType.Shift:
        return [_round(torch.clamp(x * spec.scale_x + spec.shift_code, *spec.x_range))]
    return [_round(torch.clamp(x * spec.scale_x, *spec.x_range))]


def _bias_codes(bias: Tensor, lin: Geometry, spec: ArraySpec, q_w: Tensor) -> Tensor:
    """Bias codes, one per output channel, multiples of 128; Shift's constant contribution is taken back here."""
    code = bias * spec.product_scale
    compensation = spec.shift_code * lin.sum_over_inputs(q_w) if spec.negative is HandleNegInType.Shift else None
    if not spec.splits:
        if compensation is not None:
            code = code - compensation
        return BIAS_UNIT * _round(torch.clamp(code / BIAS_UNIT, *spec.bias_range))
    analog = BIAS_UNIT * _round(code / BIAS_UNIT) - _digital_bias(bias, spec)
    if compensation is not None:
        analog = BIAS_UNIT * _round((analog - compensation) / BIAS_UNIT)
    return BIAS_UNIT * torch.clamp(analog / BIAS_UNIT, *spec.bias_range)


def held_bias(bias: Tensor, weight: Tensor, lin: Geometry, spec: ArraySpec) -> Tensor:
    """What is added for a bias, in units of the output: on the rows' grid and within what they hold.

    Args:
        bias: Float bias, shape `(out,)`.
        weight: Float weight, for what Shift mode takes back.
        lin: The layer's linear map.
        spec: The numbers in force.

    Example:
        >>> spec = ArraySpec(scale_x=256, scale_weight=1024, scale_y=16)
        >>> held_bias(torch.tensor([0.25, -4.6]), torch.zeros(2, 1), Geometry("linear"), spec)
        tensor([ 0.2500, -0.5000])
    """
    q_w = _round(torch.clamp(weight * spec.scale_weight, *spec.weight_range))
    code = _bias_codes(bias, lin, spec, q_w)
    if spec.splits:
        code = code + _digital_bias(bias, spec)
    if spec.negative is HandleNegInType.Shift:
        code = code + spec.shift_code * lin.sum_over_inputs(q_w)
    return code / spec.product_scale


def _digital_bias(like: Tensor, spec: ArraySpec) -> Tensor:
    if spec.bias_digital is None:
        return torch.zeros((), dtype=like.dtype, device=like.device)
    digital = spec.bias_digital.to(like) * spec.product_scale
    return BIAS_UNIT * _round(digital / BIAS_UNIT)


def _quotient(
    inputs: list[Tensor], weights: tuple[Tensor, Tensor], bias: Tensor, lin: Geometry, spec: ArraySpec
) -> Tensor:
    """Noise-free accumulator over `scale_x * scale_weight`, in the vendor's order of operations.

    The bias goes through the convolution: torch sums its gradient in another order there than in an addition.
    """
    total = lin(inputs[0], weights[0], bias)
    if len(inputs) == 1:
        return total / spec.product_scale
    negative = lin(inputs[1], weights[1])
    if spec.per_pass_quotient:
        return total / spec.product_scale + negative / spec.product_scale
    return (total + negative) / spec.product_scale


def _noisy_sum(
    inputs: list[Tensor],
    weights: tuple[Tensor, Tensor],
    bias: Tensor,
    lin: Geometry,
    spec: ArraySpec,
    cells: CellDraw | None,
) -> Tensor:
    """Noisy accumulator: the sum over all passes and the bias rows."""
    passes = list(zip(inputs, weights, strict=False))  # one input in FALSE and Shift mode, two in PN
    if isinstance(spec.noise, ColumnNoise):
        clean = lin.per_channel(bias) + _total([lin(q, w) for q, w in passes])
        with torch.no_grad():
            variance = _total([lin(q * q, spec.noise.cell_variance(w, spec.noise_level)) for q, w in passes])
            column = spec.noise.draw(variance, spec.noise_level)
            column = column + torch.randn_like(column) * (spec.noise.output_floor * spec.whole_g)
        return clean + column
    if spec.noise is None or cells is None:
        raise InvalidValueError("a noise level needs a noise model", given=spec.noise_level, where=spec.where)
    if not spec.per_pass_quotient and len(inputs) == 2:  # one array operation, twice as high
        passes = [(torch.cat(inputs, lin.channel_dim), torch.cat(weights, 1))]
    rows = zip((bias, torch.zeros_like(bias)), cells.rows, strict=False)
    level, noise = spec.noise_level, spec.noise
    biases = [noise.disturb_rows(codes, spec.bias_rows, level, eps) for codes, eps in rows]
    drawn = zip(passes, cells.passes, biases, strict=True)
    total = _total([lin(q, noise.disturb(w, level, eps), b) for (q, w), eps, b in drawn])
    return total if cells.offset is None else total + cells.offset


def _total(terms: list[Tensor]) -> Tensor:
    return terms[0] + terms[1] if len(terms) == 2 else terms[0]


def draw_cells(weight: Tensor, lin: Geometry, spec: ArraySpec) -> CellDraw | None:
    """Draw the noise of all cells in the order of the vendor's library, so that equal seeds give equal noise.

    One array operation (Linear, `to_linear`) draws its weights column by column, in PN mode those of both signs as one
    array twice as high, then its bias rows. A convolution draws in the order of its weight, then its bias rows, and in
    PN mode both once more for the second pass (spec/witmem-array.md, section 6).

    Args:
        weight: The layer's weight: shape, dtype and device of the draws.
        lin: The layer's linear map.
        spec: The numbers in force.

    Returns:
        The draw, or None where no noise of single cells is in force.
    """
    if not (spec.noise_level and isinstance(spec.noise, CellNoise)):
        return None
    count = 2 if spec.negative is HandleNegInType.PN else 1
    out = weight.shape[1] if lin.kind == "conv_transpose" else weight.shape[0]
    like: Any = {"dtype": weight.dtype, "device": weight.device}
    passes: list[Tensor] = []
    rows: list[Tensor] = []
    with torch.no_grad():
        if spec.per_pass_quotient:
            for _ in range(count):
                passes.append(torch.randn(weight.shape, **like))
                rows.append(torch.randn(spec.bias_rows, out, **like))
        else:
            columns = torch.randn(count * weight[0].numel(), out, **like)
            passes = [columns.t().contiguous().view(out, -1, *weight.shape[2:])]
            rows = [torch.randn(spec.bias_rows, out, **like)]
        std = spec.shared_offset * spec.noise_level
        return CellDraw(tuple(passes), tuple(rows), draw_shared_offset(weight, std) if std else None)


def _split(
    inputs: list[Tensor],
    weights: tuple[Tensor, Tensor],
    bias: Tensor,
    lin: Geometry,
    spec: ArraySpec,
    cells: CellDraw | None,
) -> tuple[Tensor, Tensor]:
    """Wide inputs: the low 8 bits through the array, the rest through the digital unit, each rounded by itself."""
    high = [256 * _floor(q / 256) for q in inputs]
    low = [q - h for q, h in zip(inputs, high, strict=True)]
    shared = (weights[0], -weights[0])  # split layers negate after quantising
    biases = (bias, None)
    analog = _total([lin(q, w, b) for q, w, b in zip(low, shared, biases, strict=False)])
    v = analog / spec.product_scale
    t = v * spec.scale_y
    if spec.noise_level:
        t = _noisy_sum(low, shared, bias, lin, spec, cells) / spec.whole_g
    digital = _total([lin(q, w) for q, w in zip(high, shared, strict=False)])
    digital = digital + lin.per_channel(_digital_bias(bias, spec))
    code = _requantise(t, spec) + _round(digital / spec.whole_g)
    return torch.clamp(code, *spec.y_range) / spec.scale_y, v


def _clip(v: Tensor, spec: ArraySpec) -> Tensor:
    return torch.clamp(v, -spec.fp_clip, spec.fp_clip) if spec.fp_clip else v


def _requantise(t: Tensor, spec: ArraySpec) -> Tensor:
    rule = straight_through(rule_named(spec.rounding))
    return rule(torch.clamp(t, *spec.y_range))

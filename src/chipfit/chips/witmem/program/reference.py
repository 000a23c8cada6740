"""The reference of the operations that only Witmem programs have, in int64, one plain function each.

Written from the specifications (spec/wtm2101-silicon.md section 1, spec/witmem-array.md section 4,
spec/witmem-digital.md section 3) and from `ops.py`; it shares no arithmetic with the training layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.chips.witmem.program import ops
from chipfit.errors import UnknownOptionError
from chipfit.program.core.reference import mean_code, per_channel
from chipfit.program.dialect import Context
from chipfit.program.integers import half_even_quotient, integer_root, shifted

Tensors = Mapping[str, Tensor]

# --- the array


def wtm2101_quotient(a: Tensor, log2_g: int) -> Tensor:
    """`a / 2^log2_g` as the WTM2101's array rounds: half up above zero, below zero outward from a fraction of 0.75.

    Source: spec/wtm2101-silicon.md, section 1: `floor(v + 0.5)` for v >= 0 and `trunc(v - 0.25)` for v < 0.

    Example:
        >>> wtm2101_quotient(torch.tensor([2, 5, -2, -3, -6, -7]), 2)
        tensor([ 1,  1,  0, -1, -1, -2])
    """
    if log2_g < 0:
        return a << -log2_g
    g = 1 << log2_g
    outward = torch.div(2 * a + g, 2 * g, rounding_mode="floor")
    inward = torch.div(4 * a - g, 4 * g, rounding_mode="trunc")
    return torch.where(a >= 0, outward, inward)


def array_quotient(total: Tensor, log2_g: int, rounding: str) -> Tensor:
    """Accumulator over G by the array's rounding rule.

    Raises:
        UnknownOptionError: no such rule.
    """
    if rounding == "witin_nn":
        return shifted(total, -log2_g)
    if rounding == "wtm2101":
        return wtm2101_quotient(total, log2_g)
    raise UnknownOptionError("unknown rounding rule", given=rounding, allowed="witin_nn, wtm2101", where="array")


def linear_map(x: Tensor, weight: Tensor, geometry: ops.Geometry, bias: Tensor | None = None) -> Tensor:
    """The linear map of an array operation, in the dtype of its arguments."""
    if geometry.kind == "linear":
        return F.linear(x, weight, bias)
    return torch.convolution(
        x,
        weight,
        bias,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.kind == "conv_transpose",
        geometry.output_padding or (0,) * len(geometry.stride),
        geometry.groups,
    )


def array(q: Tensor, op: ops.Array, tensors: Tensors) -> Tensor:
    """An array operation; see `ops.Array` and `ops.Split`."""
    passes = [(q, tensors[op.weight_tensor])]
    if op.negative_weight_tensor is not None:
        passes = [(q.clamp(min=0), tensors[op.weight_tensor]), ((-q).clamp(min=0), tensors[op.negative_weight_tensor])]

    def accumulated(part: Callable[[Tensor], Tensor], bias_tensor: str) -> Tensor:
        total = per_channel(tensors[bias_tensor], op.geometry)
        for codes, weight in passes:
            total = total + linear_map(part(codes), weight, op.geometry)
        return total

    if op.split is None:
        total = accumulated(lambda codes: codes, op.bias_tensor)
        return array_quotient(total, op.log2_g, op.rounding).clamp(op.lo, op.hi)
    analog = array_quotient(accumulated(lambda codes: codes % 256, op.bias_tensor), op.log2_g, op.rounding)
    digital = accumulated(lambda codes: codes - codes % 256, op.split.digital_bias_tensor)
    analog = analog.clamp(op.split.analog_lo, op.split.analog_hi)
    return (analog + shifted(digital, -op.log2_g)).clamp(op.lo, op.hi)


def gru_states(op: ops.Gru, args: list[Tensor], tensors: Tensors, run_array: Callable[..., Tensor] = array) -> Tensor:
    """One GRU cell over a sequence; see `ops.Gru`."""
    steps = list(run_array(args[0], op.input, tensors).unbind(op.time_dim))
    size = steps[0].shape[-1] // 3
    h = args[1] if len(args) == 2 else steps[0].new_zeros(*steps[0].shape[:-1], size)
    gate_table, candidate_table = tensors[op.gate_table_tensor], tensors[op.candidate_table_tensor]

    def index(mine: Tensor, other: Tensor, shift: int) -> Tensor:
        return shifted((mine << op.input_shift) + (other << op.hidden_shift), shift).clamp(-512, 511) + 512

    states = []
    for a in reversed(steps) if op.reverse else steps:
        b = run_array(h, op.hidden, tensors)
        r, z = gate_table[index(a[..., : 2 * size], b[..., : 2 * size], op.gate_shift)].chunk(2, dim=-1)
        reset = shifted(r * b[..., 2 * size :], -7)
        n = candidate_table[index(a[..., 2 * size :], reset, op.candidate_shift)]
        h = shifted((128 - z) * n + z * h, -7).clamp(-128, 127)
        states.append(h)
    return torch.stack(states[::-1] if op.reverse else states, op.time_dim)


# --- the digital unit


def divide(op: ops.Divide, args: list[Tensor], _: Context) -> Tensor:
    """`Divide`."""
    a, b = args
    quotient = half_even_quotient(a * b.sign(), b.abs().clamp(min=1))
    by_sign = torch.where(a > 0, op.hi, torch.where(a < 0, op.lo, 0))
    return torch.where(b == 0, by_sign, shifted(quotient, op.shift)).clamp(op.lo, op.hi)


def _lifted(v: Tensor, bits: int) -> Tensor:
    """`floor(v * 2^bits)`: the operand of a root, whose floor takes nothing from the root's."""
    return v << bits if bits >= 0 else v >> -bits


def hypot(op: ops.Hypot, args: list[Tensor], _: Context) -> Tensor:
    """`Hypot`."""
    root = integer_root(_lifted(args[0] ** 2 + args[1] ** 2, op.root_shift))
    return shifted(root, op.shift).clamp(op.lo, op.hi)


def layer_norm(op: ops.LayerNorm, args: list[Tensor], _: Context) -> Tensor:
    """`LayerNorm`."""
    deviation = args[0] if op.simple else args[0] - mean_code(args[0], (1, 3), True, op.sum_lo, op.sum_hi)
    variance = mean_code(deviation**2, (1, 3), True, op.sum_lo, op.sum_hi)
    root = integer_root(_lifted(variance, op.root_shift))
    power = op.root_shift // 2 + op.log2_scale
    quotient = half_even_quotient(deviation << max(power, 0), root.clamp(min=1) << max(-power, 0))
    return torch.where(root == 0, 0, quotient).clamp(op.lo, op.hi)

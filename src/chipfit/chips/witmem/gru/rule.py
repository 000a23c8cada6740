"""The integer arithmetic of a GRU cell on the WTM2101, as a pure function on codes.

Two array operations give the gates' two halves as codes, both in torch's order r, z, n along the last dimension:

    a = round(clamp((q_Wih q_x + B_ih) / G_input))     codes at scale s_a    (all as in a WitinLinear)
    b = round(clamp((q_Whh q_h + B_hh) / G_hidden))    codes at scale s_b    (q_h signed, by PN)

The digital unit does the rest. Every step is an integer operation and a shift; all scales are powers of two, the state
h and the gates have 128 codes per unit, and `sh(v, k)` is `v * 2^k`, rounded half to even where k is negative:

    input_shift, hidden_shift = log2(s / s_a), log2(s / s_b)            with s = max(s_a, s_b); one of them is 0
    i_g = sat10(sh((a_g << input_shift) + (b_g << hidden_shift), shift_bits[0]))                     for g = r, z
    r   = sigmoid_table[i_r]          z = sigmoid_table[i_z]
    m   = sh(r * b_n, shift_bits[1])                                                     shift_bits[1] = -7
    i_n = sat10(sh((a_n << input_shift) + (m << hidden_shift), shift_bits[2]))
    n   = tanh_table[i_n]
    h'  = sat8(sh((128 - z) * n + z * h, shift_bits[3]))                                 shift_bits[3] = -7

The reset gate acts on `W_hn h + b_hn` as in `torch.nn.GRU`. The tables have 1024 entries of int8, one for each 10-bit
index, in two's-complement order (0 … 511, then -512 … -1): the sigmoid's covers ±8 at 64 indices per unit, the tanh's
±4 at 128. These are meant as the attributes of the compiler's `Gru2Array` node (spec/wtm2101-silicon.md, section 3):
`scale_input` is G_input, `scale_hidden` G_hidden, `hidden_shift_bit` is hidden_shift - input_shift, `scale_ones` the
128 of `128 - z`. The node's own arithmetic is not published, nor how the silicon rounds its shifts: this dataflow is
ours, and half to even is the measured rule of the digital unit's other operators (spec/witmem-digital.md, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.arithmetic.grid import Grid
from chipfit.chips.witmem.digital.base import accumulator_dtype, rounded
from chipfit.errors import InvalidValueError

ONE = 128
"""Code of 1.0 in gates and state: the node's `scale_ones`."""
ONE_SHIFT = 7
STATE = Grid(bits=8, signed=True, scale=float(ONE))
"""Grid of the state h: tanh keeps it within ±1, so its scale needs no calibration."""
INDEX = Grid(bits=10, signed=True)
"""Grid of a table index."""
SIGMOID_SCALE, TANH_SCALE = 64, 128
"""Table indices per unit."""


@dataclass(frozen=True)
class GruShifts:
    """The shifts of a cell; they follow from the scales of its two array operations.

    Args:
        input_shift: Left shift of the input's half before the sum.
        hidden_shift: Left shift of the hidden half before the sum.
        shift_bits: Shifts after the sum of a gate, after r * b_n, after the candidate's sum, after the state's sum;
            negative is right.
        widest_sum: Bound on the magnitude of the sums.
    """

    input_shift: int
    hidden_shift: int
    shift_bits: tuple[int, int, int, int]
    widest_sum: int

    @property
    def hidden_shift_bit(self) -> int:
        """Shift of the hidden half relative to the input's: the node's attribute."""
        return self.hidden_shift - self.input_shift


def gru_shifts(scale_input: float, scale_hidden: float, bits: int, where: str = "") -> GruShifts:
    """Shifts for gate halves of given scales.

    Args:
        scale_input: Codes per unit of the input's half, a power of two.
        scale_hidden: Codes per unit of the hidden half, a power of two.
        bits: Width of both.
        where: Layer, for the error message.

    Raises:
        InvalidValueError: a scale is no power of two.

    Example:
        >>> gru_shifts(32, 16, bits=8)
        GruShifts(input_shift=0, hidden_shift=1, shift_bits=(1, -7, 2, -7), widest_sum=512)
    """
    for name, scale in (("input", scale_input), ("hidden", scale_hidden)):
        if math.frexp(scale)[0] != 0.5:
            raise InvalidValueError(
                f"scale_y of the {name} operation must be a power of two: the GRU's digital part only shifts",
                given=scale,
                allowed="…, 8, 16, 32, …",
                where=where,
            )
    finer = max(scale_input, scale_hidden)
    left_input, left_hidden = (round(math.log2(finer / scale)) for scale in (scale_input, scale_hidden))
    to_index = [round(math.log2(scale / finer)) for scale in (SIGMOID_SCALE, TANH_SCALE)]
    return GruShifts(
        left_input,
        left_hidden,
        (to_index[0], -ONE_SHIFT, to_index[1], -ONE_SHIFT),
        1 << (bits + max(left_input, left_hidden)),
    )


def activation_tables() -> Tensor:
    """The sigmoid's and the tanh's table.

    Returns:
        Codes at 128 per unit, limited to int8 (1.0 becomes 127), shape `(2, 1024)`, float32; row 0 is the sigmoid, the
        columns are in two's-complement order of the index.

    Example:
        >>> tables = activation_tables()
        >>> tables[:, [0, 64, 511, 512, 1023]]
        tensor([[  64.,   94.,  127.,    0.,   64.],
                [   0.,   59.,  127., -128.,   -1.]])
    """
    u_sigmoid, u_tanh = _table_arguments()
    table = np.stack([ONE / (1 + np.exp(-u_sigmoid)), ONE * np.tanh(u_tanh)])
    return torch.from_numpy(np.clip(np.rint(table), STATE.lo, STATE.hi).astype(np.float32))


def activation_slopes() -> Tensor:
    """Derivative of each table's real function in codes per index, shape and order of `activation_tables`, float32.

    Example:
        >>> activation_slopes()[:, 0]
        tensor([0.5000, 1.0000])
    """
    u_sigmoid, u_tanh = _table_arguments()
    gate = 1 / (1 + np.exp(-u_sigmoid))
    slope = np.stack([ONE / SIGMOID_SCALE * gate * (1 - gate), ONE / TANH_SCALE * (1 - np.tanh(u_tanh) ** 2)])
    return torch.from_numpy(slope.astype(np.float32))


def _table_arguments() -> tuple[Any, Any]:
    index = np.fft.ifftshift(np.arange(INDEX.lo, INDEX.hi + 1)).astype(np.float64)  # 0 … 511, -512 … -1
    return index / SIGMOID_SCALE, index / TANH_SCALE


class _Lookup(torch.autograd.Function):
    """Forward: the table's entry. Backward: the slope of the function that it tabulates."""

    @staticmethod
    def forward(ctx: Any, index: Tensor, table: Tensor, slope: Tensor) -> Tensor:
        at = index.int().bitwise_and_(table.numel() - 1).flatten()
        ctx.save_for_backward(at, slope)
        return table.index_select(0, at).view(index.shape).add_(index - index)  # NaN stays NaN

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        at, slope = ctx.saved_tensors
        return slope.index_select(0, at).view(grad.shape).mul_(grad), None, None


def lookup(index: Tensor, table: Tensor, slope: Tensor) -> Tensor:
    """Table entries of signed indices, with the gradient of the tabulated function.

    Args:
        index: Integral values in `INDEX`'s range, floating dtype.
        table: Entries in two's-complement order of the index, a power of two of them.
        slope: Derivative at each entry.

    Example:
        >>> lookup(torch.tensor([0.0, -1.0]), torch.arange(1024.0), torch.ones(1024))
        tensor([   0., 1023.])
    """
    out: Tensor = _Lookup.apply(index, table, slope)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


def shifted(v: Tensor, bits: int) -> Tensor:
    """`v * 2^bits`, rounded half to even where that is a right shift; the gradient is that of the product.

    Example:
        >>> shifted(torch.tensor([5.0, 6.0, 7.0]), -1), shifted(torch.tensor([3.0]), 2)
        (tensor([2., 3., 4.]), tensor([12.]))
    """
    if bits == 0:
        return v
    return v * 2.0**bits if bits > 0 else rounded(v * 2.0**bits)


def gru_step(a: Tensor, b: Tensor, h: Tensor, shifts: GruShifts, tables: Tensor, slopes: Tensor) -> Tensor:
    """One step of the cell on integer codes held in floating point; the formulas are at the top of this file.

    Args:
        a: Codes of the input's half, r, z, n, shape `(..., 3 * hidden)`.
        b: Codes of the hidden half, same shape.
        h: State codes, shape `(..., hidden)`.
        shifts: Shifts for the scales of `a` and `b`.
        tables: As from `activation_tables`.
        slopes: As from `activation_slopes`.

    Returns:
        New state codes, shape of `h`. Roundings and look-ups are straight-through, saturation blocks the gradient.

    Example:
        >>> a, b, h = torch.tensor([0.0, -64.0, 32.0]), torch.zeros(3), torch.tensor([100.0])
        >>> gru_step(a, b, h, gru_shifts(32, 32, bits=8), activation_tables(), activation_slopes())
        tensor([97.])
    """
    wide = accumulator_dtype(a, shifts.widest_sum)

    def index(mine: Tensor, other: Tensor, shift: int) -> Tensor:
        total = shifted(mine.to(wide), shifts.input_shift) + shifted(other.to(wide), shifts.hidden_shift)
        return torch.clamp(shifted(total, shift), INDEX.lo, INDEX.hi).to(a.dtype)

    hidden = h.shape[-1]
    gates = index(a[..., : 2 * hidden], b[..., : 2 * hidden], shifts.shift_bits[0])
    r, z = lookup(gates, tables[0], slopes[0]).chunk(2, dim=-1)
    reset = shifted(r * b[..., 2 * hidden :], shifts.shift_bits[1])
    n = lookup(index(a[..., 2 * hidden :], reset, shifts.shift_bits[2]), tables[1], slopes[1])
    return torch.clamp(shifted((ONE - z) * n + z * h, shifts.shift_bits[3]), STATE.lo, STATE.hi)

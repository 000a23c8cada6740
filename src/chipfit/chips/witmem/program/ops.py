"""The operations of Witmem programs: those of the array and the digital unit, and by the same names the core ones.

Codes are int64, and everything is exact: quotients and roots are those of real numbers. `sh(v, k)` is `v * 2^k`,
rounded half to even where k is negative; `sat(v)` clips to `[lo, hi]`. A field that ends in `_tensor` names a tensor of
the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from chipfit.program.core.ops import Accumulate as Accumulate
from chipfit.program.core.ops import Add as Add
from chipfit.program.core.ops import Cat as Cat
from chipfit.program.core.ops import Clamp as Clamp
from chipfit.program.core.ops import Constant as Constant
from chipfit.program.core.ops import Dequantise as Dequantise
from chipfit.program.core.ops import Flip as Flip
from chipfit.program.core.ops import Geometry as Geometry
from chipfit.program.core.ops import LookUp as LookUp
from chipfit.program.core.ops import MatMul as MatMul
from chipfit.program.core.ops import Max as Max
from chipfit.program.core.ops import MaxPool as MaxPool
from chipfit.program.core.ops import Mean as Mean
from chipfit.program.core.ops import Mul as Mul
from chipfit.program.core.ops import MultiplyAdd as MultiplyAdd
from chipfit.program.core.ops import Op as Op
from chipfit.program.core.ops import Pad as Pad
from chipfit.program.core.ops import Permute as Permute
from chipfit.program.core.ops import Quantise as Quantise
from chipfit.program.core.ops import Relu as Relu
from chipfit.program.core.ops import Rescale as Rescale
from chipfit.program.core.ops import Reshape as Reshape
from chipfit.program.core.ops import Select as Select
from chipfit.program.core.ops import Slice as Slice
from chipfit.program.core.ops import Sum as Sum
from chipfit.program.core.ops import SumPool as SumPool
from chipfit.program.types import Node, Program

Negative = Literal["unsigned", "signed", "pn", "shift"]
"""How an array takes its input codes: unsigned; signed in one pass (the vendor's Conv2d without PN); signed in two
passes, one on the positive and one on the negative parts; or lifted by `shift_code`, which the bias takes back."""


@dataclass(frozen=True)
class Split:
    """Inputs wider than 8 bits: the low 8 bits go through the array, the rest through the digital unit.

    With `h = q - (q mod 256)` and `l = q mod 256` of each pass's (non-negative) codes:

        analog = clip(round_by_rule((W l + bias) / G), analog_lo, analog_hi)
        digital = half_even((W h + digital_bias) / G)        y = sat(analog + digital)
    """

    digital_bias_tensor: str
    analog_lo: int
    analog_hi: int


@dataclass(frozen=True)
class Array(Op):
    """An operation of the analog array: `sat(round_by_rule((W q + bias) / G))`.

    'pn' computes `W max(q, 0) + W_negative max(-q, 0) + bias`; `W_negative` is not always `-W`: where it is quantised
    by itself, a weight of -128 has the counterpart 127.

    Args:
        geometry: The linear map.
        weight_tensor: Weight codes, torch's layout.
        negative_weight_tensor: Weight codes of the second pass, 'pn' only.
        bias_tensor: Bias codes, shape `(out,)`, multiples of 128, with what 'shift' takes back.
        exact_bias_tensor: float64: the bias in accumulator codes before it was rounded and clipped; for reports only.
        negative: How the input codes are taken.
        shift_code: The constant of 'shift', the code that stands for 0 (the input edge's `zero`); else 0.
        log2_g: G as a power of two; may be negative.
        rounding: 'witin_nn' (half to even) or 'wtm2101' (half up above zero, below zero outward from 0.75).
        lo, hi: Lowest and highest output code.
        bias_rows: Rows that the bias is spread over; the bias lies in `[-128 * rows, 127 * rows] * 128`.
        x_bits: Width of the input, of one pass where there are two.
        split: How a wide input is split, or None.
    """

    geometry: Geometry
    weight_tensor: str
    negative_weight_tensor: str | None
    bias_tensor: str
    exact_bias_tensor: str
    negative: Negative
    shift_code: int
    log2_g: int
    rounding: str
    lo: int
    hi: int
    bias_rows: int
    x_bits: int
    split: Split | None = None

    @property
    def g(self) -> float:
        """Accumulator codes per output code."""
        return 2.0**self.log2_g

    @property
    def x_range(self) -> tuple[int, int]:
        """Lowest and highest input code."""
        if self.negative == "signed":
            return -(1 << (self.x_bits - 1)), (1 << (self.x_bits - 1)) - 1
        highest = (1 << self.x_bits) - 1
        return (-highest if self.negative == "pn" else 0), highest


@dataclass(frozen=True)
class Divide(Op):
    """`sat(sh(half_even(a / b), shift))`; where b is 0: `hi` for a > 0, `lo` for a < 0, 0 for a = 0."""

    shift: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Hypot(Op):
    """`sat(sh(floor(sqrt((a^2 + b^2) * 2^root_shift)), shift))`."""

    root_shift: int
    shift: int
    lo: int
    hi: int


@dataclass(frozen=True)
class LayerNorm(Op):
    """Layer norm over axes 1 and 3 of four; the sums are clipped to `[sum_lo, sum_hi]`.

        M = half_even(clip(sum q) / n)        D = q - M       V = half_even(clip(sum D^2) / n)
        R = floor(sqrt(V * 2^root_shift))     y = sat(half_even(D * 2^(root_shift / 2 + log2_scale) / R))

    y is 0 where R is 0. With `simple` M is 0. `root_shift` is even.
    """

    simple: bool
    root_shift: int
    log2_scale: int
    sum_lo: int
    sum_hi: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Gru(Op):
    """One GRU cell over a sequence: two array operations a step, and shifts and tables on their codes.

    Inputs: the sequence on the grid of `input` (batch or time first, see `time_dim`), and optionally the first state,
    8-bit codes at 128 per unit, shape `(batch, hidden)`; without it the state starts at 0. Output: the state after each
    step, in the order of the input's time axis. With a = input(x), b = hidden(h), both in the order r, z, n:

        i_g = clip(sh((a_g << input_shift) + (b_g << hidden_shift), gate_shift), -512, 511)       for g = r, z
        r, z = gate_table[i_r + 512], gate_table[i_z + 512]
        i_n = clip(sh((a_n << input_shift) + (sh(r * b_n, -7) << hidden_shift), candidate_shift), -512, 511)
        n = candidate_table[i_n + 512]        h = clip(sh((128 - z) * n + z * h, -7), -128, 127)

    Args:
        input, hidden: The array operations (`hidden` takes the state as 'pn').
        input_shift, hidden_shift, gate_shift, candidate_shift: As above.
        gate_table_tensor, candidate_table_tensor: 1,024 entries each, index -512 first.
        time_dim: Axis of time, 0 or 1; the batch is the other one.
        reverse: Read the sequence from its end.
    """

    input: Array
    hidden: Array
    input_shift: int
    hidden_shift: int
    gate_shift: int
    candidate_shift: int
    gate_table_tensor: str
    candidate_table_tensor: str
    time_dim: int
    reverse: bool


def arrays(program: Program) -> Iterator[tuple[str, Node, Array]]:
    """Every array operation of a program, by name, with its node; a GRU has '<name>.input' and '<name>.hidden'."""
    for node in program.nodes:
        if isinstance(node.op, Array):
            yield node.name, node, node.op
        elif isinstance(node.op, Gru):
            yield f"{node.name}.input", node, node.op.input
            yield f"{node.name}.hidden", node, node.op.hidden

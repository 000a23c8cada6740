"""The core operations of an integer program, one small frozen dataclass each; `rules.py` says what they mean.

Those that move, select or pool codes are in `moves.py`. Codes are int64, and everything but `Quantise` and `Dequantise`
is exact: quotients are those of real numbers. `sh(v, k)` is `v * 2^k`, rounded half to even where k is negative;
`sat(v)` clips to `[lo, hi]`. A field that ends in `_tensor` names a tensor of the program. The axes of `dim`, `dims`
and `shape` count the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from chipfit.program.core.base import Op as Op
from chipfit.program.core.moves import Cat as Cat
from chipfit.program.core.moves import Flip as Flip
from chipfit.program.core.moves import Max as Max
from chipfit.program.core.moves import MaxPool as MaxPool
from chipfit.program.core.moves import Pad as Pad
from chipfit.program.core.moves import Permute as Permute
from chipfit.program.core.moves import Reshape as Reshape
from chipfit.program.core.moves import Select as Select
from chipfit.program.core.moves import Slice as Slice
from chipfit.program.core.moves import Sum as Sum
from chipfit.program.core.moves import SumPool as SumPool


@dataclass(frozen=True)
class Quantise(Op):
    """Real values to codes: `sat(round(x * scale + zero))`, computed in float32, half to even. NaN is refused."""

    scale: float
    zero: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Dequantise(Op):
    """Codes to the float32 numbers that they stand for by the grid of the input edge."""


@dataclass(frozen=True)
class Rescale(Op):
    """From one grid to another: `sat(sh(code, shift) + zero)`, rounded once, after `zero` is added.

    A `zero` that is not 0 therefore decides which way a tie goes. The input edge always has zero 0.
    """

    shift: int
    zero: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Geometry:
    """The linear map of an array operation, in torch's terms; weights are laid out as torch does.

    Args:
        kind: 'linear' (over the last axis), 'conv' (1-D or 2-D) or 'conv_transpose' (2-D).
        stride, padding, dilation, output_padding: One number a spatial axis, empty for 'linear'. Padding adds code 0 on
            both sides; any other padding is a `Pad` before the operation.
        groups: Groups of channels.
    """

    kind: Literal["linear", "conv", "conv_transpose"]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1


@dataclass(frozen=True)
class Accumulate(Op):
    """Exact sum of products of input codes and weight codes, and of a bias where there is one.

    Borders are a `Pad` before it. What the sum stands for depends on the scales of both; a `Rescale`, or an operation
    of the chip's own, brings it to a grid.

    Args:
        kind: 'linear' (over the last axis) or 'conv' (1-D or 2-D).
        weight_tensor: Weight codes, torch's layout.
        largest: Largest magnitude of an input code.
        stride, dilation: One number a spatial axis, empty for 'linear'.
        groups: Groups of channels.
        bias_tensor: Bias codes, shape `(out,)`, or None.
    """

    kind: Literal["linear", "conv"]
    weight_tensor: str
    largest: int
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias_tensor: str | None = None


@dataclass(frozen=True)
class Relu(Op):
    """`max(code, 0)`."""


@dataclass(frozen=True)
class Clamp(Op):
    """`clip(code, lo, hi)`, from ReLU6 and the like whose bounds are codes."""

    lo: int
    hi: int


@dataclass(frozen=True)
class LookUp(Op):
    """A function of one code as a table: `table[row, code - first]`.

    Args:
        function: What is tabulated, for people: 'gelu', 'sigmoid', 'tanh', 'prelu', 'sqrt', 'invsqrt', 'batch_norm'.
        table_tensor: Output codes, shape `(rows, entries)`: one row, or one for each index of axis 1 of the input.
        first: Input code of the first entry. Every possible input code has an entry.
    """

    function: str
    table_tensor: str
    first: int


@dataclass(frozen=True)
class Constant(Op):
    """Codes that do not depend on the input (an operand given as a number); no inputs."""

    codes_tensor: str


@dataclass(frozen=True)
class Add(Op):
    """`sat(sh(a + b, shift))`, with broadcasting; both edges have the same scale."""

    shift: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Mul(Op):
    """`sat(sh(a * b, shift))`, with broadcasting."""

    shift: int
    lo: int
    hi: int


@dataclass(frozen=True)
class MatMul(Op):
    """`sat(sh(a @ b, shift))`, shapes as in `torch.matmul`."""

    shift: int
    lo: int
    hi: int


@dataclass(frozen=True)
class MultiplyAdd(Op):
    """Batch norm: `sat(sh(weight * x + bias, shift))`, weight and bias one code for each index of axis 1."""

    weight_tensor: str
    bias_tensor: str
    shift: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Mean(Op):
    """`half_even(clip(sum, sum_lo, sum_hi) / n)` over `dims`; the scale stays."""

    dims: tuple[int, ...]
    keepdim: bool
    sum_lo: int
    sum_hi: int

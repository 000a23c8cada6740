"""The numbers of one array operation: its linear map, and all that its codes are made with."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.errors import InvalidValueError
from chipfit.noise.effects import CellNoise, ColumnNoise

BIAS_UNIT = 128
"""A bias is a whole number of bias rows' unit cells, each driven with this code."""


@dataclass(frozen=True)
class Geometry:
    """The bias-free linear map of a layer: what it does to any input and weight.

    Args:
        kind: 'linear', 'conv' or 'conv_transpose'.
        stride: Step per spatial dimension.
        padding: Zeros added on each side per spatial dimension.
        dilation: Tap distance per spatial dimension.
        output_padding: Extra rows of a transposed convolution.
        groups: Groups of channels.
    """

    kind: str
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Apply the map; shapes as in `torch.nn.functional`."""
        if self.kind == "linear":
            return F.linear(x, weight, bias)
        transposed = self.kind == "conv_transpose"
        return torch.convolution(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
        )

    @property
    def channel_dim(self) -> int:
        """Dimension of the channels in an input or output."""
        return -1 - len(self.stride)

    def per_channel(self, values: Tensor) -> Tensor:
        """View one value per output channel so that it broadcasts over this layer's output."""
        return values if self.kind == "linear" or values.dim() == 0 else values.view(-1, *[1] * len(self.stride))

    def sum_over_inputs(self, weight: Tensor) -> Tensor:
        """Sum of the weights that reach each output channel, shape `(out,)`."""
        if self.kind == "conv_transpose":
            return weight.transpose(0, 1).flatten(1).sum(1)
        return weight.flatten(1).sum(1)


@dataclass(frozen=True)
class ArraySpec:
    """Every number of one array layer in force for one forward.

    Args:
        scale_x: Codes per unit of the input.
        scale_weight: Codes per unit of the weight.
        scale_y: Codes per unit of the output.
        x_bits: Input width.
        y_bits: Output width.
        weight_bits: Weight width.
        negative: How negative inputs are taken.
        signed_input: FALSE mode quantises the input to signed codes (the vendor's Conv2d) instead of unsigned ones.
        per_pass_quotient: PN mode negates before it quantises the weight and divides each pass by itself (the vendor's
            Conv2d and ConvTranspose2d); otherwise the passes share one weight and one division.
        splits: Inputs wider than 8 bits go low 8 bits through the array, the rest through the digital unit.
        shift_num: Constant added to the input in Shift mode, in units of the input.
        shift_limit: Largest shift code.
        bias_rows: Number of bias rows; the bias code lies in [-128 * rows, 127 * rows] * 128.
        bias_digital: Part of the bias added in the digital unit (split layers only), in units of the bias.
        fp_clip: Clip of the output before it is quantised, or None.
        w_clip: Clip of the weight, or None.
        rounding: Name of the rounding rule of the array's output.
        noise: Effect in force, or None.
        noise_level: Its level.
        shared_offset: Deviation of one offset for the whole forward, in accumulator codes (noise model SIMPLE).
    """

    scale_x: float
    scale_weight: float
    scale_y: float
    x_bits: int = 8
    y_bits: int = 8
    weight_bits: int = 8
    negative: HandleNegInType = HandleNegInType.FALSE
    signed_input: bool = False
    per_pass_quotient: bool = False
    splits: bool = False
    shift_num: float = 0.0
    shift_limit: int = 256
    bias_rows: int = 8
    bias_digital: Tensor | None = field(default=None, compare=False)
    fp_clip: float | None = None
    w_clip: float | None = None
    rounding: str = "witin_nn"
    noise: CellNoise | ColumnNoise | None = None
    noise_level: float = 0.0
    shared_offset: float = 0.0
    where: str = ""

    @property
    def product_scale(self) -> float:
        """Accumulator codes per unit of the output."""
        return self.scale_x * self.scale_weight

    @property
    def g(self) -> float:
        """Accumulator codes per output code: what the chip divides by."""
        return self.product_scale / self.scale_y

    @property
    def whole_g(self) -> int:
        """`g` rounded to the whole number that noisy and split layers divide by.

        Raises:
            InvalidValueError: it rounds to zero.
        """
        whole = round(self.g)
        if whole == 0:
            raise InvalidValueError(
                "G = scale_x * scale_weight / scale_y rounds to 0",
                given=self.g,
                allowed="above 0.5 (256 to 8192 on the chip)",
                where=self.where,
                hint="Lower scale_y, or raise scale_x or scale_weight.",
            )
        return whole

    @property
    def x_range(self) -> tuple[int, int]:
        """Lowest and highest input code."""
        if self.negative is HandleNegInType.FALSE and self.signed_input:
            return -(1 << (self.x_bits - 1)), (1 << (self.x_bits - 1)) - 1
        return 0, (1 << self.x_bits) - 1

    @property
    def weight_range(self) -> tuple[int, int]:
        """Lowest and highest weight code."""
        return -(1 << (self.weight_bits - 1)), (1 << (self.weight_bits - 1)) - 1

    @property
    def y_range(self) -> tuple[int, int]:
        """Lowest and highest output code."""
        return -(1 << (self.y_bits - 1)), (1 << (self.y_bits - 1)) - 1

    @property
    def bias_range(self) -> tuple[int, int]:
        """Lowest and highest bias that the bias rows hold, in units of `BIAS_UNIT`."""
        return -BIAS_UNIT * self.bias_rows, (BIAS_UNIT - 1) * self.bias_rows

    @property
    def shift_code(self) -> int:
        """The constant that Shift mode adds to every input code; half-way cases go to the even code."""
        if self.negative is not HandleNegInType.Shift:
            return 0
        return round(min(max(self.shift_num * self.scale_x, 0.0), float(self.shift_limit)))

    @property
    def power_of_two(self) -> bool:
        """Whether all scales are powers of two, so that the order of divisions does not matter."""
        return all(math.frexp(scale)[0] == 0.5 for scale in (self.scale_x, self.scale_weight, self.scale_y))

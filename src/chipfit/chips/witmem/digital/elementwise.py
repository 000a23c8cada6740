"""Two-operand layers of the digital unit: add, multiply, divide, concatenate, matrix product."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.digital.base import TwoInputs, accumulator_dtype, at_full_precision, rounded

DIVISION_LIMIT = 8.0
"""The digital unit's quotients are limited to this magnitude, whatever the scales."""
_TINY = 1e-8


def divide_codes(a: Tensor, b: Tensor, scale_left: float, scale_right: float) -> Tensor:
    """Quotient of codes as a real value: an integer at scale `scale_left / scale_right`, limited to ±8; 0/0 is 0.

    Example:
        >>> divide_codes(torch.tensor([100.0, 7.0, -1.0, 0.0]), torch.tensor([16.0, 2.0, 0.0, 0.0]), 64, 16)
        tensor([ 1.5000,  1.0000, -8.0000,  0.0000])
    """
    quotient = rounded(a / (b + _TINY))
    return torch.clamp(quotient / scale_left * scale_right, -DIVISION_LIMIT, DIVISION_LIMIT)


def common_width(scale: float, bits: int, wide: int) -> Grid:
    """Grid of `wide` bits over the same range of values: a narrower operand gets a finer scale.

    Example:
        >>> common_width(16, 8, 10)
        Grid(bits=10, signed=True, scale=64)
    """
    return Grid(wide, True, scale * (1 << (wide - bits)))


class _Pair(TwoInputs):
    """Constructor of the layers without arguments of their own."""

    def __init__(self, layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__()
        self.capture_and_watch(layer_config)


class WitinElementAdd(_Pair):
    """Sum at the smaller of the two scales s: `y = clamp(round((q_1 + q_2) / (s / s_y))) / s_y`.

    Either operand may be a Python number.

    Args:
        layer_config: Options. Honoured: scale_x_left, scale_x_right, x_left_quant_bits, x_right_quant_bits, scale_y,
            y_quant_bits, and output_fp_clip, which limits the auto-scale statistic only.

    Raises:
        ShapeError: shapes that do not broadcast, or operands that are no floating-point tensors.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False,
        ...                           scale_x_left=32, scale_x_right=16, scale_y=16)
        >>> WitinElementAdd(layer_config=config)(torch.tensor([1.04]), torch.tensor([0.5]))
        tensor([1.5625])
    """

    clips_output: ClassVar[bool] = False

    @at_full_precision
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Apply the layer."""
        x1, x2 = self.check_pair(x1, x2)
        if self.mode == "float":
            return x1 + x2
        scales = self.scales_in_force()
        scale = min(scales["x1"], scales["x2"])
        a, b = self.codes(x1, x2, scale, scale)
        return self.finish_codes(a + b, scale, scales["y"], x1=x1, x2=x2)


class WitinElementMul(_Pair):
    """Product: `y = clamp(round(q_1 * q_2 / (s_1 * s_2 / s_y))) / s_y`.

    The result stays on the graph in `eval()` too. Options, operands, errors and source: as for `WitinElementAdd`.

    Args:
        layer_config: Options.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False,
        ...                           scale_x_left=16, scale_x_right=16, scale_y=32)
        >>> WitinElementMul(layer_config=config)(torch.tensor([1.5]), -0.5)
        tensor([-0.7500])
    """

    clips_output: ClassVar[bool] = False

    @at_full_precision
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Apply the layer."""
        x1, x2 = self.check_pair(x1, x2)
        if self.mode == "float":
            return x1 * x2
        scales = self.scales_in_force()
        scale = scales["x1"] * scales["x2"]
        a, b = self.codes(x1, x2, scales["x1"], scales["x2"])
        return self.finish_codes(a * b, scale, scales["y"], x1=x1, x2=x2)


class WitinElementDivide(_Pair):
    """Quotient, rounded to an integer at scale `s_1 / s_2` and limited to ±8, then rounded to the output grid.

    With equal scales the quotient is a whole number: choose `scale_x_left` well above `scale_x_right`. A zero divisor
    gives ±8 by the sign of the dividend, and 0 for 0/0. In float: `clamp(x1 / (x2 + 1e-8), -8, 8)`.
    Options, operands, errors and source: as for `WitinElementAdd`, but output_fp_clip limits the output itself.

    Args:
        layer_config: Options.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, x_left_quant_bits=12,
        ...                           scale_x_left=256, scale_x_right=16, scale_y=16)
        >>> WitinElementDivide(layer_config=config)(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
        tensor([1.5000, 7.9375])
    """

    @at_full_precision
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Apply the layer."""
        x1, x2 = self.check_pair(x1, x2)
        if self.mode == "float":
            return torch.clamp(x1 / (x2 + _TINY), -DIVISION_LIMIT, DIVISION_LIMIT)
        scales = self.scales_in_force()
        a, b = self.codes(x1, x2, scales["x1"], scales["x2"])
        return self.finish(divide_codes(a, b, scales["x1"], scales["x2"]), scales["y"], x1=x1, x2=x2)


class WitinMatMul(_Pair):
    """Matrix product: `y = clamp(round(q_1 @ q_2 / s_1 / s_2 * s_y)) / s_y`.

    Args:
        layer_config: Options. Honoured: as for `WitinElementAdd`.

    Raises:
        ShapeError: shapes that `torch.matmul` cannot multiply.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False,
        ...                           scale_x_left=16, scale_x_right=16, scale_y=8)
        >>> WitinMatMul(layer_config=config)(torch.ones(1, 3), torch.full((3, 1), 0.5))
        tensor([[1.5000]])
    """

    clips_output: ClassVar[bool] = False

    @at_full_precision
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Apply the layer."""
        x1, x2 = self.check_input(x1, "x1"), self.check_input(x2, "x2")
        inner = x2.shape[-2] if x2.dim() > 1 else x2.shape[0] if x2.dim() else None
        if not x1.dim() or inner is None or x1.shape[-1] != inner:
            raise self.shape_error("x1 and x2 cannot be multiplied as matrices", x1, x2)
        if self.mode == "float":
            return torch.matmul(x1, x2)
        scales = self.scales_in_force()
        a, b = self.codes(x1, x2, scales["x1"], scales["x2"])
        wide = accumulator_dtype(a, inner << (self.x_left_quant_bits + self.x_right_quant_bits - 2))
        total = torch.matmul(a.to(wide), b.to(wide)).to(a.dtype)
        return self.finish(total / scales["x1"] / scales["x2"], scales["y"], x1=x1, x2=x2)


class WitinCat(TwoInputs):
    """Concatenation of two tensors onto one output grid.

    Each operand is quantised at its own scale; the narrower one is given the width of the wider, at a finer scale.

    Args:
        dim: Dimension along which to concatenate.
        layer_config: Options. Honoured: as for `WitinElementAdd`, and output_fp_clip limits the output.

    Raises:
        ShapeError: shapes that differ elsewhere than in `dim`.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False,
        ...                           scale_x_left=16, scale_x_right=32, scale_y=32)
        >>> WitinCat(layer_config=config)(torch.tensor([0.4]), torch.tensor([0.4]))
        tensor([0.3750, 0.4062])
    """

    def __init__(self, dim: int = 0, layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.capture_and_watch(layer_config)

    @at_full_precision
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Apply the layer."""
        x1, x2 = self.check_input(x1, "x1"), self.check_input(x2, "x2")
        if self.mode == "float":
            return self._cat(x1, x2)
        scales = self.scales_in_force()
        wide = max(self.x_left_quant_bits, self.x_right_quant_bits)
        left = common_width(scales["x1"], self.x_left_quant_bits, wide)
        right = common_width(scales["x2"], self.x_right_quant_bits, wide)
        v = self._cat(fake_quantise(x1, left, round_first=True), fake_quantise(x2, right, round_first=True))
        return self.finish(v, scales["y"], x1=x1, x2=x2)

    def _cat(self, x1: Tensor, x2: Tensor) -> Tensor:
        try:
            return torch.cat((x1, x2), dim=self.dim)
        except (RuntimeError, IndexError) as error:
            raise self.shape_error(f"x1 and x2 cannot be joined along dimension {self.dim}", x1, x2) from error

    def extra_repr(self) -> str:
        """Show the dimension."""
        return f"dim={self.dim}"

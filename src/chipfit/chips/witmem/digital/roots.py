"""Square roots of the digital unit: sqrt, 1/sqrt and hypot, on an integer square root with a left shift of its operand.

    R = floor(sqrt(X * 2^k)),   sqrt(X) ≈ R / 2^(k/2)          k = sqrt_left_shift_bits, even

The root is taken in the tensor's dtype, as upstream: at 8 bits and shifts up to 8 float32 gives the exact integer root
for every operand; with wide operands and large shifts it can be one too high just below a perfect square, which float64
inputs avoid.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from chipfit.arithmetic.fake_quant import fake_codes
from chipfit.arithmetic.grid import Grid
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.digital.base import (
    DigitalLayer,
    OneInput,
    at_full_precision,
    check_root_width,
    clipped,
    watched,
)
from chipfit.errors import ShapeError


class _IntegerRoot(torch.autograd.Function):
    """Forward: floor(sqrt(v * 2^shift)). Backward: the slope of the unfloored root, and 0 where that is infinite."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, shift: int) -> Tensor:
        root = torch.sqrt(v * 2.0**shift)
        ctx.save_for_backward(root)
        ctx.shift = shift
        return torch.floor(root)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (root,) = ctx.saved_tensors
        slope = 2.0**ctx.shift * 0.5 / root
        return grad * torch.where(root > 0, slope, torch.zeros_like(slope)), None


def integer_root(v: Tensor, shift: int) -> Tensor:
    """Integer square root of `v * 2^shift`, with the gradient of the real root (0 at v = 0).

    Args:
        v: Non-negative integer codes in a floating dtype.
        shift: Left shift in bits, even.

    Returns:
        `floor(sqrt(v * 2^shift))`.

    Example:
        >>> integer_root(torch.tensor([0.0, 2.0, 16.0]), 8)
        tensor([ 0., 22., 64.])
    """
    out: Tensor = _IntegerRoot.apply(v, shift)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return out


def over_root(numerator: Tensor | float, root: Tensor) -> Tensor:
    """`numerator / root`, and 0 with gradient 0 where the root is 0: the digital unit's division.

    Example:
        >>> over_root(8.0, torch.tensor([0.0, 4.0]))
        tensor([0., 2.])
    """
    zero = root == 0
    return torch.where(zero, torch.zeros_like(root), numerator / torch.where(zero, torch.ones_like(root), root))


class _SqrtGradient(torch.autograd.Function):
    """Forward: y. Backward: to x the slope of sqrt at the raw x, whatever was rounded or clipped on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        slope = 0.5 / torch.sqrt(x)
        return grad * torch.where(x > 0, slope, torch.zeros_like(slope)), None


class _Root(OneInput):
    """Sqrt and its inverse: unsigned input and output."""

    sqrt_left_shift_bits: int
    x_signed: ClassVar[bool] = False
    y_signed: ClassVar[bool] = False

    def __init__(self, layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__()
        self.capture_and_watch(layer_config, "sqrt_left_shift_bits", extra_x_bits=1, extra_y_bits=1)

    def root(self, codes: Tensor) -> Tensor:
        """Integer root of the input codes."""
        check_root_width(self.where, self.x_quant_bits, self.sqrt_left_shift_bits, "x_quant_bits")
        return integer_root(codes, self.sqrt_left_shift_bits)


class WitinSqrt(_Root):
    """Square root of unsigned codes (negative inputs count as 0): `v = R / 2^(k/2) / sqrt(s_x)`.

    The gradient is `0.5 / sqrt(x)` at the raw input, past all clips, and 0 where the input is not above 0.
    In float: `sqrt(x + 1e-8)`.

    Args:
        layer_config: Options. Honoured: scale_x, x_quant_bits, scale_y, y_quant_bits, sqrt_left_shift_bits,
            output_fp_clip.

    Raises:
        InvalidValueError: in a quantised forward, `x_quant_bits + sqrt_left_shift_bits` above 32.

    Source:
        Spec/witmem-digital.md, sections 3 to 5.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=32)
        >>> WitinSqrt(layer_config=config)(torch.tensor([-1.0, 2.0, 4.0]))
        tensor([0.0000, 1.4062, 2.0000])
    """

    def __init__(self, layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__(layer_config)
        self._configured = {name: observer.scale for name, observer in self.observers.items()}

    def scales_in_force(self) -> dict[str, float]:
        """As for any layer, but while statistics are collected the configured scales hold in every epoch."""
        if not self.observing:
            return super().scales_in_force()
        return {
            name: self._configured[name] if observer.collecting else observer.scale_from_io_max(f"{self.where}, {name}")
            for name, observer in self.observers.items()
        }

    def in_float(self, x: Tensor) -> Tensor:
        """Result in mode 'float'."""
        return torch.sqrt(x + 1e-8)

    def on_codes(self, codes: Tensor, scale_x: float) -> Tensor:
        """Real result, computed from input codes."""
        half_shift: float = 2.0 ** (self.sqrt_left_shift_bits // 2)
        return self.root(codes) / half_shift / math.sqrt(scale_x)

    @at_full_precision
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        if self.mode == "float":
            return super().forward(input)
        with torch.no_grad():
            y = super().forward(input)
        out: Tensor = _SqrtGradient.apply(input, y)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return out


class WitinInvSqrt(_Root):
    """Inverse square root of unsigned codes: `v = 2^(k/2) * sqrt(s_x) / R`, and 0 where R is 0.

    Where R is 0 the gradient is 0 too. In float: `1 / sqrt(x)`. Options, errors and source: as for `WitinSqrt`.

    Args:
        layer_config: Options.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=32)
        >>> WitinInvSqrt(layer_config=config)(torch.tensor([-1.0, 0.25, 4.0]))
        tensor([0.0000, 2.0000, 0.5000])
    """

    def in_float(self, x: Tensor) -> Tensor:
        """Result in mode 'float'."""
        return 1 / torch.sqrt(x)

    def on_codes(self, codes: Tensor, scale_x: float) -> Tensor:
        """Real result, computed from input codes."""
        return over_root(2.0 ** (self.sqrt_left_shift_bits // 2) * scale_x**0.5, self.root(codes))


class WitinHypot(DigitalLayer):
    """Length of a pair: `R = floor(sqrt((a^2 + b^2) * 2^k))`, `v = R / 2^(k/2) / s`, unsigned output.

    Both operands take the scale and width of the left one, and share the observer 'x1'. In float:
    `sqrt(x1^2 + x2^2 + 1e-8)`.

    Args:
        layer_config: Options. Honoured: scale_x_left, x_left_quant_bits, scale_y, y_quant_bits, sqrt_left_shift_bits,
            output_fp_clip.

    Raises:
        ShapeError: in a quantised forward, operands of different shape.
        InvalidValueError: in a quantised forward, `2 * x_left_quant_bits + sqrt_left_shift_bits` above 32.

    Source:
        Spec/witmem-digital.md, sections 3 to 5.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x_left=16, scale_y=16)
        >>> WitinHypot(layer_config=config)(torch.tensor([3.0, 0.0]), torch.tensor([-4.0, 0.0]))
        tensor([5., 0.])
    """

    x_left_quant_bits: int
    sqrt_left_shift_bits: int
    y_signed: ClassVar[bool] = False

    def __init__(self, layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__()
        config = self.capture(layer_config, "x_left_quant_bits", "sqrt_left_shift_bits")
        self.watch(
            watched("x1", config.scale_x_left, config.x_left_quant_bits),
            watched("y", config.scale_y, config.y_quant_bits, 1),
        )

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """Both operands as 'x1', and the output limited to `output_fp_clip`."""
        x1, x2 = inputs[:2]
        return {"x1": torch.cat([x1.flatten(), x2.flatten()]), "y": clipped(output, self.output_fp_clip)}

    @at_full_precision
    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Apply the layer."""
        x1, x2 = self.check_input(x1, "x1"), self.check_input(x2, "x2")
        if self.mode == "float":
            return torch.sqrt(x1**2 + x2**2 + 1e-8)
        if x1.shape != x2.shape:
            raise ShapeError(
                "x1 and x2 must have the same shape", given=(tuple(x1.shape), tuple(x2.shape)), where=self.where
            )
        check_root_width(self.where, 2 * self.x_left_quant_bits, self.sqrt_left_shift_bits, "x_left_quant_bits*2")
        scales = self.scales_in_force()
        grid = Grid(self.x_left_quant_bits, True, scales["x1"])
        a, b = fake_codes(x1, grid, round_first=True), fake_codes(x2, grid, round_first=True)
        root = integer_root(a * a + b * b, self.sqrt_left_shift_bits)
        v = root / 2.0 ** (self.sqrt_left_shift_bits // 2) / scales["x1"]
        return self.finish(v, scales["y"], x1=torch.maximum(x1.detach().abs(), x2.detach().abs()))

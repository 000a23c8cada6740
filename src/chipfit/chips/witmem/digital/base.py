"""What the layers of the digital unit share (spec/witmem-digital.md, section 3).

    codes = clamp(round(x * s_x))     v = rule(codes)     y = clamp(round(clip(v) * s_y)) / s_y

The digital unit rounds before it clamps, half to even, so the gradient passes up to half a code beyond each end of the
range. It is exact logic: a layer in mode 'nat' computes as in 'quant'. Each room beside this one holds the rules of a
family as pure functions on codes, and the layers that apply them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.arithmetic.fake_quant import fake_codes, fake_quantise
from chipfit.arithmetic.grid import Grid
from chipfit.arithmetic.rounding import half_even, straight_through
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.layer import Watched, WitinLayer
from chipfit.errors import InvalidValueError, ShapeError


def watched(name: str, scale: float, bits: int, extra_bits: int = 0) -> Watched:
    """Describe an observer of the digital unit: before it has seen anything its `io_max` is the tensor's bit width.

    Args:
        name: Short name, as in `autoscale_<name>_obj`.
        scale: Scale in force at first, in codes per unit.
        bits: Width of the tensor.
        extra_bits: Bits that count in the scale formula only (an unsigned tensor has one).
    """
    return Watched(name, scale, bits + extra_bits, io_max=float(bits))


_Forward = TypeVar("_Forward", bound=Callable[..., Any])
_HALF = (torch.float16, torch.bfloat16)


def at_full_precision(forward: _Forward) -> _Forward:
    """Have a quantised forward compute half-precision inputs in float32, outside autocast; the output is half again.

    float16 cannot hold an accumulator and bfloat16 no code above 256.
    """

    @functools.wraps(forward)
    def full(layer: WitinLayer, *inputs: Any, **named: Any) -> Any:
        tensors = [x for x in (*inputs, *named.values()) if isinstance(x, Tensor)]
        half = [x for x in tensors if x.dtype in _HALF]
        device = tensors[0].device.type if tensors else "cpu"
        if layer.mode == "float" or not (half or torch.is_autocast_enabled(device)):
            return forward(layer, *inputs, **named)
        with torch.autocast(device, enabled=False):
            y = forward(layer, *map(_widened, inputs), **{name: _widened(x) for name, x in named.items()})
        return _narrowed(y, tensors[0].dtype)

    return cast(_Forward, full)


def _narrowed(y: Any, dtype: torch.dtype) -> Any:
    return tuple(part.to(dtype) for part in y) if isinstance(y, tuple) else y.to(dtype)


def _widened(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype in _HALF else x


rounded = straight_through(half_even)
"""Round half to even, with the gradient of the identity."""


def clipped(v: Tensor, limit: float | None) -> Tensor:
    """Clip to `[-limit, limit]`; a limit of None or 0 is none, a negative one gives the constant `limit`, as upstream.

    Example:
        >>> clipped(torch.tensor([-3.0, 0.5]), 2.0)
        tensor([-2.0000,  0.5000])
    """
    return torch.clamp(v, -limit, limit) if limit else v


def accumulator_dtype(codes: Tensor, largest: int) -> torch.dtype:
    """Dtype in which sums up to `largest` are exact: float64 where float32 would depend on the order of summation.

    Example:
        >>> accumulator_dtype(torch.zeros(1), 1 << 25)
        torch.float64
    """
    wide = largest > FLOAT32_EXACT and codes.device.type != "mps"  # Apple's GPU has no float64
    return torch.float64 if wide else codes.dtype


class DigitalLayer(WitinLayer):
    """Base of the digital-unit layers: how a result reaches the output grid.

    Attributes:
        y_quant_bits: Width of the output.
        output_fp_clip: Limit of the result, in real units, or None.
        y_signed: Whether the output grid is signed.
        clips_output: Whether `output_fp_clip` limits the output itself; if not, only what auto-scale sees of it.
    """

    y_quant_bits: int
    output_fp_clip: float | None
    y_signed: ClassVar[bool] = True
    clips_output: ClassVar[bool] = True

    def capture(self, config: WitinLayerConfig | None, *names: str) -> WitinLayerConfig:
        """Copy the options that every layer has, and those named, to attributes of the same names."""
        config = super().capture(config)
        for name in ("y_quant_bits", "output_fp_clip", *names):
            setattr(self, name, getattr(config, name))
        return config

    @property
    def y_bits(self) -> int:
        """Width of the output grid."""
        return self.y_quant_bits

    def finish(self, v: Tensor, scale_y: float, **operands: Tensor) -> Tensor:
        """Close a quantised forward: show auto-scale what it watches, and round the result to the output grid.

        Args:
            v: Real result before output quantisation.
            scale_y: Codes per unit of the output.
            **operands: The other watched tensors, by short name.
        """
        seen = self._show(v, operands)
        grid = Grid(self.y_bits, self.y_signed, scale_y)
        return fake_quantise(seen if self.clips_output else v, grid, round_first=True)

    def finish_codes(self, total: Tensor, scale: float, scale_y: float, **operands: Tensor) -> Tensor:
        """As `finish`, for an integer result at `scale` that the chip brings to output codes in one division.

        The division by `scale / scale_y` equals `total / scale * scale_y` except in ties of scales that are no power of
        two.
        """
        self._show(total / scale, operands)
        grid = Grid(self.y_bits, self.y_signed)
        return fake_codes(total / (scale / scale_y), grid, round_first=True) / scale_y

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """As for any layer, the output limited to `output_fp_clip`, as auto-scale sees it."""
        return super().calibration_tensors(inputs, clipped(output, self.output_fp_clip))

    def _show(self, v: Tensor, operands: dict[str, Tensor]) -> Tensor:
        seen = clipped(v, self.output_fp_clip)
        if self.observing:
            self.observe(y=seen, **operands)
        return seen


class OneInput(DigitalLayer):
    """Base of the layers of one input: observers 'x' and 'y', then the hooks `in_float` and `on_codes`.

    Attributes:
        x_quant_bits: Width of the input.
        x_signed: Whether the input grid is signed.
    """

    x_quant_bits: int
    x_signed: ClassVar[bool] = True

    def capture_and_watch(
        self, config: WitinLayerConfig | None, *names: str, extra_x_bits: int = 0, extra_y_bits: int = 0
    ) -> WitinLayerConfig:
        """Copy the options and add the observers 'x' and 'y'; extra bits count in the scale formula only."""
        config = self.capture(config, "x_quant_bits", *names)
        self.watch(
            watched("x", config.scale_x, config.x_quant_bits, extra_x_bits),
            watched("y", config.scale_y, config.y_quant_bits, extra_y_bits),
        )
        return config

    def in_float(self, x: Tensor) -> Tensor:
        """Result in mode 'float'."""
        raise NotImplementedError

    def on_codes(self, codes: Tensor, scale_x: float) -> Tensor:
        """Real result, computed from input codes."""
        raise NotImplementedError

    def prepare(self, input: Any) -> Tensor:
        """Check the input, and limit it where the layer has an option for that."""
        return self.check_input(input)

    def input_codes(self, x: Tensor, scale: float) -> Tensor:
        """Codes of the input."""
        return fake_codes(x, Grid(self.x_quant_bits, self.x_signed, scale), round_first=True)

    @at_full_precision
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x = self.prepare(input)
        if self.mode == "float":
            return self.in_float(x)
        scales = self.scales_in_force()
        v = self.on_codes(self.input_codes(x, scales["x"]), scales["x"])
        return self.finish(v, scales["y"], x=x)


class TwoInputs(DigitalLayer):
    """Base of the layers of two inputs: observers 'x1', 'x2' and 'y'.

    Attributes:
        x_left_quant_bits: Width of the first input.
        x_right_quant_bits: Width of the second input.
    """

    x_left_quant_bits: int
    x_right_quant_bits: int

    def capture_and_watch(self, config: WitinLayerConfig | None) -> WitinLayerConfig:
        """Copy the options and add the observers."""
        config = self.capture(config, "x_left_quant_bits", "x_right_quant_bits")
        self.watch(
            watched("x1", config.scale_x_left, config.x_left_quant_bits),
            watched("x2", config.scale_x_right, config.x_right_quant_bits),
            watched("y", config.scale_y, config.y_quant_bits),
        )
        return config

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """Both operands, a Python number as a tensor, and the output limited to `output_fp_clip`."""
        x1, x2 = inputs[:2]
        y = clipped(output, self.output_fp_clip)
        return {"x1": _as_tensor(x1, x2), "x2": _as_tensor(x2, x1), "y": y}

    def codes(self, x1: Tensor, x2: Tensor, scale_left: float, scale_right: float) -> tuple[Tensor, Tensor]:
        """Signed codes of both inputs."""
        left = Grid(self.x_left_quant_bits, True, scale_left)
        right = Grid(self.x_right_quant_bits, True, scale_right)
        return fake_codes(x1, left, round_first=True), fake_codes(x2, right, round_first=True)

    def check_pair(self, x1: Any, x2: Any) -> tuple[Tensor, Tensor]:
        """Check both inputs; one of them may be a Python number.

        Raises:
            ShapeError: no floating-point tensor among them, or shapes that do not broadcast.
        """
        x1, x2 = _as_tensor(x1, x2), _as_tensor(x2, x1)
        x1, x2 = self.check_input(x1, "x1"), self.check_input(x2, "x2")
        try:
            torch.broadcast_shapes(x1.shape, x2.shape)  # type: ignore[no-untyped-call]  # torch's own gap
        except RuntimeError as error:
            raise self.shape_error("x1 and x2 do not broadcast", x1, x2) from error
        return x1, x2

    def shape_error(self, problem: str, x1: Tensor, x2: Tensor) -> ShapeError:
        """Error that names both shapes."""
        return ShapeError(problem, given=(tuple(x1.shape), tuple(x2.shape)), where=self.where)


def check_root_width(where: str, bits: int, shift: int, operand: str) -> None:
    """Refuse a square root whose shifted operand does not fit the unit's 32 bits.

    Raises:
        InvalidValueError: `bits + shift` exceeds 32.
    """
    if bits + shift > 32:
        raise InvalidValueError(
            f"sqrt_left_shift_bits plus {operand} must be less than 32!",
            given=f"{bits} + {shift}",
            allowed="a sum of 32 at most",
            where=where,
            hint="Lower sqrt_left_shift_bits or the bit width.",
        )


def _as_tensor(value: Any, other: Any) -> Any:
    """A Python number as a tensor like the other operand; anything else as it is."""
    if not isinstance(other, Tensor) or isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return torch.as_tensor(value, dtype=other.dtype, device=other.device)

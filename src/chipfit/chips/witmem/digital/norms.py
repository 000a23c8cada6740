"""Reductions and normalisations of the digital unit: mean, batch norm, cumulative layer norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.arithmetic.fake_quant import fake_codes
from chipfit.arithmetic.grid import Grid
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.digital.base import (
    DigitalLayer,
    OneInput,
    accumulator_dtype,
    at_full_precision,
    check_root_width,
    rounded,
    watched,
)
from chipfit.chips.witmem.digital.roots import integer_root, over_root
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.errors import InvalidTypeError, InvalidValueError, ShapeError


def mean_code(codes: Tensor, dims: tuple[int, ...], largest: int, sum_bits: int, keepdim: bool) -> Tensor:
    """Rounded mean of codes, the sum held in a register of `sum_bits` signed bits that saturates.

    Args:
        codes: Integer codes.
        dims: Dimensions to average over.
        largest: Greatest magnitude of a code.
        sum_bits: Width of the register.
        keepdim: Keep the averaged dimensions with length 1.

    Example:
        >>> mean_code(torch.tensor([[5.0, 6.0, 6.0]]), (1,), largest=127, sum_bits=55, keepdim=False)
        tensor([6.])
        >>> mean_code(torch.tensor([[5.0, 6.0, 6.0]]), (1,), largest=127, sum_bits=4, keepdim=False)
        tensor([2.])
    """
    n = 1
    for dim in dims:
        n *= codes.shape[dim]
    total = codes.sum(dims, keepdim=keepdim, dtype=accumulator_dtype(codes, n * largest)).to(codes.dtype)
    grid = Grid(sum_bits)
    return rounded(torch.clamp(total, grid.lo, grid.hi) / n)


class WitinMean(WitinLayer):
    """Mean whose result keeps the scale of the input: `y = round(clamp(sum q_x) / n) / s_x`.

    Args:
        dim: One dimension, or None for all of them; in mode 'float' also several.
        keepdim: Keep the averaged dimension with length 1; without effect where `dim` is None.
        layer_config: Options. Honoured: scale_x, x_quant_bits, mean_sum_quant_bits.

    Raises:
        InvalidTypeError: in a quantised forward, several dimensions.
        InvalidValueError: in a quantised forward, a dimension that the input does not have.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16)
        >>> WitinMean(dim=1, layer_config=config)(torch.tensor([[0.5, 0.25, 0.3]]))
        tensor([0.3750])
    """

    x_quant_bits: int
    mean_sum_quant_bits: int

    def __init__(
        self,
        dim: int | tuple[int, ...] | list[int] | None = None,
        keepdim: bool = False,
        layer_config: WitinLayerConfig | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.keepdim = dim, keepdim
        config = self.capture(layer_config)
        self.x_quant_bits, self.mean_sum_quant_bits = config.x_quant_bits, config.mean_sum_quant_bits
        self.watch(watched("x", config.scale_x, config.x_quant_bits))

    @at_full_precision
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x = self.check_input(input)
        if self.mode == "float":
            return torch.mean(x) if self.dim is None else torch.mean(x, self.dim, self.keepdim)
        dims, keepdim = self._dims(x)
        scale = self.scales_in_force()["x"]
        codes = fake_codes(x, Grid(self.x_quant_bits, True, scale), round_first=True)
        if self.observing:
            self.observe(x=x)
        return mean_code(codes, dims, 1 << (self.x_quant_bits - 1), self.mean_sum_quant_bits, keepdim) / scale

    def _dims(self, x: Tensor) -> tuple[tuple[int, ...], bool]:
        if self.dim is None:
            return tuple(range(x.dim())), False
        if isinstance(self.dim, (tuple, list)):
            raise InvalidTypeError(
                "the chip averages over one dimension at a time",
                given=self.dim,
                allowed="an int, or None for all dimensions",
                where=self.where,
                hint="Flatten those dimensions into one before the layer.",
            )
        if not -x.dim() <= self.dim < x.dim():
            raise InvalidValueError(
                "IndexError: Dimension out of range",
                given=self.dim,
                allowed=f"{-x.dim()} to {x.dim() - 1}",
                where=self.where,
            )
        return (self.dim,), self.keepdim

    def extra_repr(self) -> str:
        """Show what is averaged."""
        return f"dim={self.dim}, keepdim={self.keepdim}"


class WitinBatchNorm2d(DigitalLayer, nn.BatchNorm2d):
    """Batch norm as one multiply-add on codes.

    With `affine`: `W = gamma / sqrt(var + eps)`, `B = beta - mean * W`, `acc = q_x * q_W + q_B` and
    `y = clamp(round(acc / (s_x * s_W / s_y))) / s_y`, where `q_B` has `x_quant_bits + weight_quant_bits` bits.
    Without: `y = (q_x - q_mean) / (q_std + eps)`, with eps in code units.

    In training the statistics are the batch's (biased variance), and the running buffers follow as in torch; they carry
    no graph. Without running statistics the batch's are used in `eval()` too, as in torch.

    Args:
        num_features: Channels.
        eps: As in torch.
        momentum: As in torch; None averages over all batches.
        affine: As in torch.
        track_running_stats: As in torch.
        device: As in torch.
        dtype: As in torch.
        layer_config: Options. Honoured: scale_x, x_quant_bits, scale_weight, weight_quant_bits, scale_y, y_quant_bits.

    Raises:
        ShapeError: input not of shape (n, num_features, h, w), or one value a channel in training.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False,
        ...                           scale_x=16, scale_y=32, scale_weight=64)
        >>> WitinBatchNorm2d(1, layer_config=config).eval()(torch.full((1, 1, 1, 1), 0.75)).detach()
        tensor([[[[0.7500]]]])
    """

    x_quant_bits: int
    weight_quant_bits: int

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        layer_config: WitinLayerConfig | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        config = self.capture(layer_config, "x_quant_bits", "weight_quant_bits")
        self.watch(
            watched("x", config.scale_x, config.x_quant_bits),
            watched("y", config.scale_y, config.y_quant_bits),
            watched("weight", config.scale_weight, config.weight_quant_bits),
        )
        self.output_fp_clip = None  # without effect on batch norm, upstream and here

    @at_full_precision
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x = self.check_input(input)
        if x.dim() != 4 or x.shape[1] != self.num_features:
            raise ShapeError(
                "batch norm 2d takes (n, channels, h, w)",
                given=tuple(x.shape),
                allowed=f"4 dimensions, {self.num_features} channels",
                where=self.where,
            )
        if self.mode == "float":
            return nn.BatchNorm2d.forward(self, x)
        mean, var = (v.to(x.dtype) for v in self._statistics(x))
        scales = self.scales_in_force()
        codes = fake_codes(x, Grid(self.x_quant_bits, True, scales["x"]), round_first=True)
        if self.affine:
            return self._multiply_add(x, codes, mean, var, scales)
        grid = Grid(self.x_quant_bits, True, scales["x"])
        centre = fake_codes(_per_channel(mean), grid, round_first=True)
        spread = fake_codes(_per_channel(torch.sqrt(var)), grid, round_first=True)
        return self.finish((codes - centre) / (spread + self.eps), scales["y"], x=x)

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """As for any layer, the weight folded with the running statistics; without gamma there is none."""
        tensors = super().calibration_tensors(inputs, output)
        if self.weight is None:
            del tensors["weight"]
            return tensors
        x = inputs[0]
        var = self.running_var if self.running_var is not None else x.var((0, 2, 3), unbiased=False)
        return tensors | {"weight": self.weight / torch.sqrt(var + self.eps)}

    def _multiply_add(self, x: Tensor, codes: Tensor, mean: Tensor, var: Tensor, scales: dict[str, float]) -> Tensor:
        scale = scales["x"] * scales["weight"]
        weight = self.weight / torch.sqrt(var + self.eps)
        bias = self.bias - mean * weight
        q_weight = fake_codes(weight, Grid(self.weight_quant_bits, True, scales["weight"]), round_first=True)
        q_bias = fake_codes(bias, Grid(self.x_quant_bits + self.weight_quant_bits, True, scale), round_first=True)
        total = codes * _per_channel(q_weight) + _per_channel(q_bias)
        if self.training:  # upstream divides once in eval() but not here: see finish_codes
            return self.finish(total / scale, scales["y"], x=x, weight=weight)
        return self.finish_codes(total, scale, scales["y"])

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance a channel; in training the running buffers take their step."""
        if not self.training and self.running_mean is not None and self.running_var is not None:
            return self.running_mean, self.running_var
        n = x.numel() // x.shape[1]
        if n < 2 and self.training:
            raise ShapeError("training needs more than one value a channel", given=tuple(x.shape), where=self.where)
        mean = x.mean((0, 2, 3))
        var = x.var((0, 2, 3), unbiased=False)
        if self.training and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                step = self.momentum
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                    if step is None:
                        step = 1.0 / float(self.num_batches_tracked)
                step = 0.0 if step is None else step
                self.running_mean.mul_(1 - step).add_(mean.detach(), alpha=step)
                self.running_var.mul_(1 - step).add_(var.detach() * (n / (n - 1)), alpha=step)
        return mean, var


def _per_channel(v: Tensor) -> Tensor:
    return v.view(1, -1, 1, 1)


class WitinClnBn2d(OneInput):
    """Layer norm over dimensions 1 and 3 of an input (batch, channel, time, frequency), for each batch entry and time.

        M = round(clamp(sum q) / n)      D = q - M
        V = round(clamp(sum D^2) / n)    v = D * 2^(k/2) / floor(sqrt(V * 2^k))

    A row of zero variance gives 0 (and gradient 0). With `cln_simple` M is 0. In float: `(x - mean) / sqrt(var + 1e-5)`
    or `x / sqrt(mean(x^2) + 1e-5)` with `cln_simple`.

    Args:
        layer_config: Options. Honoured: scale_x, x_quant_bits, scale_y, y_quant_bits, cln_simple, mean_sum_quant_bits,
            sqrt_left_shift_bits, output_fp_clip.

    Raises:
        ShapeError: input not of four dimensions.
        InvalidValueError: in a quantised forward, `2 * x_quant_bits + sqrt_left_shift_bits` above 32.

    Source:
        Spec/witmem-digital.md, sections 2 and 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=32)
        >>> WitinClnBn2d(layer_config=config)(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)).flatten()
        tensor([-1.3438, -0.4375,  0.4375,  1.3438])
    """

    cln_simple: bool
    mean_sum_quant_bits: int
    sqrt_left_shift_bits: int

    def __init__(self, layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__()
        self.capture_and_watch(layer_config, "cln_simple", "mean_sum_quant_bits", "sqrt_left_shift_bits")

    def prepare(self, input: Any) -> Tensor:
        """Check the input's dtype and dimensions."""
        x = self.check_input(input)
        if x.dim() != 4:
            raise ShapeError(
                "the input must be (batch, channel, time, frequency)",
                given=tuple(x.shape),
                allowed="4 dimensions",
                where=self.where,
            )
        return x

    def in_float(self, x: Tensor) -> Tensor:
        """Result in mode 'float'."""
        if self.cln_simple:
            return x / torch.sqrt((x * x).mean((1, 3), keepdim=True) + 1e-5)
        var, mean = torch.var_mean(x, (1, 3), unbiased=False, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-5)

    def on_codes(self, codes: Tensor, scale_x: float) -> Tensor:
        """Real result, computed from input codes; their scale cancels."""
        shift, bits = self.sqrt_left_shift_bits, self.x_quant_bits
        check_root_width(self.where, 2 * bits, shift, "x_quant_bits*2")
        deviation, largest = codes, 1 << (bits - 1)
        if not self.cln_simple:
            deviation = codes - mean_code(codes, (1, 3), largest, self.mean_sum_quant_bits, keepdim=True)
            largest <<= 1
        variance = mean_code(deviation * deviation, (1, 3), largest**2, self.mean_sum_quant_bits, keepdim=True)
        root = integer_root(variance, shift)
        return over_root(deviation * 2.0 ** (shift // 2), root.expand_as(deviation))

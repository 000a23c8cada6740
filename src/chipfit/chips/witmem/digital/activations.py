"""Activations of the digital unit: GELU, sigmoid, tanh, PReLU.

Each is the exact function of the de-quantised input code: a table of `f(code / s_x)` with one entry a code. The
training layers evaluate the function; `export` writes the table.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.digital.base import OneInput, at_full_precision, clipped
from chipfit.chips.witmem.layer import Watched
from chipfit.errors import ShapeError


class WitinGELU(OneInput, nn.GELU):
    """GELU: `y = clamp(round(clip(gelu(q_x / s_x) + shift) * s_y)) / s_y`.

    `gelu_shift_num` lifts the result (whose minimum is -0.17) so that more of the range is used; the output then has
    one bit more, and stays lifted.

    Args:
        approximate: 'none' or 'tanh', as in torch.
        layer_config: Options. Honoured: scale_x, x_quant_bits, scale_y, y_quant_bits, gelu_shift_num, output_fp_clip.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=64)
        >>> WitinGELU(layer_config=config)(torch.tensor([-1.0, 0.3, 9.0]))
        tensor([-0.1562,  0.1875,  1.9844])
    """

    gelu_shift_num: float | None

    def __init__(self, approximate: str = "none", layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__(approximate=approximate)
        shift = getattr(layer_config, "gelu_shift_num", None)
        self.capture_and_watch(layer_config, "gelu_shift_num", extra_y_bits=1 if shift else 0)

    @property
    def y_bits(self) -> int:
        """Width of the output grid: one bit more than `y_quant_bits` when the result is shifted."""
        return self.y_quant_bits + (1 if self.gelu_shift_num else 0)

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """As for any layer; the quantised output is lifted by `gelu_shift_num`, the float one is not."""
        return super().calibration_tensors(inputs, output + (self.gelu_shift_num or 0.0))

    def in_float(self, x: Tensor) -> Tensor:
        """Result in mode 'float'."""
        return F.gelu(x, approximate=self.approximate)

    def on_codes(self, codes: Tensor, scale_x: float) -> Tensor:
        """Real result, computed from input codes."""
        v = F.gelu(codes / scale_x, approximate=self.approximate)
        return v + self.gelu_shift_num if self.gelu_shift_num else v


class _Limited(OneInput):
    """Sigmoid and tanh: `x_clip` limits the input in every mode, `output_fp_clip` only what auto-scale sees."""

    x_clip: float | None
    clips_output: ClassVar[bool] = False

    def __init__(self, layer_config: WitinLayerConfig | None = None) -> None:
        super().__init__()
        self.capture_and_watch(layer_config, "x_clip")

    def prepare(self, input: Any) -> Tensor:
        """Check the input and limit it to `x_clip`."""
        return clipped(self.check_input(input), self.x_clip)

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """As for any layer, the input limited to `x_clip`."""
        return super().calibration_tensors((clipped(inputs[0], self.x_clip),), output)


class WitinSigmoid(_Limited):
    """Sigmoid with an unsigned output: `y = clamp(round(sigmoid(q_x / s_x) * s_y), 0, 2^y_bits - 1) / s_y`.

    Args:
        layer_config: Options. Honoured: scale_x, x_quant_bits, scale_y, y_quant_bits, x_clip (before quantisation), and
            output_fp_clip, which limits the auto-scale statistic only.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=128)
        >>> WitinSigmoid(layer_config=config)(torch.tensor([-20.0, 0.0, 1.0]))
        tensor([0.0000, 0.5000, 0.7344])
    """

    y_signed: ClassVar[bool] = False

    def in_float(self, x: Tensor) -> Tensor:
        """Result in mode 'float'."""
        return torch.sigmoid(x)

    def on_codes(self, codes: Tensor, scale_x: float) -> Tensor:
        """Real result, computed from input codes."""
        return torch.sigmoid(codes / scale_x)


class WitinTanh(_Limited):
    """Hyperbolic tangent: `y = clamp(round(tanh(q_x / s_x) * s_y)) / s_y`.

    Args:
        layer_config: Options. Honoured: as for `WitinSigmoid`.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=32, scale_y=128)
        >>> WitinTanh(layer_config=config)(torch.tensor([-9.0, 0.5, 9.0]))
        tensor([-1.0000,  0.4609,  0.9922])
    """

    def in_float(self, x: Tensor) -> Tensor:
        """Result in mode 'float'."""
        return torch.tanh(x)

    def on_codes(self, codes: Tensor, scale_x: float) -> Tensor:
        """Real result, computed from input codes."""
        return torch.tanh(codes / scale_x)


class WitinPReLU(OneInput, nn.PReLU):
    """PReLU with a quantised slope: `v = prelu(q_x / s_x, q_w / s_w)`, then clip and output rounding.

    Args:
        num_parameters: 1, or the number of channels (dimension 1 of the input).
        init: Initial slope.
        device: As in torch.
        dtype: As in torch.
        layer_config: Options. Honoured: scale_x, x_quant_bits, scale_weight, weight_quant_bits, scale_y, y_quant_bits,
            output_fp_clip.

    Raises:
        ShapeError: a slope per channel, and an input whose dimension 1 is not that many channels.

    Source:
        Spec/witmem-digital.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False,
        ...                           scale_x=16, scale_y=16, scale_weight=8)
        >>> WitinPReLU(init=0.2, layer_config=config)(torch.tensor([-2.0, 1.0])).detach()
        tensor([-0.5000,  1.0000])
    """

    weight_quant_bits: int

    def __init__(
        self,
        num_parameters: int = 1,
        init: float = 0.25,
        device: Any = None,
        dtype: Any = None,
        layer_config: WitinLayerConfig | None = None,
    ) -> None:
        super().__init__(num_parameters=num_parameters, init=init, device=device, dtype=dtype)
        config = self.capture_and_watch(layer_config, "weight_quant_bits")
        self.watch(Watched("weight", config.scale_weight, config.weight_quant_bits))  # io_max 8 whatever the width

    def prepare(self, input: Any) -> Tensor:
        """Check the input's dtype and channels."""
        x = self.check_input(input)
        channels = x.shape[1] if x.dim() > 1 else 1
        if self.num_parameters not in (1, channels):
            raise ShapeError(
                "one slope per channel, but the input has another number of channels in dimension 1",
                given=tuple(x.shape),
                allowed=f"{self.num_parameters} channels",
                where=self.where,
            )
        return x

    @at_full_precision
    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer."""
        x = self.prepare(input)
        if self.mode == "float":
            return F.prelu(x, self.weight)
        scales = self.scales_in_force()
        weight = self.weight.to(x.dtype)
        slope = fake_quantise(weight, Grid(self.weight_quant_bits, True, scales["weight"]), round_first=True)
        v = F.prelu(self.input_codes(x, scales["x"]) / scales["x"], slope)
        return self.finish(v, scales["y"], x=x, weight=self.weight)

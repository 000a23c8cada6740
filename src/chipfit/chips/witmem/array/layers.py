"""The layers of the analog array (manual table 1): their base, and Linear; the convolutions are in `conv.py`.

Each is the torch layer of the same name with the same parameters. In mode 'float' it is that layer; in 'quant' and
'nat' it computes what the array computes, in the arithmetic of `rule.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.witmem.array.kernel import array_forward
from chipfit.chips.witmem.array.numbers import ArraySpec, Geometry
from chipfit.chips.witmem.array.spec import LINEAR, input_scale_bits, spec_from_config, spec_with_scales
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.layer import Watched, WitinLayer
from chipfit.errors import ShapeError

_HALF = (torch.float16, torch.bfloat16)


class ArrayLayer(WitinLayer):
    """Base of the array layers: from options and observers to the numbers in force, and through the array."""

    weight: Tensor
    bias: Any  # a parameter always, though torch's convolutions declare it optional
    w_clip: float | None

    def prepare(self, config: WitinLayerConfig | None, has_bias: bool, kind: ArraySpec) -> None:
        """Capture the options, once the torch base class is initialised.

        Args:
            config: The layer's configuration.
            has_bias: Whether the layer learns a bias. One without has a bias of zeros that takes no gradient, so that
                its checkpoints have the same keys.
            kind: What this kind of layer does differently from others; see `spec_from_config`.
        """
        config = self.capture(config)
        if not has_bias:
            nn.init.zeros_(self.bias)
            self.bias.requires_grad_(False)
        self.w_clip = config.w_clip
        self._template = spec_from_config(config, kind)
        if self._template.splits and config.bias_d.numel() not in (1, self.bias.numel()):
            raise ShapeError(
                "bias_d has the wrong shape",
                given=tuple(config.bias_d.shape),
                allowed=f"one value, or one for each of {self.bias.numel()} output channels",
                where=self.where,
            )
        self._spec = self._template
        self._spec_key: tuple[object, ...] = ()
        x_bits, y_bits = config.x_quant_bits, config.y_quant_bits
        self.watch(
            Watched("x", config.scale_x, input_scale_bits(self._template), io_max=x_bits),
            Watched("y", config.scale_y, y_bits, io_max=y_bits),
            Watched("weight", config.scale_weight, config.weight_quant_bits, io_max=8),
        )

    def spec_in_force(self) -> ArraySpec:
        """The numbers that the coming forward uses."""
        by_name = self.scales_in_force()
        scales = (by_name["x"], by_name["weight"], by_name["y"])
        key = (scales, self.mode, self.noise_level, self.noise_model, self.rounding, self.layer_name)
        if key != self._spec_key:
            self._spec = spec_with_scales(self._template, self, scales)
            self._spec_key = key
        return self._spec

    @property
    def g_value(self) -> float:
        """Accumulator codes per output code, G = scale_x * scale_weight / scale_y, with the scales in force."""
        return self.spec_in_force().g

    def begin_float(self, x: Tensor) -> None:
        """What comes before a float forward: the check of debug mode, and the weight's clip."""
        if self.debug_mode:
            self.check_input(x)
        self.clip_weight()

    def clip_weight(self) -> None:
        """Clip the weight to `w_clip` in place, so that training stays in range."""
        if self.w_clip:
            with torch.no_grad():
                self.weight.data.clamp_(-self.w_clip, self.w_clip)

    def through_array(self, x: Tensor, lin: Geometry, seen: Tensor | None = None) -> Tensor:
        """Quantise, multiply, requantise, and let auto-scale see it.

        Args:
            x: Input, already padded where the padding is not zeros.
            lin: The layer's linear map.
            seen: What auto-scale watches as input, where that is not `x`.

        Returns:
            The output on its grid, in the dtype of `x`.
        """
        if x.dtype in _HALF or torch.is_autocast_enabled(x.device.type):
            # float16 cannot hold an accumulator and bfloat16 no code above 256: compute in float32
            with torch.autocast(x.device.type, enabled=False):
                return self._compute(x.float(), self.weight.float(), self.bias.float(), lin, seen).to(x.dtype)
        return self._compute(x, self.weight, self.bias, lin, seen)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor, lin: Geometry, seen: Tensor | None) -> Tensor:
        spec = self.spec_in_force()
        watching = self.observing and any(observer.collecting for observer in self.observers.values())
        if watching and not x.numel():
            raise ShapeError("auto-scale cannot learn from an empty input", given=tuple(x.shape), where=self.where)
        y, largest = array_forward(x, weight, bias, lin, spec, watching)
        if self.observing:
            self.observe(x=x if seen is None else seen, y=largest, weight=weight)
        return y

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """As for any layer, the output limited to `output_fp_clip` where the layer has it."""
        limit = self._template.fp_clip
        limited = torch.clamp(output, -limit, limit) if limit else output
        return super().calibration_tensors(inputs, limited)

    def check_channels(self, x: Tensor, dims: tuple[int, ...], channel_dim: int, channels: int, shape: str) -> Tensor:
        """Refuse an input whose shape or dtype does not fit.

        Raises:
            ShapeError: wrong number of dimensions, channels, or a dtype other than the weight's.
        """
        self.check_input(x)
        if (dims and x.dim() not in dims) or x.dim() < -channel_dim or x.shape[channel_dim] != channels:
            raise ShapeError("input has the wrong shape", given=tuple(x.shape), allowed=shape, where=self.where)
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ShapeError(
                "input and weight differ in dtype",
                given=x.dtype,
                allowed=str(self.weight.dtype),
                where=self.where,
                hint="Convert one of them with .to().",
            )
        return x


class WitinLinear(ArrayLayer, nn.Linear):
    """Linear layer on the array: `torch.nn.Linear`, then what the chip makes of it.

    Args:
        in_features: Size of each input sample.
        out_features: Size of each output sample.
        bias: Whether to learn a bias. Without, `bias` is a parameter of zeros that takes no gradient.
        layer_config: Options, required.

    Shape:
        Input `(..., in_features)`, output `(..., out_features)`.

    Raises:
        InvalidValueError: `layer_config` is missing or holds what the layer cannot compute with.

    Source:
        Manual table 1 and section 1.2.

    Example:
        >>> config = WitinLayerConfig(G_algo=1, use_quantization=True, use_auto_scale=False)
        >>> config.scale_x = config.scale_weight = 64; config.scale_y = 32
        >>> layer = WitinLinear(2, 1, layer_config=config)
        >>> _ = layer.load_state_dict({"weight": torch.tensor([[0.5, -1.0]]), "bias": torch.zeros(1)}, strict=False)
        >>> layer(torch.tensor([[1.0, 0.21]])).detach()
        tensor([[0.3125]])
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, layer_config: WitinLayerConfig | None = None
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias=True)
        self.prepare(layer_config, bias, LINEAR)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer in its current mode."""
        if self.mode == "float":
            self.begin_float(input)
            return nn.Linear.forward(self, input)
        x = self.check_channels(input, (), -1, self.in_features, f"(..., {self.in_features})")
        return self.through_array(x, Geometry("linear"))

"""The layers that run on the analog array: Linear, Conv1d, Conv2d, ConvTranspose2d (manual table 1).

Each is the torch layer of the same name with the same parameters. In mode 'float' it is that layer; in 'quant' and
'nat' it computes what the array computes, in the arithmetic of `array_rule.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.chips.witmem.array_kernel import array_forward
from chipfit.chips.witmem.array_rule import ArraySpec, Geometry
from chipfit.chips.witmem.config import WitinLayerConfig
from chipfit.chips.witmem.enums import HandleNegInType
from chipfit.chips.witmem.layer import Watched, WitinLayer
from chipfit.chips.witmem.noise import noise_in_force
from chipfit.errors import InvalidValueError, ShapeError, UnsupportedError

_Size1 = int | tuple[int]
_Size2 = int | tuple[int, int]
_HALF = (torch.float16, torch.bfloat16)


class ArrayLayer(WitinLayer):
    """Base of the array layers: from options and observers to the numbers in force, and through the array."""

    weight: Tensor
    bias: Any  # a parameter always, though torch's convolutions declare it optional
    w_clip: float | None

    def prepare(self, config: WitinLayerConfig | None, has_bias: bool, template: ArraySpec | None = None) -> None:
        """Capture the options, once the torch base class is initialised.

        Args:
            config: The layer's configuration.
            has_bias: Whether the layer learns a bias. One without has a bias of zeros that takes no gradient, so that
                its checkpoints have the same keys.
            template: What this kind of layer does differently from a Linear.
        """
        config = self.capture(config)
        if not has_bias:
            nn.init.zeros_(self.bias)
            self.bias.requires_grad_(False)
        self.w_clip = config.w_clip
        kind = template or ArraySpec(1.0, 1.0, 1.0)
        self._template = dataclasses.replace(
            kind,
            scale_x=config.scale_x,
            scale_weight=config.scale_weight,
            scale_y=config.scale_y,
            x_bits=config.x_quant_bits,
            y_bits=config.y_quant_bits,
            weight_bits=config.weight_quant_bits,
            negative=config.handle_neg_in,
            splits=kind.splits and config.x_quant_bits > 8,
            shift_num=config.shift_num,
            shift_limit=kind.shift_limit or 1 << config.x_quant_bits,
            bias_rows=config.bias_row_N,
            bias_digital=config.bias_d,
            fp_clip=config.output_fp_clip if kind.fp_clip else None,
            w_clip=config.w_clip,
        )
        self._spec = self._template
        self._spec_key: tuple[object, ...] = ()
        unsigned = not kind.signed_input or config.handle_neg_in is HandleNegInType.PN
        x_extra = 1 if unsigned and config.handle_neg_in is not HandleNegInType.Shift else 0
        x_bits, y_bits = config.x_quant_bits, config.y_quant_bits
        self.watch(
            Watched("x", config.scale_x, x_bits + x_extra, io_max=x_bits),
            Watched("y", config.scale_y, y_bits, io_max=y_bits),
            Watched("weight", config.scale_weight, config.weight_quant_bits, io_max=8),
        )

    def spec_in_force(self) -> ArraySpec:
        """The numbers that the coming forward uses."""
        scales = self.scales_in_force()
        level = self.noise_level if self.mode == "nat" else 0.0
        key = (scales["x"], scales["weight"], scales["y"], level, self.noise_model, self.rounding)
        if key != self._spec_key:
            noise, shared_offset = noise_in_force(self.noise_model, level, self._template.bias_rows, self.where)
            self._spec = dataclasses.replace(
                self._template,
                scale_x=scales["x"],
                scale_weight=scales["weight"],
                scale_y=scales["y"],
                rounding=self.rounding,
                noise=noise,
                noise_level=level,
                shared_offset=shared_offset,
                where=self.where,
            )
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
        >>> layer(torch.tensor([[1.0, 0.21]]))
        tensor([[0.3125]])
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, layer_config: WitinLayerConfig | None = None
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias=True)
        self.prepare(layer_config, bias, ArraySpec(1.0, 1.0, 1.0, splits=True, shift_limit=0))

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer in its current mode."""
        if self.mode == "float":
            self.begin_float(input)
            return nn.Linear.forward(self, input)
        x = self.check_channels(input, (), -1, self.in_features, f"(..., {self.in_features})")
        return self.through_array(x, Geometry("linear"))


class _ArrayConv(ArrayLayer):
    """What WitinConv1d and WitinConv2d share."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: Any  # torch declares the literal names
    _reversed_padding_repeated_twice: list[int]
    to_linear: bool

    def prepare_conv(self, config: WitinLayerConfig | None, has_bias: bool) -> None:
        self.to_linear = config is not None and config.to_linear
        direct = not self.to_linear
        self.prepare(
            config,
            has_bias,
            ArraySpec(
                1.0,
                1.0,
                1.0,
                signed_input=direct,
                per_pass_quotient=direct,
                splits=self.to_linear,
                shift_limit=128 if direct else 0,
                fp_clip=1.0 if direct else None,
            ),
        )
        if self.to_linear and self.groups != 1:
            raise InvalidValueError("to_linear needs groups=1", given=self.groups, allowed="1", where=self.where)

    def convolve(self, input: Tensor) -> Tensor:
        spatial = len(self.kernel_size)
        shape = f"(N, {self.in_channels}, " + ", ".join("DHW"[3 - spatial :]) + ")"
        x = self.check_channels(input, (spatial + 1, spatial + 2), -1 - spatial, self.in_channels, shape)
        batched = x.dim() == spatial + 2
        x = x if batched else x.unsqueeze(0)
        pads = self._reversed_padding_repeated_twice
        before, after = tuple(pads[::2][::-1]), tuple(pads[1::2][::-1])
        shifts = self._template.negative is HandleNegInType.Shift
        if self.padding_mode == "zeros" and before == after and not shifts:
            padding = before
        else:  # a padded zero must become the quantised shift, so Shift pads before it quantises
            padding = (0,) * spatial
            x = F.pad(x, pads, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        lin = Geometry("conv", self.stride, padding, self.dilation, (), self.groups)
        y = self.through_array(x, lin, self._visited(x, padding) if self.to_linear and self.observing else None)
        y = self._limit(y)
        return y if batched else y.squeeze(0)

    def _visited(self, x: Tensor, padding: tuple[int, ...]) -> Tensor:
        """The pixels that a window visits: what the vendor's im2col form shows to auto-scale."""
        if len(self.kernel_size) == 1:
            x, padding = x.unsqueeze(2), (0, *padding)
        kernel, dilation, stride = (
            (1, *size) if len(size) == 1 else size for size in (self.kernel_size, self.dilation, self.stride)
        )
        return F.unfold(x.detach(), kernel, dilation, padding, stride)

    def _limit(self, y: Tensor) -> Tensor:
        """Clip the finished output once more: to int8 in PN mode and with to_linear, at the scale now in force.

        The vendor's Conv2d does both; the second shows in the one forward in which auto-scale changes the scale.
        """
        int8 = self.to_linear or self._template.negative is HandleNegInType.PN
        lo, hi = (-128, 127) if int8 else self._spec.y_range
        scale_y = self.observers["y"].scale
        if scale_y == self._spec.scale_y and self._spec.y_range[1] <= hi:
            return y
        return torch.clamp(y, lo / scale_y, hi / scale_y)


class WitinConv2d(_ArrayConv, nn.Conv2d):
    """2-D convolution on the array: `torch.nn.Conv2d` with the vendor's order of arguments.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step of the window.
        padding: Padding per side, or 'same' / 'valid'.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'.
        dilation: Distance between taps.
        groups: Groups of channels.
        bias: Whether to learn a bias. Without, `bias` is a parameter of zeros that takes no gradient.
        layer_config: Options, required. With `to_linear` the layer follows the rules of WitinLinear.

    Shape:
        Input `(N, C, H, W)` or `(C, H, W)`, output as `torch.nn.Conv2d`.

    Raises:
        InvalidValueError: `layer_config` is missing, or `to_linear` with more than one group.

    Source:
        Manual table 1; spec/witmem-array.md, sections 3 and 4.

    Example:
        >>> config = WitinLayerConfig(G_algo=1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=4)
        >>> WitinConv2d(1, 2, (3, 3), padding=1, layer_config=config)(torch.ones(1, 1, 5, 5)).shape
        torch.Size([1, 2, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size2,
        stride: _Size2 = 1,
        padding: _Size2 | str = 0,
        padding_mode: Any = "zeros",
        dilation: _Size2 = 1,
        groups: int = 1,
        bias: bool = True,
        layer_config: WitinLayerConfig | None = None,
    ) -> None:
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, True, padding_mode
        )
        self.prepare_conv(layer_config, bias)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer in its current mode."""
        if self.mode == "float":
            self.begin_float(input)
            return nn.Conv2d.forward(self, input)
        return self.convolve(input)


class WitinConv1d(_ArrayConv, nn.Conv1d):
    """1-D convolution on the array, with the rules of WitinConv2d.

    The manual's table 2 speaks of a Conv1d; the vendor's library has none.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Length of the kernel.
        stride: Step of the window.
        padding: Padding per side, or 'same' / 'valid'.
        padding_mode: 'zeros', 'reflect', 'replicate' or 'circular'.
        dilation: Distance between taps.
        groups: Groups of channels.
        bias: Whether to learn a bias. Without, `bias` is a parameter of zeros that takes no gradient.
        layer_config: Options, required.

    Shape:
        Input `(N, C, L)` or `(C, L)`, output as `torch.nn.Conv1d`.

    Example:
        >>> config = WitinLayerConfig(G_algo=1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=4)
        >>> WitinConv1d(2, 3, 5, layer_config=config)(torch.ones(1, 2, 16)).shape
        torch.Size([1, 3, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size1,
        stride: _Size1 = 1,
        padding: _Size1 | str = 0,
        padding_mode: Any = "zeros",
        dilation: _Size1 = 1,
        groups: int = 1,
        bias: bool = True,
        layer_config: WitinLayerConfig | None = None,
    ) -> None:
        nn.Conv1d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, True, padding_mode
        )
        self.prepare_conv(layer_config, bias)

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer in its current mode."""
        if self.mode == "float":
            self.begin_float(input)
            return nn.Conv1d.forward(self, input)
        return self.convolve(input)


class WitinConvTranspose2d(ArrayLayer, nn.ConvTranspose2d):
    """2-D transposed convolution on the array: `torch.nn.ConvTranspose2d` without groups.

    `to_linear` changes nothing here: the vendor's library gives the same numbers with it, and fails at stride 2.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the kernel.
        stride: Step of the window.
        padding: As `torch.nn.ConvTranspose2d`.
        output_padding: Extra size on one side of the output.
        groups: Must be 1.
        bias: Whether to learn a bias. Without, `bias` is a parameter of zeros that takes no gradient.
        dilation: Distance between taps.
        padding_mode: Must be 'zeros'.
        layer_config: Options, required.

    Shape:
        Input `(N, C, H, W)` or `(C, H, W)`, output as `torch.nn.ConvTranspose2d`.

    Raises:
        InvalidValueError: `layer_config` is missing, or `groups` is not 1.
        UnsupportedError: quantised with `HandleNegInType.Shift`.

    Source:
        Manual table 1; spec/witmem-array.md, section 3.

    Example:
        >>> config = WitinLayerConfig(G_algo=1, use_quantization=True, use_auto_scale=False, scale_x=16, scale_y=4)
        >>> WitinConvTranspose2d(1, 2, 2, stride=2, layer_config=config)(torch.ones(1, 1, 3, 3)).shape
        torch.Size([1, 2, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size2,
        stride: _Size2 = 1,
        padding: _Size2 = 0,
        output_padding: _Size2 = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int = 1,
        padding_mode: Any = "zeros",
        layer_config: WitinLayerConfig | None = None,
    ) -> None:
        if groups != 1:
            raise InvalidValueError("groups must be 1", given=groups, allowed="1", where=type(self).__name__)
        nn.ConvTranspose2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            True,
            dilation,
            padding_mode,
        )
        self.prepare(layer_config, bias, ArraySpec(1.0, 1.0, 1.0, per_pass_quotient=True, fp_clip=1.0))

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Compute the layer in its current mode; `output_size` as in torch."""
        if self.mode == "float":
            self.begin_float(input)
            return nn.ConvTranspose2d.forward(self, input, output_size)
        if self._template.negative is HandleNegInType.Shift:
            raise UnsupportedError(
                "WitinConvTranspose2d does not support handle_neg_in == HandleNegInType.Shift",
                allowed="FALSE or PN",
                where=self.where,
            )
        x = self.check_channels(input, (3, 4), -3, self.in_channels, f"(N, {self.in_channels}, H, W)")
        stride, padding, kernel, dilation = self._sizes()
        extra = self._output_padding(x, output_size, stride, padding, kernel, 2, dilation)  # type: ignore[arg-type]
        lin = Geometry("conv_transpose", stride, padding, dilation, tuple(extra), 1)
        y = self.through_array(x if x.dim() == 4 else x.unsqueeze(0), lin)
        return y if x.dim() == 4 else y.squeeze(0)

    def _sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        padding: Any = self.padding
        return self.stride, padding, self.kernel_size, self.dilation

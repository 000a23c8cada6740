"""The convolutions on the analog array: Conv1d, Conv2d, ConvTranspose2d (manual table 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.chips.witmem.array.layers import ArrayLayer
from chipfit.chips.witmem.array.numbers import ArraySpec, Geometry
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.errors import InvalidValueError, UnsupportedError

_Size1 = int | tuple[int]
_Size2 = int | tuple[int, int]


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
        self.to_linear = isinstance(config, WitinLayerConfig) and config.to_linear
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
        extra = self._output_padding(x, output_size, stride, padding, kernel, 2, dilation)  # type: ignore[arg-type]  # torch's asks for lists
        lin = Geometry("conv_transpose", stride, padding, dilation, tuple(extra), 1)
        y = self.through_array(x if x.dim() == 4 else x.unsqueeze(0), lin)
        return y if x.dim() == 4 else y.squeeze(0)

    def _sizes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        padding: Any = self.padding
        return self.stride, padding, self.kernel_size, self.dilation

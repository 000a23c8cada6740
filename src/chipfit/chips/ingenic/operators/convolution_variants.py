"""Convolutions built on or beside Conv2D: DepthwiseConv2D, ConvTranspose2D, Conv1D."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from chipfit.chips.ingenic.bitwidths import LINEAR_BOUND, automatic_depthwise, check_accumulator
from chipfit.chips.ingenic.devices import T40F, TXX, check_channels, check_int, device, unchecked
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight, batchNorm2d
from chipfit.chips.ingenic.operators.convolution import Conv2D, build_convolution
from chipfit.chips.ingenic.operators.features import Tagged, check_shape, read
from chipfit.chips.ingenic.operators.layer import RELU6, Activation, WeightedLayer
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.padding import pair
from chipfit.chips.ingenic.operators.pooling import Unpool2D
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.errors import UnsupportedError


class DepthwiseConv2D(WeightedLayer):
    """Convolution of each channel by itself, batch normalisation, activation and quantiser in one layer.

    Arguments, inputs, errors and arithmetic as `Conv2D`, except:

    Args:
        in_channels: Channels, a multiple of 32 (T40 family) or 16.
        stride: As `Conv2D`.
        kernel_h: Kernel height.
        kernel_w: Kernel width.
        activation_fn: As `Conv2D`.
        enable_batch_norm: As `Conv2D`.
        enable_bias: As `Conv2D`.
        padding: As `Conv2D`.
        data_format: Only `"NCHW"`.
        quantize: As `Conv2D`.
        quantize_last_feature: As `Conv2D`.
        last_layer: As `Conv2D`; the output is never quantised then.
        weight_bitwidth: As `Conv2D`. The codes are those of Txx on every target.
        input_bitwidth: As `Conv2D`.
        output_bitwidth: As `Conv2D`.
        clip_max_value: As `Conv2D`; the vendor advises 3 at 4 bits.
        weight_factor: As `Conv2D`.
        target_device: Any target but T02.
        auto_bitwidth: As `Conv2D`.
        auto_threshold: As `Conv2D`.
        pre_lstm_layer: As `Conv2D`.
        dilation: As `Conv2D`.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Source:
        Manual section DepthwiseConv2D; spec/ingenic.md, sections 1.3, 1.4, 3, 3.1, 3.2.

    Example:
        >>> import torch
        >>> conv = DepthwiseConv2D(32, stride=2, padding=1, target_device="T40")
        >>> conv((torch.rand(1, 32, 5, 5), 32, 0.0))[0].shape
        torch.Size([1, 32, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        stride: int | tuple[int, int] = 1,
        kernel_h: int = 3,
        kernel_w: int = 3,
        activation_fn: Activation = RELU6,
        enable_batch_norm: bool = False,
        enable_bias: bool = True,
        padding: int | tuple[int, int] = 0,
        data_format: str = "NCHW",
        quantize: bool = False,
        quantize_last_feature: bool = False,
        last_layer: bool = False,
        weight_bitwidth: int = 32,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        clip_max_value: float = 6.0,
        weight_factor: float = 3.0,
        target_device: str = "Txx",
        auto_bitwidth: bool = True,
        auto_threshold: bool = False,
        pre_lstm_layer: bool = False,
        dilation: int = 1,
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        operator = "DepthwiseConv2D"
        dev = device(target_device, operator, TXX + T40F, strict)
        check_channels(in_channels, dev, operator)
        for argument, value in {"kernel_h": kernel_h, "kernel_w": kernel_w, "dilation": dilation}.items():
            check_int(value, operator, argument)
        if dev.family == "TXX" and dilation != 1:
            raise UnsupportedError(
                "the target has no dilated convolution",
                given=dilation,
                allowed=f"1 on {dev.name}",
                where=f"{operator}.dilation",
            )
        if dev.family == "TXX" and quantize and auto_bitwidth and min(weight_bitwidth, output_bitwidth) < 8:
            weight_bitwidth, output_bitwidth = automatic_depthwise(in_channels, operator)
        output_bits = 32 if last_layer else output_bitwidth
        options = OperatorOptions.of(operator, dev, locals(), output_bitwidth=output_bits)
        self._configure(options, activation_fn, data_format)
        self.in_channels, self.pre_lstm_layer = in_channels, bool(pre_lstm_layer)
        self.enable_batch_norm, self.enable_bias = bool(enable_batch_norm), bool(enable_bias)
        self.Conv2d = build_convolution(
            dev,
            operator,
            (in_channels, in_channels, in_channels),
            (kernel_h, kernel_w),
            pair(stride, operator, "stride"),
            padding,
            dilation,
            self.enable_bias,
            QuantizeWeight(options.weight_bits, weight_factor, "Txx"),
            self.quantize,
        )
        self.BatchNorm2d = (
            batchNorm2d(in_channels, 2, self.quantize, f"{operator} {in_channels}") if enable_batch_norm else None
        )

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Compute the layer; shapes as in the class."""
        feature = read(inputs, self.operator, self.input_bitwidth)
        check_shape(feature.tensor, (4,), self.operator, self.in_channels)
        if self.quantize and self.device.family == "TXX" and self.weight_bitwidth < 8 and not self.last_layer:
            kernel = self.Conv2d.kernel_size[0] * self.Conv2d.kernel_size[1]
            bits = feature.bits, self.weight_bitwidth, self.output_bitwidth
            check_accumulator(kernel, *bits, LINEAR_BOUND, self.operator)
        x = feature.tensor
        y = self.Conv2d(x, self._border(feature), self._codes(x, feature))
        return self._finish(y, self.BatchNorm2d)


class ConvTranspose2D(nn.Module):
    """Stand-in for a transposed convolution of stride 2: nearest unpooling, then convolutions.

    On Txx, Xs1, Xs2 a depthwise 3x3 and a 1x1 convolution follow, on the T40 family one 3x3 convolution. The depthwise
    one clips at zero; `activation_fn` is the activation of the output.

    Arguments, inputs and errors as `Conv2D`, except that kernel, stride and padding are fixed.

    Args:
        in_channels: Input channels, a multiple of 32 (T40 family) or 16.
        out_channels: Output channels.
        activation_fn: As `Conv2D`.
        enable_batch_norm: As `Conv2D`.
        enable_bias: As `Conv2D`.
        data_format: Only `"NCHW"`.
        quantize: As `Conv2D`.
        quantize_last_feature: As `Conv2D`.
        last_layer: As `Conv2D`.
        weight_bitwidth: As `Conv2D`.
        input_bitwidth: As `Conv2D`.
        output_bitwidth: As `Conv2D`.
        clip_max_value: As `Conv2D`.
        weight_factor: As `Conv2D`.
        target_device: Any target but T02.
        auto_bitwidth: As `Conv2D`.
        auto_threshold: As `Conv2D`.
        pre_lstm_layer: As `Conv2D`.
        strict: As `Conv2D`.

    Returns:
        As `Conv2D`, tensor (N, out_channels, 2H, 2W).

    Source:
        Manual section ConvTranspose2D; spec/ingenic.md, section 3.

    Example:
        >>> import torch
        >>> ConvTranspose2D(32, 64, target_device="T40")((torch.rand(1, 32, 5, 5), 32, 0.0))[0].shape
        torch.Size([1, 64, 10, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation_fn: Activation = RELU6,
        enable_batch_norm: bool = False,
        enable_bias: bool = True,
        data_format: str = "NCHW",
        quantize: bool = False,
        quantize_last_feature: bool = False,
        last_layer: bool = False,
        weight_bitwidth: int = 32,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        clip_max_value: float = 6.0,
        weight_factor: float = 3.0,
        target_device: str = "Txx",
        auto_bitwidth: bool = True,
        auto_threshold: bool = False,
        pre_lstm_layer: bool = False,
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        dev = device(target_device, "ConvTranspose2D", TXX + T40F, strict)
        check_channels(in_channels, dev, "ConvTranspose2D")
        common: dict[str, Any] = {
            "enable_batch_norm": enable_batch_norm,
            "enable_bias": enable_bias,
            "data_format": data_format,
            "quantize": quantize,
            "weight_bitwidth": weight_bitwidth,
            "input_bitwidth": input_bitwidth,
            "output_bitwidth": output_bitwidth,
            "clip_max_value": clip_max_value,
            "weight_factor": weight_factor,
            "target_device": unchecked(dev),
            "auto_bitwidth": auto_bitwidth,
            "auto_threshold": auto_threshold,
        }
        self.Unpool2D = Unpool2D(2, 2, mode="nearest", quantize=quantize, target_device=target_device)
        inner = dev.family == "TXX"
        # The widths inside are those of a layer that is not the last.
        self.DepthwiseConv2D = DepthwiseConv2D(in_channels, padding=1, **common) if inner else None
        self.Conv2D = Conv2D(
            in_channels,
            out_channels,
            kernel_h=1 if inner else 3,
            kernel_w=1 if inner else 3,
            padding=0 if inner else 1,
            activation_fn=activation_fn,
            quantize_last_feature=quantize_last_feature,
            last_layer=last_layer,
            pre_lstm_layer=pre_lstm_layer,
            **common,
        )

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Compute the layer; shapes as in the class."""
        x = self.Unpool2D(inputs)
        if self.DepthwiseConv2D is not None:
            x = self.DepthwiseConv2D(x)
        y: Tensor | Tagged = self.Conv2D(x)
        return y


class Conv1D(nn.Module):
    """`Conv2D` over sequences (N, C, L), with a kernel one row high. Parameter names start with `convd.`.

    Args:
        in_channels: As `Conv2D`.
        out_channels: As `Conv2D`.
        kernel_size: Kernel length.
        stride: Stride.
        padding: As `Conv2D`.
        dilation: As `Conv2D`.
        groups: As `Conv2D`.
        bias: As `enable_bias` of `Conv2D`.
        activation_fn: As `Conv2D`.
        enable_batch_norm: As `Conv2D`.
        target_device: Any target but T02.
        **options: Any other argument of `Conv2D`.

    Returns:
        As `Conv2D`, tensor (N, out_channels, L').

    Source:
        spec/ingenic.md, section 3 (in the vendor's 2023 kit, not in the manual).

    Example:
        >>> import torch
        >>> Conv1D(32, 32, padding=1, target_device="T40")((torch.rand(1, 32, 7), 32, 0.0))[0].shape
        torch.Size([1, 32, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        activation_fn: Activation = RELU6,
        enable_batch_norm: bool = False,
        target_device: str = "Txx",
        **options: Any,
    ) -> None:
        super().__init__()
        device(target_device, "Conv1D", TXX + T40F)
        check_int(kernel_size, "Conv1D", "kernel_size")
        self.convd = Conv2D(
            in_channels,
            out_channels,
            stride=(1, stride),
            kernel_h=1,
            kernel_w=kernel_size,
            activation_fn=activation_fn,
            enable_batch_norm=enable_batch_norm,
            enable_bias=bias,
            padding=(0, padding) if dilation > 1 else padding,
            groups=groups,
            dilation=dilation,
            target_device=target_device,
            conv1d=True,
            **options,
        )

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Compute the layer; shapes as in the class."""
        y: Tensor | Tagged = self.convd(inputs)
        return y

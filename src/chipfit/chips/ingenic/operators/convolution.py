"""Conv2D."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from chipfit.chips.ingenic.bitwidths import CONV_BOUND, automatic_conv, check_accumulator
from chipfit.chips.ingenic.devices import Device, check_channels, check_int, device
from chipfit.chips.ingenic.operators.blocks import Conv2d_Q, QuantizeWeight, batchNorm2d
from chipfit.chips.ingenic.operators.features import Tagged, check_shape, read
from chipfit.chips.ingenic.operators.layer import RELU6, Activation, WeightedLayer
from chipfit.chips.ingenic.operators.movement import focus
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.padding import pair
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.errors import InvalidValueError, UnsupportedError


class Conv2D(WeightedLayer):
    """Convolution, batch normalisation, activation and quantiser in one layer.

    Training and evaluation compute `pad, conv(x, Q_w(weight)) + bias, batch norm, activation, Q_feat`, with batch
    statistics in training and running ones in evaluation; the bias stays float and batch norm is not folded.

    Args:
        in_channels: Input channels: fewer than 4, 12, or a multiple of 32 (T40, T41, A1, X2500) or 16 (others).
        out_channels: Output channels.
        stride: One int, or (vertical, horizontal).
        kernel_h: Kernel height; 3 on T02.
        kernel_w: Kernel width; 3 on T02.
        activation_fn: Module or `None`. A quantised output is clipped at 0 and `clip_max_value`, which replaces ReLU,
            ReLU6 and `None`; with `Linear`, `LeakyReLU`, `PReLU` or `Hswish` the output is signed.
        enable_batch_norm: Normalise after the convolution.
        enable_bias: Add a bias.
        padding: 0 for none; otherwise ceil(size / stride) outputs, with the border filled by 0 or, for a signed input
            on the T40 family, by -1. With a dilation it is the border itself. T02 always pads by 1.
        groups: Groups; on the T40 family `in_channels / groups` and `out_channels / groups` are multiples of 32.
        dilation: Kernel dilation; 1 on Txx, Xs1, Xs2.
        data_format: Only `"NCHW"`.
        quantize: Quantise weight and output.
        quantize_last_feature: In a last layer, quantise the output too.
        first_layer: The input comes from `Preprocess`.
        last_layer: Return a bare tensor; its values are not quantised unless `quantize_last_feature`.
        weight_bitwidth: 2 to 8, or 32.
        input_bitwidth: Width assumed for a bare tensor; otherwise the input's tuple says it.
        output_bitwidth: 2 to 12, or 32.
        clip_max_value: Output clip; the vendor advises 6 at 8 bits and 4 at 4 bits.
        weight_factor: Weight clip in deviations; see `quantize_weight`.
        target_device: Any target.
        auto_bitwidth: On Txx, Xs1, Xs2 below 8 bits, choose weight and output widths by the layer's size.
        is_focus: Rearrange (N, C/4, 2H, 2W) to (N, C, H, W) first.
        auto_threshold: Learn `clip_max_value`; see `QuantizeFeature`.
        pre_lstm_layer: An LSTM follows; no effect on the numbers.
        conv1d: Take and give (N, C, L), with `kernel_h` 1.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Inputs:
        A tensor (N, C, H, W), `(tensor, bit, min)`, or with `first_layer` the tuple of `Preprocess`.

    Returns:
        `(tensor, bit, min)`, tensor (N, out_channels, H', W') and in [0, 1] or [-1, 1] when quantised; a bare tensor
        with `last_layer`.

    Raises:
        InvalidValueError: An argument or the accumulator does not fit the target.
        UnsupportedError: The target does not have it.
        ShapeError: The input does not fit.

    Source:
        Manual section Conv2d; spec/ingenic.md, sections 1.4, 1.5, 3, 3.1, 3.2.

    Example:
        >>> import torch
        >>> conv = Conv2D(32, 64, padding=1, quantize=True, weight_bitwidth=8, output_bitwidth=8, target_device="T40")
        >>> y, bit, low = conv((torch.rand(1, 32, 5, 5), 8, 0.0))
        >>> y.shape, bit, low
        (torch.Size([1, 64, 5, 5]), 8, 0.0)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int | tuple[int, int] = 1,
        kernel_h: int = 3,
        kernel_w: int = 3,
        activation_fn: Activation = RELU6,
        enable_batch_norm: bool = False,
        enable_bias: bool = True,
        padding: int | tuple[int, int] = 0,
        groups: int = 1,
        dilation: int = 1,
        data_format: str = "NCHW",
        quantize: bool = False,
        quantize_last_feature: bool = False,
        first_layer: bool = False,
        last_layer: bool = False,
        weight_bitwidth: int = 32,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        clip_max_value: float = 6.0,
        weight_factor: float = 3.0,
        target_device: str = "Txx",
        auto_bitwidth: bool = True,
        is_focus: bool = False,
        auto_threshold: bool = False,
        pre_lstm_layer: bool = False,
        conv1d: bool = False,
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        dev = device(target_device, "Conv2D", strict=strict)
        self._check_geometry(dev, in_channels, out_channels, kernel_h, kernel_w, groups, dilation, is_focus)
        if dev.family == "TXX" and quantize and auto_bitwidth and min(weight_bitwidth, output_bitwidth) < 8:
            weight_bitwidth, output_bitwidth = automatic_conv(in_channels, out_channels, kernel_h, "Conv2D")
            if first_layer:
                output_bitwidth = 5 if out_channels < 32 else 4
            elif last_layer:
                output_bitwidth = 32
        options = OperatorOptions.of("Conv2D", dev, locals())
        self._configure(options, activation_fn, data_format)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.first_layer, self.is_focus, self.pre_lstm_layer = bool(first_layer), bool(is_focus), bool(pre_lstm_layer)
        self.conv1d = bool(conv1d)
        self.enable_batch_norm, self.enable_bias = bool(enable_batch_norm), bool(enable_bias)
        self.Conv2d = build_convolution(
            dev,
            "Conv2D",
            (in_channels, out_channels, groups),
            (kernel_h, kernel_w),
            pair(stride, "Conv2D", "stride"),
            padding,
            dilation,
            self.enable_bias,
            QuantizeWeight(options.weight_bits, weight_factor, dev.name),
            self.quantize,
        )
        self.BatchNorm2d = (
            batchNorm2d(out_channels, 2, self.quantize, f"Conv2D {in_channels} -> {out_channels}")
            if enable_batch_norm
            else None
        )

    @staticmethod
    def _check_geometry(
        dev: Device,
        in_channels: int,
        out_channels: int,
        kernel_h: int,
        kernel_w: int,
        groups: int,
        dilation: int,
        is_focus: bool,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_h": kernel_h, "kernel_w": kernel_w}
        for argument, value in {**sizes, "groups": groups, "dilation": dilation}.items():
            check_int(value, "Conv2D", argument)
        if in_channels >= 4 and in_channels != 12:
            check_channels(in_channels, dev, "Conv2D", stacklevel=4)
        if is_focus and in_channels % 4:
            raise InvalidValueError(
                "focus makes 4 channels of one", given=in_channels, allowed="12 for RGB", where="Conv2D.in_channels"
            )
        if dev.family == "T02" and (kernel_h, kernel_w) != (3, 3):
            raise UnsupportedError(
                "T02 has one kernel size",
                given=(kernel_h, kernel_w),
                allowed="3 x 3",
                where="Conv2D.kernel_h, kernel_w",
            )
        if dev.family == "TXX" and dilation != 1:
            raise UnsupportedError(
                "the target has no dilated convolution",
                given=dilation,
                allowed=f"1 on {dev.name}",
                where="Conv2D.dilation",
            )
        if in_channels % groups or out_channels % groups:
            raise InvalidValueError(
                "groups must divide both channel counts",
                given=groups,
                allowed=f"a divisor of {in_channels} and {out_channels}",
                where="Conv2D.groups",
            )
        multiple = dev.channel_multiple
        if (
            groups > 1
            and dev.family == "T40F"
            and (in_channels // groups % multiple or out_channels // groups % multiple)
        ):
            raise InvalidValueError(
                "too many groups",
                given=groups,
                allowed=f"in_channels / groups and out_channels / groups multiples of {multiple} on {dev.name}",
                where="Conv2D.groups",
                hint="Use DepthwiseConv2D for a group a channel.",
            )

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Compute the layer; shapes as in the class."""
        feature = read(inputs, "Conv2D", self.input_bitwidth, self.first_layer)
        x = feature.tensor
        if self.conv1d:
            check_shape(x, (3,), "Conv2D")
            x = x.unsqueeze(2)
        check_shape(x, (4,), "Conv2D", self.in_channels // 4 if self.is_focus else self.in_channels)
        if self.is_focus:
            x = focus(x)
        kernel = self.Conv2d.kernel_size[0] * self.Conv2d.kernel_size[1]
        inner = not (self.first_layer or self.last_layer)
        if self.quantize and self.device.family == "TXX" and self.weight_bitwidth < 8 and inner:
            bits = feature.bits, self.weight_bitwidth, self.output_bitwidth
            check_accumulator(kernel * self.in_channels, *bits, CONV_BOUND, "Conv2D")
        y = self.Conv2d(x, self._border(feature, self.first_layer), self._codes(x, feature))
        return self._finish(y, self.BatchNorm2d)

    def _finish(self, y: Tensor, norm: batchNorm2d | None) -> Tensor | Tagged:
        out = super()._finish(y, norm)
        if not self.conv1d:
            return out
        return out.squeeze(2) if isinstance(out, Tensor) else (out[0].squeeze(2), out[1], out[2])


def build_convolution(
    dev: Device,
    operator: str,
    channels: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int,
    bias: bool,
    quantiser: QuantizeWeight,
    quantize: bool,
) -> Conv2d_Q:
    """Build the convolution of a layer: what `padding` means depends on the target and on the dilation.

    Source:
        spec/ingenic.md, section 1.5; section 8 for the second draw of a quantised layer's initial weights.
    """
    border, same = pair(padding, operator, "padding", low=0), False
    if dev.family == "T02":
        border = (1, 1)
    elif dilation == 1:
        border, same = (0, 0), any(border)
    in_channels, out_channels, groups = channels
    conv = Conv2d_Q(
        in_channels, out_channels, kernel, stride, border, (dilation, dilation), groups, bias, same, quantiser
    )
    if quantize:  # the vendor's constructor draws again then, so that the same seed gives other weights
        conv.reset_parameters()
    return conv

"""Attention: Se_Block, SoftAttention, MILPoolAttention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.devices import (
    ALL,
    T40F,
    TXX,
    check_channels,
    check_choice,
    check_int,
    check_multiple,
    device,
    unchecked,
)
from chipfit.chips.ingenic.operators.activations import Hsigmoid, ReLU
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature
from chipfit.chips.ingenic.operators.convolution import Conv2D
from chipfit.chips.ingenic.operators.features import Tagged, check_shape, read
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.pooling import AdaptiveAvgpool2D
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.errors import InvalidValueError, ShapeError


class Se_Block(Operator):
    """Squeeze and excitation: scale each channel by a gate computed from the channels' means.

    Mean, 1x1 convolution with ReLU, 1x1 convolution with Hsigmoid, product, quantised with clip 1.

    Args:
        in_channels: Channels, a multiple of 32 (T40 family) or 16.
        rate: The hidden layer has `in_channels / rate` channels, which is such a multiple too.
        quantize: Quantise weights and outputs.
        quantize_last_feature: In a last layer, quantise the output too.
        last_layer: Return a bare tensor.
        enable_bias: As `Conv2D`.
        enable_batch_norm: As `Conv2D`.
        weight_bitwidth: As `Conv2D`; on Txx, Xs1, Xs2 widths below 8 are chosen automatically.
        input_bitwidth: Width assumed for a bare tensor; otherwise the input's tuple says it.
        output_bitwidth: 2 to 12, or 32.
        weight_factor: As `Conv2D`.
        clip_max_value: Clip after the first convolution; that of the gate is 6.
        data_format: Only `"NCHW"`.
        target_device: Any target but T02.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Inputs:
        A tensor (N, C, H, W) or `(tensor, bit, min)`.

    Returns:
        `(tensor, bit, min)`; a bare tensor with `last_layer`.

    Raises:
        InvalidValueError: Channels or rate do not fit the target.
        UnsupportedError: T02.

    Source:
        Manual section Se_Block; spec/ingenic.md, section 3.

    Example:
        >>> Se_Block(64, 2, target_device="T40")((torch.rand(1, 64, 2, 2), 32, 0.0))[0].shape
        torch.Size([1, 64, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        rate: int,
        quantize: bool = False,
        quantize_last_feature: bool = False,
        last_layer: bool = False,
        enable_bias: bool = True,
        enable_batch_norm: bool = False,
        weight_bitwidth: int = 32,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        weight_factor: float = 3.0,
        clip_max_value: float = 6.0,
        data_format: str = "NCHW",
        target_device: str = "Txx",
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        dev = device(target_device, "Se_Block", TXX + T40F, strict)
        check_channels(in_channels, dev, "Se_Block")
        check_int(rate, "Se_Block", "rate")
        check_choice(data_format, ("NCHW",), "Se_Block", "data_format")
        if in_channels % rate:
            raise InvalidValueError(
                "the rate must divide the channels",
                given=rate,
                allowed=f"a divisor of {in_channels}",
                where="Se_Block.rate",
            )
        check_multiple(in_channels // rate, dev, "Se_Block.rate, in_channels / rate")
        self.in_channels, self.device, self.target_device = in_channels, dev, dev.name
        self.quantize, self.last_layer = bool(quantize), bool(last_layer)
        self.quantizes_output = self.quantize and (not last_layer or bool(quantize_last_feature))
        self.input_bitwidth, self.output_bitwidth = input_bitwidth, output_bitwidth
        inside: Any = unchecked(dev)
        common: dict[str, Any] = {
            "kernel_h": 1,
            "kernel_w": 1,
            "enable_bias": enable_bias,
            "enable_batch_norm": enable_batch_norm,
            "quantize": quantize,
            "weight_bitwidth": weight_bitwidth,
            "input_bitwidth": input_bitwidth,
            "output_bitwidth": output_bitwidth,
            "weight_factor": weight_factor,
            "target_device": inside,
        }
        hidden = in_channels // rate
        self.adaptivepool = AdaptiveAvgpool2D(
            in_channels,
            quantize=quantize,
            input_bitwidth=input_bitwidth,
            output_bitwidth=output_bitwidth,
            target_device=inside,
        )
        self.conv1 = Conv2D(in_channels, hidden, activation_fn=ReLU(inside), clip_max_value=clip_max_value, **common)
        gate = Hsigmoid(in_channels, target_device=inside)
        self.conv2 = Conv2D(hidden, in_channels, activation_fn=gate, clip_max_value=6.0, **common)
        self.QuantizeFeature = QuantizeFeature(output_bitwidth, False, 1.0, dev.name)

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Compute the block; shapes as in the class."""
        feature = read(inputs, "Se_Block", self.input_bitwidth)
        check_shape(feature.tensor, (4,), "Se_Block", self.in_channels)
        gate = self.conv2(self.conv1(self.adaptivepool((feature.tensor, feature.bits, feature.minimum))))[0]
        y = feature.tensor * gate
        if self.quantizes_output:
            self.QuantizeFeature.signed = feature.signed
            y = self.QuantizeFeature(y)
        return y if self.last_layer else (y, self.output_bitwidth, -1.0 if feature.signed else 0.0)


class SoftAttention(Operator):
    """Weighted mean over a sequence, with weights learned from each step.

    `score = linear(tanh(fc(x)))`, softmax over the sequence, weighted sum of x, quantised with sign.

    Args:
        input_size: Features a step, I.
        hidden_size: Features of the hidden layer.
        output_bitwidth: 2 to 12, or 32.
        clip_max_value: Output clip.
        target_device: A target of the T40 family.
        quantize: Quantise the output; by default if `output_bitwidth` is below 32.

    Inputs:
        A tensor (N, T, I) or `(tensor, bit, min)`.

    Returns:
        `(tensor, bit, min)`, tensor (N, I), in [-1, 1] when quantised.

    Raises:
        UnsupportedError: A target outside the T40 family.
        ShapeError: The input does not fit.

    Source:
        spec/ingenic.md, section 3 (in the vendor's kit, not in the manual).

    Example:
        >>> SoftAttention(32, 8)((torch.rand(2, 5, 32), 32, 0.0))[0].shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_bitwidth: int = 32,
        clip_max_value: float = 6.0,
        target_device: str = "T40",
        quantize: bool | None = None,
    ) -> None:
        super().__init__()
        dev = device(target_device, "SoftAttention", T40F)
        for argument, value in {"input_size": input_size, "hidden_size": hidden_size}.items():
            check_int(value, "SoftAttention", argument)
        OperatorOptions.of("SoftAttention", dev, locals())  # checks them
        self.input_size, self.output_bitwidth = input_size, output_bitwidth
        self.quantize = output_bitwidth < 32 if quantize is None else bool(quantize)
        self.clip_max_value = float(clip_max_value)
        self.fc = nn.Sequential(nn.Linear(input_size, hidden_size), nn.Tanh())
        self.linear = nn.Linear(hidden_size, 1, bias=False)
        self.QuantizeFeature = QuantizeFeature(output_bitwidth, True, clip_max_value, dev.name)

    @at_full_precision
    def forward(self, inputs: Any) -> Tagged:
        """Pool over the sequence."""
        x = read(inputs, "SoftAttention").tensor
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ShapeError(
                "the input's shape does not fit",
                given=tuple(x.shape),
                allowed=f"(N, T, {self.input_size})",
                where="SoftAttention",
            )
        y = (torch.softmax(self.linear(self.fc(x)), dim=1) * x).sum(dim=1)
        if self.quantize:
            y = self.QuantizeFeature(y)
        return y, self.output_bitwidth, -self.clip_max_value


class MILPoolAttention(Operator):
    """Weighted mean over the pixels of a feature, with weights learned from each pixel (multiple-instance learning).

    `score = linear(x) + bias` a pixel, softmax over the pixels, weighted sum of x, quantised with sign. The bias starts
    at 0; it shifts all scores alike and so never changes the result.

    Args:
        hidden_size: Channels, C.
        quantize: Quantise the output.
        output_bitwidth: 2 to 12, or 32.
        clip_max_value: Output clip.
        target_device: Any target.

    Inputs:
        A tensor (N, C, H, W) or (N, C, L), bare or as `(tensor, bit, min)`.

    Returns:
        `(tensor, bit, min)`, tensor (N, C), in [-1, 1] when quantised.

    Raises:
        InvalidValueError: Unknown target.
        ShapeError: The input does not fit.

    Source:
        spec/ingenic.md, section 3 (in the vendor's 2023 kit, not in the manual).

    Example:
        >>> MILPoolAttention(32, target_device="T40")((torch.rand(2, 32, 3, 3), 32, 0.0))[0].shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        hidden_size: int,
        quantize: bool = False,
        output_bitwidth: int = 32,
        clip_max_value: float = 6.0,
        target_device: str = "T40",
    ) -> None:
        super().__init__()
        dev = device(target_device, "MILPoolAttention", ALL)
        check_int(hidden_size, "MILPoolAttention", "hidden_size")
        OperatorOptions.of("MILPoolAttention", dev, locals())  # checks them
        self.hidden_size, self.quantize, self.output_bitwidth = hidden_size, bool(quantize), output_bitwidth
        self.clip_max_value = float(clip_max_value)
        self.linear = nn.Linear(hidden_size, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(1))
        self.QuantizeFeature = QuantizeFeature(output_bitwidth, True, clip_max_value, dev.name)

    @at_full_precision
    def forward(self, inputs: Any) -> Tagged:
        """Pool over the pixels."""
        x = read(inputs, "MILPoolAttention").tensor
        check_shape(x, (3, 4), "MILPoolAttention", self.hidden_size)
        pixels = x.reshape(x.shape[0], self.hidden_size, math.prod(x.shape[2:]))
        weights = torch.softmax(self.linear(pixels.transpose(1, 2)) + self.bias, dim=1)
        y = torch.bmm(pixels, weights).squeeze(2)
        if self.quantize:
            y = self.QuantizeFeature(y)
        return y, self.output_bitwidth, -self.clip_max_value

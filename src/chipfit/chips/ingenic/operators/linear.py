"""FullConnected, and the stand-alone BatchNorm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from chipfit.chips.ingenic.bitwidths import LINEAR_BOUND, automatic_linear, check_accumulator
from chipfit.chips.ingenic.devices import T40F, TXX, check_channels, check_int, device
from chipfit.chips.ingenic.operators.activations import place
from chipfit.chips.ingenic.operators.blocks import Linear_Q, QuantizeFeature, QuantizeWeight, batchNorm2d
from chipfit.chips.ingenic.operators.features import Tagged, check_shape, read
from chipfit.chips.ingenic.operators.layer import RELU6, Activation, WeightedLayer
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.errors import ShapeError


class FullConnected(WeightedLayer):
    """Fully connected layer, batch normalisation, activation and quantiser in one; also named `FullyConnected`.

    Arguments, errors and arithmetic as `Conv2D`, except that the weight shares one peak (see `quantize_weight`), and:

    Args:
        in_channels: Inputs, a multiple of 32 (T40 family) or 16.
        out_channels: Outputs.
        activation_fn: As `Conv2D`.
        enable_batch_norm: As `Conv2D`.
        enable_bias: As `Conv2D`.
        data_format: `"NCHW"` or, for (N, T, in_channels) after an LSTM, `"NHWC"`; such an input is recognised anyway.
        quantize: As `Conv2D`.
        quantize_last_feature: As `Conv2D`.
        last_layer: As `Conv2D`; the output is never quantised then.
        weight_bitwidth: As `Conv2D`.
        input_bitwidth: As `Conv2D`.
        output_bitwidth: As `Conv2D`.
        clip_max_value: As `Conv2D`; the vendor advises 6 at 8 bits and 3 at 4 bits.
        weight_factor: As `Conv2D`.
        target_device: Any target.
        auto_bitwidth: As `Conv2D`.
        auto_threshold: As `Conv2D`.
        pre_lstm_layer: As `Conv2D`.
        first_layer: As `Conv2D`.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Inputs:
        As `Conv2D`, tensor (N, ..., in_channels).

    Returns:
        As `Conv2D`, tensor (N, ..., out_channels).

    Source:
        Manual section FullyConnected; spec/ingenic.md, sections 1.3, 1.4, 3, 3.1, 3.2.

    Example:
        >>> import torch
        >>> fc = FullConnected(32, 10, activation_fn=None, quantize=True, last_layer=True, weight_bitwidth=8,
        ...                    input_bitwidth=8, target_device="T40")
        >>> fc((torch.rand(1, 32), 8, 0.0)).shape
        torch.Size([1, 10])
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
        first_layer: bool = False,
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        dev = device(target_device, "FullConnected", strict=strict)
        check_channels(in_channels, dev, "FullConnected")
        check_int(out_channels, "FullConnected", "out_channels")
        if dev.family == "TXX" and quantize and auto_bitwidth and min(weight_bitwidth, output_bitwidth) < 8:
            weight_bitwidth, output_bitwidth = automatic_linear(in_channels, out_channels, "FullConnected")
        output_bits = 32 if last_layer else output_bitwidth
        options = OperatorOptions.of("FullConnected", dev, locals(), output_bitwidth=output_bits)
        self._configure(options, activation_fn, data_format, ("NCHW", "NHWC"))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.pre_lstm_layer, self.first_layer = bool(pre_lstm_layer), bool(first_layer)
        self.enable_batch_norm, self.enable_bias = bool(enable_batch_norm), bool(enable_bias)
        quantiser = QuantizeWeight(options.weight_bits, weight_factor, dev.name)
        self.Linear = Linear_Q(in_channels, out_channels, self.enable_bias, quantiser)
        self.BatchNorm1d = (
            batchNorm2d(out_channels, 1, self.quantize, f"FullConnected {in_channels} -> {out_channels}")
            if enable_batch_norm
            else None
        )

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Compute the layer; shapes as in the class."""
        feature = read(inputs, "FullConnected", self.input_bitwidth, self.first_layer)
        x = feature.tensor
        if x.dim() < 2 or x.shape[-1] != self.in_channels:
            raise ShapeError(
                "the input's shape does not fit",
                given=tuple(x.shape),
                allowed=f"(N, ..., {self.in_channels})",
                where="FullConnected",
                hint="Flatten a feature first.",
            )
        inner = not (self.first_layer or self.last_layer)
        if self.quantize and self.device.family == "TXX" and self.weight_bitwidth < 8 and inner:
            bits = feature.bits, self.weight_bitwidth, self.output_bitwidth
            check_accumulator(self.in_channels, *bits, LINEAR_BOUND, "FullConnected")
        y = self.Linear(x, self._codes(x, feature))
        if self.BatchNorm1d is not None and y.dim() > 2:
            y = self.BatchNorm1d(y.flatten(0, -2)).view(y.shape)
            return self._finish(y, None)
        return self._finish(y, self.BatchNorm1d)


class BatchNorm(Operator):
    """Batch normalisation, activation and quantiser.

    The output has the width of the input. It is unsigned, whatever the activation, until an input was signed: from then
    on it is signed, as in the vendor's kit.

    Args:
        in_channels: Channels: fewer than 4, or a multiple of 32 (T40 family) or 16.
        activation_fn: Module or `None`. When quantised, `PReLU`, `LeakyReLU` and `Hswish` are applied before the clip.
        quantize: Quantise the output.
        first_layer: The input comes from `Preprocess`.
        input_bitwidth: Width assumed for a bare tensor; otherwise the input's tuple says it.
        output_bitwidth: Not used: the width is that of the input.
        clip_max_value: Output clip.
        auto_threshold: Learn `clip_max_value`; see `QuantizeFeature`. The manual's default is `True`, which the vendor
            ignores; here it is off unless asked for.
        target_device: Any target but T02.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Inputs:
        A tensor (N, in_channels, H, W), `(tensor, bit, min)`, or with `first_layer` the tuple of `Preprocess`.

    Returns:
        `(tensor, bit, min)`.

    Raises:
        InvalidValueError: An argument does not fit the target.
        UnsupportedError: T02.

    Source:
        Manual section BatchNorm; spec/ingenic.md, section 3.

    Example:
        >>> import torch
        >>> BatchNorm(32, quantize=True, target_device="T40")((torch.rand(2, 32, 4, 4), 8, -1.0))[1:]
        (8, -6.0)
    """

    def __init__(
        self,
        in_channels: int,
        activation_fn: nn.Module | None = None,
        quantize: bool = False,
        first_layer: bool = False,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        clip_max_value: float = 6.0,
        auto_threshold: bool = False,
        target_device: str = "Txx",
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        dev = device(target_device, "BatchNorm", TXX + T40F, strict)
        check_int(in_channels, "BatchNorm", "in_channels")
        if in_channels >= 4:
            check_channels(in_channels, dev, "BatchNorm")
        OperatorOptions.of("BatchNorm", dev, locals())  # checks them
        self.in_channels, self.device, self.target_device = in_channels, dev, dev.name
        self.quantize, self.first_layer = bool(quantize), bool(first_layer)
        self.input_bitwidth, self.output_bitwidth = input_bitwidth, output_bitwidth
        placed = place(activation_fn, self.quantize, "BatchNorm")
        self.activation_fn, self.offset = placed.module, placed.offset
        self.signed = False
        self.BatchNorm2d = batchNorm2d(in_channels, 2, self.quantize, f"BatchNorm {in_channels}")
        self.QuantizeFeature = QuantizeFeature(
            8 if self.quantize else 32, False, clip_max_value, dev.name, learn=bool(auto_threshold) and self.quantize
        )
        self.clip_max_value = float(clip_max_value)

    @at_full_precision
    def forward(self, inputs: Any) -> Tagged:
        """Compute the layer; shapes as in the class."""
        feature = read(inputs, "BatchNorm", self.input_bitwidth, self.first_layer)
        check_shape(feature.tensor, (4,), "BatchNorm", self.in_channels)
        self.signed = self.signed or feature.signed
        y = self.BatchNorm2d(feature.tensor)
        if self.offset:
            y = y + self.offset
        if self.activation_fn is not None:
            y = self.activation_fn(y)
        if self.quantize:
            self.QuantizeFeature.bits, self.QuantizeFeature.signed = feature.bits, self.signed
            y = self.QuantizeFeature(y)
        return y, feature.bits, -self.clip_max_value if self.signed else 0.0

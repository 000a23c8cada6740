"""Operators on two features: Shortcut, Mul, Max."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.devices import T40F, TXX, check_channels, check_int, device
from chipfit.chips.ingenic.operators.activations import place
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature
from chipfit.chips.ingenic.operators.features import Feature, Tagged, read_list
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.chips.ingenic.quantizers import quantize_feature, shortcut
from chipfit.errors import ShapeError


def _same_shape(features: list[Feature], operator: str) -> tuple[Tensor, Tensor]:
    a, b = (f.tensor for f in features)
    if a.shape != b.shape:
        raise ShapeError(
            "the inputs differ in shape", given=(tuple(a.shape), tuple(b.shape)), allowed="equal shapes", where=operator
        )
    return a, b


class Shortcut(Operator):
    """Sum of two features, for residual connections; write this instead of `+`.

    Args:
        out_channels: Channels.
        activation_fn: Module or `None`; applied when the output is not quantised, dropped when it is.
        quantize: Quantise the output.
        quantize_last_feature: In a last layer, quantise the output too.
        last_layer: Return a bare tensor.
        input_bitwidth: Width assumed for bare tensors; otherwise the inputs' tuples say it.
        output_bitwidth: 2 to 12, or 32. On Txx, Xs1, Xs2 the chip averages codes, and the width is that of the inputs.
        clip_max_value: Clip of the sum, at most 2 counts; not used on Txx, Xs1, Xs2. The vendor advises 2, or 1.5 at
            4 bits when accuracy suffers.
        target_device: Any target but T02.

    Inputs:
        A list of two tensors or `(tensor, bit, min)` of one shape and width; their signs may differ.

    Returns:
        `(tensor, bit, min)`: see `chipfit.chips.ingenic.quantizers.shortcut`; a bare tensor with `last_layer`.

    Raises:
        InvalidValueError: Not two inputs, or they differ in width.
        ShapeError: They differ in shape.

    Source:
        Manual section Shortcut; spec/ingenic.md, section 1.7.

    Example:
        >>> x = (torch.full((1, 32, 2, 2), 0.2), 8, 0.0)
        >>> Shortcut(32, quantize=True, input_bitwidth=8, output_bitwidth=8, target_device="T40")([x, x])[0].unique()
        tensor([0.2000])
    """

    def __init__(
        self,
        out_channels: int,
        activation_fn: nn.Module | None = None,
        quantize: bool = False,
        quantize_last_feature: bool = False,
        last_layer: bool = False,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        clip_max_value: float = 2.0,
        target_device: str = "Txx",
    ) -> None:
        super().__init__()
        self.device = device(target_device, "Shortcut", TXX + T40F)
        self.target_device = self.device.name
        check_int(out_channels, "Shortcut", "out_channels")
        options = OperatorOptions.of("Shortcut", self.device, locals())
        self.out_channels, self.last_layer = out_channels, bool(last_layer)
        self.quantize, self.quantizes_output = bool(quantize), options.quantizes_output
        self.input_bitwidth, self.output_bitwidth = input_bitwidth, output_bitwidth
        self.clip_max_value = min(float(clip_max_value), 2.0)
        self.activation_fn = None if self.quantizes_output else place(activation_fn, False, "Shortcut").module
        self.QuantizeFeature = QuantizeFeature(32, False, self.clip_max_value, self.target_device)

    @property
    def divisor(self) -> float:
        """What the quantised sum is divided by."""
        return 2.0 if self.device.family == "TXX" else self.clip_max_value

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Add."""
        features = read_list(inputs, "Shortcut", count=2, same_sign=False)
        a, b = _same_shape(features, "Shortcut")
        negative, bits = any(f.signed for f in features), self.output_bitwidth
        if self.quantizes_output:
            if self.device.family == "TXX":
                bits = features[0].bits if features[0].tagged else self.input_bitwidth
            if not self.floating:
                y = shortcut(a, b, bits, self.clip_max_value, negative, self.target_device)
            else:
                y = (a + b) / self.divisor if self.QuantizeFeature.calibrated else a + b
        else:
            y = a + b
        if self.activation_fn is not None:
            y = self.activation_fn(y)
        return y if self.last_layer else (y, bits, -self.clip_max_value if negative else 0.0)


class Mul(Operator):
    """Product of two features, quantised with clip 1.

    Args:
        out_channels: Channels, a multiple of 32 (T40 family) or 16.
        quantize: Quantise the output.
        quantize_last_feature: In a last layer, quantise the output too.
        last_layer: Return a bare tensor.
        input_bitwidth: Width assumed for bare tensors; otherwise the inputs' tuples say it.
        output_bitwidth: Not used: the width is the greater one of the inputs.
        target_device: Any target but T02.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Inputs:
        A list of two tensors or `(tensor, bit, min)` that broadcast to one shape.

    Returns:
        `(tensor, bit, min)`; a bare tensor with `last_layer`.

    Raises:
        InvalidValueError: Not two inputs, or the channels do not fit the target.
        UnsupportedError: T02.

    Source:
        Manual section Mul; spec/ingenic.md, section 3.

    Example:
        >>> x = (torch.full((1, 32, 2, 2), 0.5), 8, 0.0)
        >>> Mul(32, quantize=True, target_device="T40")([x, x])[0].unique()
        tensor([0.2510])
    """

    def __init__(
        self,
        out_channels: int,
        quantize: bool = False,
        quantize_last_feature: bool = False,
        last_layer: bool = False,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        target_device: str = "Txx",
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        self.device = device(target_device, "Mul", TXX + T40F, strict)
        self.target_device = self.device.name
        check_channels(out_channels, self.device, "Mul", "out_channels")
        options = OperatorOptions.of("Mul", self.device, locals())
        self.out_channels, self.quantize, self.last_layer = out_channels, bool(quantize), bool(last_layer)
        self.quantizes_output = options.quantizes_output
        self.input_bitwidth, self.output_bitwidth = input_bitwidth, output_bitwidth
        self.QuantizeFeature = QuantizeFeature(32, False, 1.0, self.target_device)

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Multiply."""
        features = read_list(inputs, "Mul", count=2, same_sign=False, same_bits=False)
        negative = any(f.signed for f in features)
        bits = max(f.bits if f.tagged else self.input_bitwidth for f in features)
        try:
            y = features[0].tensor * features[1].tensor
        except RuntimeError as error:
            shapes = [tuple(f.tensor.shape) for f in features]
            raise ShapeError("the inputs do not broadcast", given=shapes, where="Mul") from error
        if self.quantizes_output and not self.floating:
            y = quantize_feature(y, bits, -1.0 if negative else 0.0, 1.0, self.target_device)
        return y if self.last_layer else (y, bits, -1.0 if negative else 0.0)


class Max(nn.Module):
    """Greater one of two features, element by element.

    Args:
        target_device: Any target but T02.

    Inputs:
        A list of two tensors or `(tensor, bit, min)` of one shape, width and sign.

    Returns:
        `(tensor, bit, min)`, or a bare tensor for bare tensors.

    Raises:
        InvalidValueError: Not two inputs, or they differ in width or sign.
        ShapeError: They differ in shape.

    Source:
        Manual section Max; spec/ingenic.md, section 3.

    Example:
        >>> Max()([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])])
        tensor([3., 2.])
    """

    def __init__(self, target_device: str = "T40") -> None:
        super().__init__()
        device(target_device, "Max", TXX + T40F)

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Compare."""
        features = read_list(inputs, "Max", count=2)
        a, b = _same_shape(features, "Max")
        y = torch.maximum(a, b)
        return (y, features[0].bits, -1.0 if features[0].signed else 0.0) if features[0].tagged else y

"""Pooling: Maxpool2D, Avgpool2D, AdaptiveAvgpool2D, Unpool2D."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from chipfit.chips.ingenic.devices import (
    T40F,
    TXX,
    Device,
    check_channels,
    check_choice,
    device,
)
from chipfit.chips.ingenic.means import grid_values, whole_mean, window_mean
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature
from chipfit.chips.ingenic.operators.features import Feature, Tagged, check_shape, pad_value, read
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.padding import pad_same, pair
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.errors import InvalidValueError, UnsupportedError


class Maxpool2D(Operator):
    """Maximum over windows.

    Args:
        kernel_h: Window height; 2 on T02.
        kernel_w: Window width; 2 on T02.
        stride: One int, or (vertical, horizontal); 2 on T02.
        padding: 0 for none; otherwise ceil(size / stride) outputs, with the border filled by 0 or, for a signed input
            on the T40 family, by -1. 0 on T02.
        target_device: Any target.

    Inputs:
        A tensor (N, C, H, W) or `(tensor, bit, min)`.

    Returns:
        The same, pooled.

    Raises:
        UnsupportedError: T02 with another window.

    Source:
        Manual section Maxpool2D; spec/ingenic.md, section 1.5.

    Example:
        >>> import torch
        >>> Maxpool2D(target_device="T40")(torch.rand(1, 3, 2, 2)).shape
        torch.Size([1, 3, 1, 1])
    """

    def __init__(
        self,
        kernel_h: int = 2,
        kernel_w: int = 2,
        stride: int | tuple[int, int] = 2,
        padding: int = 0,
        target_device: str = "Txx",
    ) -> None:
        super().__init__()
        self.device = device(target_device, "Maxpool2D")
        self.kernel = pair((kernel_h, kernel_w), "Maxpool2D", "kernel_h, kernel_w")
        self.stride = pair(stride, "Maxpool2D", "stride")
        self.same = any(pair(padding, "Maxpool2D", "padding", low=0))
        if self.device.family == "T02" and (self.kernel != (2, 2) or self.stride != (2, 2) or self.same):
            raise UnsupportedError(
                "T02 has one pooling window",
                given=(*self.kernel, *self.stride, padding),
                allowed="kernel 2 x 2, stride 2, padding 0",
                where="Maxpool2D",
            )

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Pool."""
        feature = read(inputs, "Maxpool2D")
        check_shape(feature.tensor, (4,), "Maxpool2D")
        x = feature.tensor
        if self.same:
            x = pad_same(x, self.kernel, self.stride, 0.0 if self.floating else pad_value(feature, self.device))
        return feature.carry(F.max_pool2d(x, self.kernel, self.stride))


class _Mean(Operator):
    """Base of the averaging layers: quantise a mean with clip 1 and the width of the input.

    The output is unsigned until an input held a negative number; from then on it is signed.
    """

    def __init__(self, operator: str, dev: Device, in_channels: int, quantize: bool, bits: tuple[int, int]) -> None:
        super().__init__()
        check_channels(in_channels, dev, operator, stacklevel=4)
        OperatorOptions(operator, dev, quantize, input_bitwidth=bits[0], output_bitwidth=bits[1])  # checks them
        self.operator, self.device, self.in_channels = operator, dev, in_channels
        self.quantize, self.input_bitwidth, self.output_bitwidth = bool(quantize), bits[0], bits[1]
        self.signed = False
        self.QuantizeFeature = QuantizeFeature(32, False, 1.0, dev.name)

    def _read(self, inputs: Any) -> Feature:
        feature = read(inputs, self.operator, self.input_bitwidth)
        check_shape(feature.tensor, (4,), self.operator, self.in_channels)
        if self.quantize and not self.floating and not self.signed:
            self.signed = bool((feature.tensor < 0).any())
        return feature

    def _values(self, x: Tensor, feature: Feature) -> Tensor:
        """The input as the mean takes it: in evaluation on its grid, so that it is what the integer program has."""
        exact = self.quantize and not self.floating and not self.training
        return grid_values(x, feature, self.device) if exact else x

    def _quantise(self, y: Tensor, feature: Feature) -> Tagged:
        signed = feature.signed
        if self.quantize and not self.floating:
            signed = self.signed
            self.QuantizeFeature.bits, self.QuantizeFeature.signed = feature.bits, signed
            y = self.QuantizeFeature(y)
        return y, feature.bits, -1.0 if signed else 0.0


class Avgpool2D(_Mean):
    """Mean over windows, quantised with clip 1 and the width of the input.

    Args:
        in_channels: Channels, a multiple of 32 (T40 family) or 16.
        kernel_h: Window height.
        kernel_w: Window width.
        stride: One int, or (vertical, horizontal).
        padding: As `Maxpool2D`; the border counts in the mean.
        quantize: Quantise the output.
        input_bitwidth: Width assumed for a bare tensor; otherwise the input's tuple says it.
        output_bitwidth: Not used: the width is that of the input.
        target_device: Any target but T02.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Inputs:
        A tensor (N, C, H, W) or `(tensor, bit, min)`.

    Returns:
        `(tensor, bit, min)`. The output is signed once an input held a negative number.

    Raises:
        InvalidValueError: The channels do not fit the target.
        UnsupportedError: T02.

    Source:
        Manual section Avgpool2D; spec/ingenic.md, section 3.

    Example:
        >>> import torch
        >>> Avgpool2D(32, quantize=True, target_device="T40")((torch.ones(1, 32, 4, 4), 8, 0.0))[0].shape
        torch.Size([1, 32, 2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        kernel_h: int = 2,
        kernel_w: int = 2,
        stride: int | tuple[int, int] = 2,
        padding: int = 0,
        quantize: bool = False,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        target_device: str = "Txx",
        strict: bool | None = None,
    ) -> None:
        dev = device(target_device, "Avgpool2D", TXX + T40F, strict)
        super().__init__("Avgpool2D", dev, in_channels, quantize, (input_bitwidth, output_bitwidth))
        self.kernel = pair((kernel_h, kernel_w), "Avgpool2D", "kernel_h, kernel_w")
        self.stride = pair(stride, "Avgpool2D", "stride")
        self.same = any(pair(padding, "Avgpool2D", "padding", low=0))

    @at_full_precision
    def forward(self, inputs: Any) -> Tagged:
        """Pool."""
        feature = self._read(inputs)
        x = feature.tensor
        if self.same:
            x = pad_same(x, self.kernel, self.stride, 0.0 if self.floating else pad_value(feature, self.device))
        return self._quantise(window_mean(self._values(x, feature), self.kernel, self.stride), feature)


class AdaptiveAvgpool2D(_Mean):
    """Mean over height and width, quantised with clip 1 and the width of the input.

    Args:
        in_channels: Channels, a multiple of 32 (T40 family) or 16.
        keepdim: Return (N, C, 1, 1) instead of (N, C).
        quantize: Quantise the output.
        input_bitwidth: Width assumed for a bare tensor; otherwise the input's tuple says it.
        output_bitwidth: Not used: the width is that of the input.
        last_layer: Return the mean itself, a bare tensor that is not quantised.
        target_device: Any target. T02 runs it only at the end of a network.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Inputs:
        A tensor (N, C, H, W) or `(tensor, bit, min)`.

    Returns:
        `(tensor, bit, min)`, or a bare tensor. The output is signed once an input held a negative number.

    Raises:
        InvalidValueError: The channels do not fit the target.

    Source:
        Manual section AdaptiveAvgpool2D; spec/ingenic.md, section 3.

    Example:
        >>> import torch
        >>> AdaptiveAvgpool2D(32, keepdim=False, target_device="T40")((torch.ones(1, 32, 4, 4), 8, 0.0))[0].shape
        torch.Size([1, 32])
    """

    def __init__(
        self,
        in_channels: int,
        keepdim: bool = True,
        quantize: bool = False,
        input_bitwidth: int = 32,
        output_bitwidth: int = 32,
        last_layer: bool = False,
        target_device: str = "Txx",
        strict: bool | None = None,
    ) -> None:
        dev = device(target_device, "AdaptiveAvgpool2D", strict=strict)
        super().__init__("AdaptiveAvgpool2D", dev, in_channels, quantize, (input_bitwidth, output_bitwidth))
        self.keepdim, self.last_layer = bool(keepdim), bool(last_layer)

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Pool."""
        feature = self._read(inputs)
        y = whole_mean(self._values(feature.tensor, feature), self.keepdim)
        return y if self.last_layer else self._quantise(y, feature)


class Unpool2D(Operator):
    """Enlarge a feature.

    Args:
        kernel_h: Vertical factor; 2 on T02.
        kernel_w: Horizontal factor; 2 on T02.
        mode: `"zero"` puts each value in the upper left of its patch and fills the rest with 0, or with -1 for a signed
            feature on the T40 family when `quantize`; `"nearest"` repeats; `"bilinear"` interpolates, only with
            `last_layer`.
        quantize: Whether the input is quantised.
        last_layer: Return a bare tensor.
        target_device: Any target.

    Attributes:
        fill: The constructor's `mode`; `mode` is that of the network, see `chipfit.set_mode`.

    Inputs:
        A tensor (N, C, H, W) or `(tensor, bit, min)`.

    Returns:
        The same, (N, C, kernel_h * H, kernel_w * W).

    Raises:
        InvalidValueError: Unknown mode, or bilinear in the middle of a network.
        UnsupportedError: T02 with another factor.

    Source:
        Manual section Unpool2D; spec/ingenic.md, section 3.

    Example:
        >>> import torch
        >>> Unpool2D()(torch.tensor([[[[1.0, 2.0]]]]))[0, 0]
        tensor([[1., 0., 2., 0.],
                [0., 0., 0., 0.]])
    """

    def __init__(
        self,
        kernel_h: int = 2,
        kernel_w: int = 2,
        mode: str = "zero",
        quantize: bool = False,
        last_layer: bool = False,
        target_device: str = "Txx",
    ) -> None:
        super().__init__()
        self.device = device(target_device, "Unpool2D")
        self.kernel = pair((kernel_h, kernel_w), "Unpool2D", "kernel_h, kernel_w")
        check_choice(mode, ("zero", "nearest", "bilinear"), "Unpool2D", "mode")
        if mode == "bilinear" and not last_layer:
            raise InvalidValueError(
                "bilinear needs last_layer=True",
                given=mode,
                allowed="'zero' or 'nearest' inside a network",
                where="Unpool2D.mode",
            )
        if self.device.family == "T02" and self.kernel != (2, 2):
            raise UnsupportedError("T02 has one factor", given=self.kernel, allowed="2 x 2", where="Unpool2D.kernel_h")
        self.fill, self.quantize, self.last_layer = mode, bool(quantize), bool(last_layer)

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Enlarge."""
        feature = read(inputs, "Unpool2D")
        check_shape(feature.tensor, (4,), "Unpool2D")
        x = feature.tensor
        size = (x.shape[2] * self.kernel[0], x.shape[3] * self.kernel[1])
        if self.fill == "zero":
            quantised = self.quantize and not self.floating
            y = x.new_full((*x.shape[:2], *size), pad_value(feature, self.device) if quantised else 0.0)
            y[:, :, :: self.kernel[0], :: self.kernel[1]] = x
        elif self.fill == "nearest":
            y = F.interpolate(x, size=size, mode="nearest")
        else:
            y = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return y if self.last_layer else feature.carry(y)

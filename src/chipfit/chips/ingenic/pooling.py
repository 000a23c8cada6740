"""Pooling: Maxpool2D, Avgpool2D, AdaptiveAvgpool2D, Unpool2D, RoIPooling."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.ingenic.blocks import QuantizeFeature
from chipfit.chips.ingenic.devices import (
    T40F,
    TXX,
    Device,
    check_bits,
    check_channels,
    check_choice,
    check_positive,
    device,
)
from chipfit.chips.ingenic.features import Feature, Tagged, check_shape, pad_value, read
from chipfit.chips.ingenic.padding import pad_same, pair
from chipfit.errors import ChipfitWarning, InvalidValueError, ShapeError, UnsupportedError


class Maxpool2D(nn.Module):
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

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Pool."""
        feature = read(inputs, "Maxpool2D")
        check_shape(feature.tensor, (4,), "Maxpool2D")
        x = feature.tensor
        if self.same:
            x = pad_same(x, self.kernel, self.stride, pad_value(feature, self.device))
        return feature.carry(F.max_pool2d(x, self.kernel, self.stride))


class _Mean(nn.Module):
    """Base of the averaging layers: quantise a mean with clip 1 and the width of the input.

    The output is unsigned until an input held a negative number; from then on it is signed.
    """

    def __init__(self, operator: str, dev: Device, in_channels: int, quantize: bool, bits: tuple[int, int]) -> None:
        super().__init__()
        check_channels(in_channels, dev, operator)
        check_bits(bits[0], operator, "input_bitwidth")
        check_bits(bits[1], operator, "output_bitwidth")
        self.operator, self.device, self.in_channels = operator, dev, in_channels
        self.quantize, self.input_bitwidth, self.output_bitwidth = bool(quantize), bits[0], bits[1]
        self.signed = False
        self.QuantizeFeature = QuantizeFeature(32, False, 1.0, dev.name)

    def _read(self, inputs: Any) -> Feature:
        feature = read(inputs, self.operator, self.input_bitwidth)
        check_shape(feature.tensor, (4,), self.operator, self.in_channels)
        if self.quantize and not self.signed:
            self.signed = bool((feature.tensor < 0).any())
        return feature

    def _quantise(self, y: Tensor, feature: Feature) -> Tagged:
        signed = feature.signed
        if self.quantize:
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
    ) -> None:
        dev = device(target_device, "Avgpool2D", TXX + T40F)
        super().__init__("Avgpool2D", dev, in_channels, quantize, (input_bitwidth, output_bitwidth))
        self.kernel = pair((kernel_h, kernel_w), "Avgpool2D", "kernel_h, kernel_w")
        self.stride = pair(stride, "Avgpool2D", "stride")
        self.same = any(pair(padding, "Avgpool2D", "padding", low=0))

    def forward(self, inputs: Any) -> Tagged:
        """Pool."""
        feature = self._read(inputs)
        x = feature.tensor
        if self.same:
            x = pad_same(x, self.kernel, self.stride, pad_value(feature, self.device))
        return self._quantise(F.avg_pool2d(x, self.kernel, self.stride), feature)


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

    Inputs:
        A tensor (N, C, H, W) or `(tensor, bit, min)`.

    Returns:
        `(tensor, bit, min)`, or a bare tensor. The output is signed once an input held a negative number.

    Raises:
        InvalidValueError: The channels do not fit the target.

    Source:
        Manual section AdaptiveAvgpool2D; spec/ingenic.md, section 3.

    Example:
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
    ) -> None:
        dev = device(target_device, "AdaptiveAvgpool2D")
        super().__init__("AdaptiveAvgpool2D", dev, in_channels, quantize, (input_bitwidth, output_bitwidth))
        self.keepdim, self.last_layer = bool(keepdim), bool(last_layer)

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Pool."""
        feature = self._read(inputs)
        y = feature.tensor.mean(dim=(2, 3), keepdim=self.keepdim)
        return y if self.last_layer else self._quantise(y, feature)


class Unpool2D(nn.Module):
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
        self.mode, self.quantize, self.last_layer = mode, bool(quantize), bool(last_layer)

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Enlarge."""
        feature = read(inputs, "Unpool2D")
        check_shape(feature.tensor, (4,), "Unpool2D")
        x = feature.tensor
        size = (x.shape[2] * self.kernel[0], x.shape[3] * self.kernel[1])
        if self.mode == "zero":
            y = x.new_full((*x.shape[:2], *size), pad_value(feature, self.device) if self.quantize else 0.0)
            y[:, :, :: self.kernel[0], :: self.kernel[1]] = x
        elif self.mode == "nearest":
            y = F.interpolate(x, size=size, mode="nearest")
        else:
            y = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return y if self.last_layer else feature.carry(y)


class RoIPooling(nn.Module):
    """Maximum over the bins of regions of interest.

    The vendor's CPU kernel reads the values of every region from the first image of the batch, and sends the gradient
    to the image the region names. The default repeats that, with a warning; `per_image` pools each region from its
    own image.

    Args:
        output_size: Bins: one int, or (height, width).
        spatial_scale: Feature pixels a unit of the regions' coordinates.
        target_device: Any target but T02.
        per_image: Read each region from the image it names.

    Inputs:
        A tensor (N, C, H, W) or `(tensor, bit, min)`, and regions (R, 5): image index, x1, y1, x2, y2, corners
        included. A region covers `scale * x1` to `scale * (x2 + 1)`; bins take every pixel that they touch.

    Returns:
        The same, (R, C, height, width). An empty bin gives 0.

    Raises:
        ShapeError: The regions are not (R, 5).

    Warns:
        ChipfitWarning: Regions of several images without `per_image`.

    Source:
        spec/ingenic.md, section 3 (in the vendor's kit, not in the manual); bins and the image found on recorded cases.

    Example:
        >>> RoIPooling(1)(torch.arange(16.0).view(1, 1, 4, 4), torch.tensor([[0.0, 1.0, 0.0, 2.0, 1.0]])).item()
        6.0
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float = 1.0,
        target_device: str = "Txx",
        per_image: bool = False,
    ) -> None:
        super().__init__()
        device(target_device, "RoIPooling", TXX + T40F)
        self.output_size = pair(output_size, "RoIPooling", "output_size")
        check_positive(spatial_scale, "RoIPooling", "spatial_scale")
        self.spatial_scale, self.per_image = float(spatial_scale), bool(per_image)

    def forward(self, inputs: Any, rois: Tensor) -> Tensor | Tagged:
        """Pool each region."""
        feature = read(inputs, "RoIPooling")
        x = feature.tensor
        check_shape(x, (4,), "RoIPooling")
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ShapeError("a region has 5 numbers", given=tuple(rois.shape), allowed="(R, 5)", where="RoIPooling")
        images = rois[:, 0].long()
        if images.numel() and not 0 <= int(images.min()) <= int(images.max()) < x.shape[0]:
            raise InvalidValueError(
                "a region names no image", given=images.tolist(), allowed=f"0 to {x.shape[0] - 1}", where="RoIPooling"
            )
        low, high = rois[:, 1:3] * self.spatial_scale, (rois[:, 3:5] + 1) * self.spatial_scale
        columns = _bins(low[:, 0], high[:, 0], self.output_size[1], x.shape[3])
        rows = _bins(low[:, 1], high[:, 1], self.output_size[0], x.shape[2])
        own = x[images]
        source = own
        if not self.per_image and bool(images.any()):
            warnings.warn(
                "RoIPooling reads every region from the first image, as the vendor's kit does; per_image=True reads "
                "each from its own",
                ChipfitWarning,
                stacklevel=2,
            )
            source = x[:1].expand_as(own)
        index = _peaks(source.detach(), rows, columns)
        y = own.flatten(2).gather(2, index.flatten(2)).view(index.shape)
        if source is not own:
            y = source.detach().flatten(2).gather(2, index.flatten(2)).view(index.shape) + (y - y.detach())
        empty = ~(rows.any(-1)[:, :, None] & columns.any(-1)[:, None, :])
        return feature.carry(y.masked_fill(empty[:, None], 0.0))


def _bins(low: Tensor, high: Tensor, count: int, size: int) -> Tensor:
    """Which of `size` pixels belong to which of `count` bins of each region, (R, count, size)."""
    edges = torch.arange(count + 1, device=low.device) * ((high - low) / count)[:, None] + low[:, None]
    pixels = torch.arange(size, device=low.device)
    inside = (pixels >= edges[:, :-1, None].floor()) & (pixels < edges[:, 1:, None].ceil())
    return inside & (high > low)[:, None, None]


def _peaks(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Index, in the flattened image, of the first maximum of each bin, (R, C, bins high, bins wide)."""
    lowest = torch.finfo(x.dtype).min
    # One direction after the other: first the peak of each row's bins, then the peak of those.
    value, column = x.unsqueeze(3).masked_fill(~columns[:, None, None], lowest).max(dim=4)
    row = value.unsqueeze(2).masked_fill(~rows[:, None, :, :, None], lowest).max(dim=3).indices
    return row * x.shape[3] + column.gather(2, row)


__all__ = ["AdaptiveAvgpool2D", "Avgpool2D", "Maxpool2D", "RoIPooling", "Unpool2D"]

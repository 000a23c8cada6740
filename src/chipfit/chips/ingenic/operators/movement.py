"""Operators that only move data: Preprocess, Flatten, Route, Channel_Split, Pixel_Shuffle, Focus.

They return what they were given: a tuple for a tuple, a bare tensor for a bare tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.ingenic.devices import T40F, TXX, check_int, device
from chipfit.chips.ingenic.operators.features import Tagged, check_shape, read, read_list
from chipfit.errors import InvalidTypeError, InvalidValueError, ShapeError, UnsupportedError


def focus(x: Tensor) -> Tensor:
    """Turn each 2x2 patch into channels: (N, C, 2H, 2W) to (N, 4C, H, W).

    Raises:
        ShapeError: An odd height or width.

    Example:
        >>> focus(torch.arange(4.0).view(1, 1, 2, 2)).flatten()
        tensor([0., 2., 1., 3.])
    """
    if x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ShapeError("height and width must be even", given=tuple(x.shape), allowed="(N, C, 2H, 2W)", where="Focus")
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)


class Preprocess(nn.Module):
    """Say how the network's input was prepared; the numbers pass unchanged.

    Args:
        mean: Mean that was subtracted from the image.
        var: Number that it was divided by.
        target_device: Any target but T02.

    Inputs:
        The prepared image, `(image - mean) / var`, (N, C, H, W).

    Returns:
        `(tensor, 8, mean, var, min)` for a layer with `first_layer=True`; min is 0 if the mean is 0, else -1.

    Raises:
        UnsupportedError: T02.
        InvalidTypeError: The input is not a tensor.

    Source:
        Manual section Preprocess.

    Example:
        >>> Preprocess(128.0, 128.0, "T40")(torch.zeros(1))
        (tensor([0.]), 8, 128.0, 128.0, -1.0)
    """

    def __init__(self, mean: float = 0.0, var: float = 255.0, target_device: str = "Txx") -> None:
        super().__init__()
        self.device = device(target_device, "Preprocess", TXX + T40F)
        self.mean, self.var = mean, var

    def forward(self, x: Tensor) -> tuple[Tensor, int, float, float, float]:
        """Attach the description to a prepared image."""
        if not isinstance(x, Tensor):
            raise InvalidTypeError("the image is a tensor", given=type(x), allowed="a tensor", where="Preprocess")
        return x, 8, self.mean, self.var, 0.0 if self.mean == 0 else -1.0


class Flatten(nn.Module):
    """Reshape.

    Args:
        shape_list: New shape; -1 stands for the dimension that follows from the others, normally the batch.
        target_device: Any target.

    Inputs:
        A tensor of any shape or `(tensor, bit, min)`.

    Returns:
        The same, reshaped.

    Raises:
        InvalidTypeError: `shape_list` is not a list of ints.
        ShapeError: The elements do not fit the shape.

    Source:
        Manual section Flatten.

    Example:
        >>> Flatten([-1, 12], "T40")((torch.zeros(2, 3, 4, 1), 8, 0.0))[0].shape
        torch.Size([2, 12])
    """

    def __init__(self, shape_list: list[int], target_device: str = "Txx") -> None:
        super().__init__()
        device(target_device, "Flatten")
        if not isinstance(shape_list, (list, tuple)) or not all(isinstance(n, int) for n in shape_list):
            raise InvalidTypeError(
                "a shape is a list of ints",
                given=shape_list,
                allowed="for example [-1, 48]",
                where="Flatten.shape_list",
            )
        self.shape_list = list(shape_list)

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Reshape."""
        feature = read(inputs, "Flatten")
        try:
            return feature.carry(feature.tensor.reshape(self.shape_list))
        except RuntimeError as error:
            raise ShapeError(
                "the shape does not fit",
                given=tuple(feature.tensor.shape),
                allowed=str(self.shape_list),
                where="Flatten",
            ) from error


class Route(nn.Module):
    """Concatenate features along the channels.

    Args:
        target_device: Any target; at most 8 inputs on T02.

    Inputs:
        A list of tensors (N, C_i, H, W) or `(tensor, bit, min)`.

    Returns:
        `(tensor, bit, min)`, or a bare tensor for bare tensors; tensor (N, sum of C_i, H, W).

    Raises:
        InvalidValueError: The inputs differ in width or sign, or are too many.
        ShapeError: They differ in height or width.

    Source:
        Manual section Route.

    Example:
        >>> Route("T40")([(torch.zeros(1, 2, 4, 4), 8, 0.0), (torch.zeros(1, 3, 4, 4), 8, 0.0)])[0].shape
        torch.Size([1, 5, 4, 4])
    """

    def __init__(self, target_device: str = "Txx") -> None:
        super().__init__()
        self.device = device(target_device, "Route")

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Concatenate."""
        features = read_list(inputs, "Route")
        if self.device.family == "T02" and len(features) > 8:
            raise InvalidValueError("too many inputs", given=len(features), allowed="at most 8 on T02", where="Route")
        if len({(f.tensor.shape[0], *f.tensor.shape[2:]) for f in features}) > 1:
            raise ShapeError(
                "the inputs differ outside the channels", given=[tuple(f.tensor.shape) for f in features], where="Route"
            )
        return features[0].carry(torch.cat([f.tensor for f in features], dim=1))


class Channel_Split(nn.Module):
    """Split a feature along the channels.

    Args:
        split: Channels of each part. The chips want multiples of 16, which the vendor's kit does not enforce either.
        target_device: Any target but T02.

    Inputs:
        A tensor (N, C, ...) or `(tensor, bit, min)`.

    Returns:
        A list of as many of the same.

    Raises:
        InvalidTypeError: `split` is not a list of ints.
        ShapeError: The parts do not add up to the channels.

    Source:
        Manual section Channel_Split.

    Example:
        >>> [part[0].shape[1] for part in Channel_Split([16, 48])((torch.zeros(1, 64, 2, 2), 8, 0.0))]
        [16, 48]
    """

    def __init__(self, split: list[int], target_device: str = "Txx") -> None:
        super().__init__()
        device(target_device, "Channel_Split", TXX + T40F)
        if not isinstance(split, list) or not split:
            raise InvalidTypeError(
                "split is a list", given=split, allowed="a list of ints", where="Channel_Split.split"
            )
        for channels in split:
            check_int(channels, "Channel_Split", "split")
        self.split = split

    def forward(self, inputs: Any) -> list[Tensor | Tagged]:
        """Split."""
        feature = read(inputs, "Channel_Split")
        if feature.tensor.dim() < 2 or feature.tensor.shape[1] != sum(self.split):
            raise ShapeError(
                "the parts do not add up to the channels",
                given=tuple(feature.tensor.shape),
                allowed=f"{sum(self.split)} channels",
                where="Channel_Split",
            )
        return [feature.carry(part) for part in torch.split(feature.tensor, self.split, dim=1)]


class Pixel_Shuffle(nn.Module):
    """Turn groups of 4 channels into 2x2 patches, as `torch.nn.PixelShuffle`.

    Args:
        upscale_factor: Only 2.
        target_device: A target of the T40 family.

    Inputs:
        A tensor (N, 4C, H, W) or `(tensor, bit, min)`, with C a multiple of 32.

    Returns:
        The same, (N, C, 2H, 2W).

    Raises:
        UnsupportedError: Another factor or target.
        ShapeError: The channels do not fit.

    Source:
        Manual section Pixel_Shuffle.

    Example:
        >>> Pixel_Shuffle(2)(torch.rand(1, 128, 2, 2)).shape
        torch.Size([1, 32, 4, 4])
    """

    def __init__(self, upscale_factor: int, target_device: str = "T40") -> None:
        super().__init__()
        device(target_device, "Pixel_Shuffle", T40F)
        if upscale_factor != 2:
            raise UnsupportedError(
                "the chip has one factor", given=upscale_factor, allowed="2", where="Pixel_Shuffle.upscale_factor"
            )
        self.upscale_factor = upscale_factor

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Rearrange."""
        feature = read(inputs, "Pixel_Shuffle")
        check_shape(feature.tensor, (4,), "Pixel_Shuffle")
        if feature.tensor.shape[1] % (32 * self.upscale_factor**2):
            raise ShapeError(
                "the channels do not fit",
                given=tuple(feature.tensor.shape),
                allowed="output channels that are a multiple of 32, so input channels a multiple of 128",
                where="Pixel_Shuffle",
            )
        return feature.carry(F.pixel_shuffle(feature.tensor, self.upscale_factor))


class Focus(nn.Module):
    """Turn each 2x2 patch into channels, as YOLOv5 does before its first convolution.

    The chips run it only there: set `is_focus=True` on the first `Conv2D` instead of using it by itself.

    Args:
        target_device: Any target but T02.

    Inputs:
        A tensor (N, C, 2H, 2W) or `(tensor, bit, min)`.

    Returns:
        The same, (N, 4C, H, W).

    Raises:
        ShapeError: An odd height or width.

    Source:
        Manual section Focus.

    Example:
        >>> Focus("T40")(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 12, 8, 8])
    """

    def __init__(self, target_device: str = "Txx") -> None:
        super().__init__()
        device(target_device, "Focus", TXX + T40F)

    def forward(self, inputs: Any) -> Tensor | Tagged:
        """Rearrange."""
        feature = read(inputs, "Focus")
        check_shape(feature.tensor, (4,), "Focus")
        return feature.carry(focus(feature.tensor))

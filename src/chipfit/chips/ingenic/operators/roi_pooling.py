"""RoIPooling."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.devices import T40F, TXX, check_positive, device
from chipfit.chips.ingenic.operators.features import Tagged, check_shape, read
from chipfit.chips.ingenic.operators.padding import pair
from chipfit.errors import ChipfitWarning, InvalidValueError, ShapeError


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

"""Operations that the chip has no layer for, put together from those it has.

Each is an ordinary module; lowering traces through it and finds the chip layers inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.digital import (
    WitinBatchNorm2d,
    WitinCat,
    WitinElementAdd,
    WitinElementMul,
    WitinMean,
    WitinSigmoid,
)

Configure = Callable[..., WitinLayerConfig]
"""Makes a layer's configuration from options."""


class Scaled(nn.Module):
    """Product with a constant: `x * factor`."""

    def __init__(self, configure: Configure, factor: float) -> None:
        super().__init__()
        self.factor = float(factor)
        self.mul = WitinElementMul(layer_config=configure())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        y: Tensor = self.mul(x, self.factor)
        return y


class Difference(nn.Module):
    """`a - b`: the sum with the negated second operand.

    Args:
        configure: Makes the configurations.
        number: Whether the second operand is a Python number, which needs no operator to be negated.
        reverse: Whether it gives `b - a`, as `torch.rsub`.
    """

    def __init__(self, configure: Configure, number: bool = False, reverse: bool = False) -> None:
        super().__init__()
        self.reverse = reverse
        if not number:
            self.negate = WitinElementMul(layer_config=configure())
        self.add = WitinElementAdd(layer_config=configure())

    def forward(self, a: Any, b: Any) -> Tensor:
        """Subtract; either may be a Python number."""
        if self.reverse:
            a, b = b, a
        y: Tensor = self.add(a, -b if isinstance(b, (int, float)) else self.negate(b, -1.0))
        return y


class Silu(nn.Module):
    """SiLU: `x * sigmoid(x)`."""

    def __init__(self, configure: Configure) -> None:
        super().__init__()
        self.sigmoid = WitinSigmoid(layer_config=configure())
        self.mul = WitinElementMul(layer_config=configure())

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        y: Tensor = self.mul(x, self.sigmoid(x))
        return y


class HardSigmoid(nn.Module):
    """Hard sigmoid: `relu6(x + 3) / 6`."""

    def __init__(self, configure: Configure) -> None:
        super().__init__()
        self.add = WitinElementAdd(layer_config=configure())
        self.sixth = Scaled(configure, 1 / 6)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        y: Tensor = self.sixth(F.relu6(self.add(x, 3.0)))
        return y


class HardSwish(nn.Module):
    """Hard swish: `x * relu6(x + 3) / 6`."""

    def __init__(self, configure: Configure) -> None:
        super().__init__()
        self.gate = HardSigmoid(configure)
        self.mul = WitinElementMul(layer_config=configure())

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        y: Tensor = self.mul(x, self.gate(x))
        return y


class Joined(nn.Module):
    """Concatenation of any number of tensors, pair by pair.

    Args:
        configure: Makes the configurations.
        count: Number of tensors.
        dim: Dimension along which to join.
    """

    def __init__(self, configure: Configure, count: int, dim: int) -> None:
        super().__init__()
        self.cats = nn.ModuleList(WitinCat(dim, configure()) for _ in range(count - 1))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Join."""
        y = tensors[0]
        for i, cat in enumerate(self.cats):
            y = cat(y, tensors[i + 1])
        return y


class MeanOver(nn.Module):
    """Mean over neighbouring dimensions, which become one for it.

    The mean keeps its input's scale, so the input takes 12 bits: the sum of many codes has them.

    Args:
        configure: Makes the configuration.
        first: First dimension, not negative.
        count: Number of dimensions.
        kept: Dimensions of size 1 that stay in their place.
    """

    def __init__(self, configure: Configure, first: int, count: int, kept: int) -> None:
        super().__init__()
        self.first, self.count, self.kept = first, count, kept
        self.mean = WitinMean(dim=first, layer_config=configure(x_quant_bits=12))

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        y: Tensor = self.mean(x.flatten(self.first, self.first + self.count - 1) if self.count > 1 else x)
        for _ in range(self.kept):
            y = y.unsqueeze(self.first)
        return y


def average(configure: Configure, channels: int, window: tuple[tuple[int, ...], ...], unsigned: bool) -> nn.Module:
    """Average pooling as a convolution of each channel by itself, with equal weights that take no gradient.

    Args:
        configure: Makes the configuration.
        channels: Channels.
        window: Kernel, stride and padding.
        unsigned: Whether the input has no negative values.
    """
    kernel, stride, padding = window
    kind: Any = WitinConv2d if len(kernel) == 2 else WitinConv1d
    config = configure(x_quant_bits=9) if unsigned else configure(handle_neg_in=HandleNegInType.PN)
    layer: nn.Module = kind(
        channels, channels, kernel, stride, padding, groups=channels, bias=False, layer_config=config
    )
    weight: Any = layer.weight
    nn.init.constant_(weight, 1 / math.prod(kernel))
    weight.requires_grad_(False)
    return layer


class NearestUpsample(nn.Module):
    """Repeat every pixel: only moves codes.

    Args:
        height: Vertical factor.
        width: Horizontal factor.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge `(n, c, h, w)`."""
        wide = torch.stack([x] * self.width, dim=4).flatten(3, 4)
        return torch.stack([wide] * self.height, dim=3).flatten(2, 3)


class PixelShuffle(nn.Module):
    """Groups of `factor^2` channels to patches, as `torch.nn.PixelShuffle`: only moves codes.

    Args:
        factor: Height and width of a patch.
        shape: Shape of the input.
    """

    def __init__(self, factor: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.factor = factor
        self.channels, self.height, self.width = shape[1] // factor**2, shape[2], shape[3]

    def forward(self, x: Tensor) -> Tensor:
        """Rearrange `(n, c * factor^2, h, w)`."""
        r, c, h, w = self.factor, self.channels, self.height, self.width
        return x.reshape(-1, c, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(-1, c, h * r, w * r)


class Norm1d(nn.Module):
    """Batch norm of `(n, c)` or `(n, c, length)`, as a batch norm over an image.

    Args:
        norm: The chip's batch norm.
        dims: Dimensions of the input, 2 or 3.
    """

    def __init__(self, norm: WitinBatchNorm2d, dims: int) -> None:
        super().__init__()
        self.norm, self.dims = norm, dims

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        if self.dims == 3:
            y: Tensor = self.norm(x.unsqueeze(2)).squeeze(2)
            return y
        flat: Tensor = self.norm(x.unsqueeze(2).unsqueeze(3)).flatten(1)
        return flat

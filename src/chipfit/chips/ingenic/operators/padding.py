"""Borders: the chips pad so that a stride of s leaves ceil(size / s) outputs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from chipfit.chips.ingenic.devices import check_int
from chipfit.errors import InvalidTypeError

Pads = tuple[int, int, int, int]
"""Left, right, top, bottom: the order of `torch.nn.functional.pad`."""


def pair(value: int | tuple[int, int] | list[int], operator: str, argument: str, low: int = 1) -> tuple[int, int]:
    """One int for both directions, or (vertical, horizontal).

    Raises:
        InvalidTypeError: Neither an int nor two of them.
        InvalidValueError: An int below `low`.

    Example:
        >>> pair(2, "Conv2D", "stride")
        (2, 2)
    """
    if isinstance(value, bool) and low == 0:  # padding=True
        value = int(value)
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(both) != 2:
        raise InvalidTypeError("one or two ints are needed", given=value, where=f"{operator}.{argument}")
    for one in both:
        check_int(one, operator, argument, low)
    return both[0], both[1]


def same_pads(height: int, width: int, kernel: tuple[int, int], stride: tuple[int, int]) -> Pads:
    """Border that leaves ceil(size / stride) outputs, the odd element after; a negative one crops.

    Source:
        spec/ingenic.md, section 1.5.

    Example:
        >>> same_pads(8, 8, (3, 3), (2, 2))
        (0, 1, 0, 1)
    """
    total_h = (-(-height // stride[0]) - 1) * stride[0] + kernel[0] - height
    total_w = (-(-width // stride[1]) - 1) * stride[1] + kernel[1] - width
    top, left = total_h // 2, total_w // 2
    return left, total_w - left, top, total_h - top


def pad_same(x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], value: float) -> Tensor:
    """Pad a feature (N, C, H, W) by `same_pads` with a value."""
    pads = same_pads(x.shape[2], x.shape[3], kernel, stride)
    return F.pad(x, pads, value=value) if any(pads) else x

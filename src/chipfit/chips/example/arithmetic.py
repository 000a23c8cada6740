"""What the NPU computes, once, on integer codes held in floating point; training calls it with gradients.

x, y    int8 codes, value = code / 2^exponent
w       int8 codes of a channel c from -127 to 127, value = code * scale_c, scale_c = max|w_c| / 127
b       int32 codes: half_even(bias / (scale_c / 2^x_exponent))
m_c     half_even(scale_c * 2^(y_exponent - x_exponent + 20)), the channel's multiplier
y       sat(half_even((w x + b) * m_c / 2^20)); of a sum of two features sat(half_even((x1 + x2) * 2^y_exponent))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chipfit.arithmetic.bounds import FLOAT32_EXACT
from chipfit.arithmetic.rounding import half_even, straight_through

LOWEST, HIGHEST, LARGEST_WEIGHT, SHIFT = -128, 127, 127, 20
rounded = straight_through(half_even)


def activation_codes(x: Tensor, exponent: int) -> Tensor:
    """Real numbers to int8 codes.

    Example:
        >>> activation_codes(torch.tensor([0.26, 9.0]), 4)
        tensor([  4., 127.])
    """
    return rounded((x * 2.0**exponent).clamp(LOWEST, HIGHEST))


def weight_scales(weight: Tensor) -> Tensor:
    """Value of one code, a channel; channels are axis 0. A channel of zeros has the scale of 1.

    Example:
        >>> weight_scales(torch.tensor([[0.5, -1.27], [0.0, 0.0]]))
        tensor([0.0100, 0.0079])
    """
    largest = weight.detach().flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest, torch.ones_like(largest)) / LARGEST_WEIGHT


def weighted_sum(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    exponents: tuple[int, ...],
    linear_map: Callable[[Tensor, Tensor], Tensor],
    channel_axis: int = -1,
) -> Tensor:
    """A layer with weights, from real numbers to real numbers on its output's grid.

    Args:
        x: Input.
        weight: Weight, channels first.
        bias: Bias, or None.
        exponents: Of the input and of the output.
        linear_map: The map of input codes and weight codes, without bias.
        channel_axis: Axis of the channels in the output.

    Example:
        >>> x, w = torch.tensor([[0.5, 0.25]]), torch.tensor([[1.0, -0.5]])
        >>> weighted_sum(x, w, torch.tensor([0.1]), (7, 6), torch.nn.functional.linear)
        tensor([[0.4688]])
    """
    x_exponent, y_exponent = exponents
    scales = weight_scales(weight)
    w = rounded((weight / scales.view(-1, *[1] * (weight.dim() - 1))).clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT))
    q = activation_codes(x, x_exponent)
    wide = float(w.detach().flatten(1).abs().sum(1).max()) * -LOWEST > FLOAT32_EXACT
    total = linear_map(q.double(), w.double()) if wide else linear_map(q, w).double()
    shape = [-1] + [1] * (-1 - channel_axis)
    if bias is not None:
        total = total + rounded(bias.double() * 2.0**x_exponent / scales.double()).view(shape)
    multiplier = half_even(scales.double() * 2.0 ** (y_exponent - x_exponent + SHIFT)).view(shape)
    code = rounded((total * multiplier / 2**SHIFT).clamp(LOWEST, HIGHEST))
    return (code / 2.0**y_exponent).to(x.dtype)


def sum_of_two(a: Tensor, b: Tensor, exponents: tuple[int, ...]) -> Tensor:
    """The sum of two features; the exponents are those of both and of the sum.

    Example:
        >>> sum_of_two(torch.tensor([0.5]), torch.tensor([0.1]), (4, 4, 3))
        tensor([0.6250])
    """
    first, second = (activation_codes(x, e).double() / 2.0**e for x, e in zip((a, b), exponents, strict=False))
    return (activation_codes(first + second, exponents[2]) / 2.0 ** exponents[2]).to(a.dtype)

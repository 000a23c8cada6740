"""Bit widths on Txx, Xs1 and Xs2: the automatic choice, and the bounds that keep the accumulator from overflowing."""

from __future__ import annotations

from chipfit.errors import InvalidValueError


def _check_outputs(out_channels: int, limit: int, operator: str, argument: str = "out_channels") -> None:
    if out_channels > limit:
        raise InvalidValueError(
            "too many channels for an automatic bit width",
            given=out_channels,
            allowed=f"at most {limit}",
            where=f"{operator}.{argument}",
            hint="Split the layer, use 8 bits, or set auto_bitwidth=False and choose the widths.",
        )


def automatic_linear(in_channels: int, out_channels: int, operator: str) -> tuple[int, int]:
    """Weight and output bits of a fully connected layer or of a convolution with a kernel one row high.

    Raises:
        InvalidValueError: More than 512 outputs.

    Source:
        spec/ingenic.md, section 3.1.

    Example:
        >>> automatic_linear(128, 64, "FullConnected")
        (5, 5)
    """
    _check_outputs(out_channels, 512, operator)
    return 5 if in_channels <= 128 else 4, 5 if out_channels < 128 else 4


def automatic_conv(in_channels: int, out_channels: int, kernel_h: int, operator: str) -> tuple[int, int]:
    """Weight and output bits of a convolution.

    Raises:
        InvalidValueError: More outputs than 512 (kernel of one row), 128 (two rows) or 64.

    Source:
        spec/ingenic.md, section 3.1.

    Example:
        >>> automatic_conv(16, 32, 3, "Conv2D")
        (4, 5)
    """
    if kernel_h == 1:
        return automatic_linear(in_channels, out_channels, operator)
    if kernel_h == 2:
        _check_outputs(out_channels, 128, operator)
        return 4, 5 if out_channels <= 64 else 4
    _check_outputs(out_channels, 64, operator)
    return 4, 5 if out_channels <= 32 else 4


def automatic_depthwise(in_channels: int, operator: str) -> tuple[int, int]:
    """Weight and output bits of a depthwise convolution.

    Raises:
        InvalidValueError: More than 512 channels.

    Source:
        spec/ingenic.md, section 3.1.
    """
    _check_outputs(in_channels, 512, operator, "in_channels")
    return 8, 5 if in_channels < 128 else 4


CONV_BOUND, LINEAR_BOUND = 73728, 65536
"""Largest accumulator of a convolution, and of a depthwise convolution or fully connected layer."""


def check_accumulator(terms: int, in_bits: int, weight_bits: int, out_bits: int, bound: int, operator: str) -> None:
    """Check the widths of a layer with weights below 8 bits.

    Args:
        terms: Products that one output sums up: kernel height x width x input channels.
        in_bits: Width of the input's codes.
        weight_bits: Width of the weight's codes.
        out_bits: Width of the output's codes.
        bound: `CONV_BOUND` or `LINEAR_BOUND`.
        operator: The layer, for error messages.

    Raises:
        InvalidValueError: A width below 4, or the largest sum exceeds the bound.

    Source:
        spec/ingenic.md, section 3.2.

    Example:
        >>> check_accumulator(9 * 16, 4, 4, 4, CONV_BOUND, "Conv2D")
        >>> check_accumulator(9 * 256, 8, 4, 4, CONV_BOUND, "Conv2D")
        Traceback (most recent call last):
        ...
        chipfit.errors.InvalidValueError: Conv2D: the accumulator would overflow; got 4718592; allowed: at most 73728...
    """
    if min(in_bits, weight_bits, out_bits) < 4:
        raise InvalidValueError(
            "a bit width is too small for this target",
            given={"input": in_bits, "weight": weight_bits, "output": out_bits},
            allowed="4 or more",
            where=operator,
            hint="2 bits need a target of the T40 family.",
        )
    largest = terms * 2**in_bits * 2 ** (weight_bits - 1)
    if largest > bound:
        raise InvalidValueError(
            "the accumulator would overflow",
            given=largest,
            allowed=f"at most {bound} (kernel x input channels x 2^input_bits x 2^(weight_bits-1))",
            where=operator,
            hint="Use fewer input channels, fewer bits, or 8-bit weights.",
        )

"""The Ingenic targets: which family each belongs to, what each runs, and the checks that every layer shares."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass

from chipfit.errors import InvalidTypeError, InvalidValueError, UnsupportedError, nearest


@dataclass(frozen=True)
class Device:
    """One target.

    Args:
        name: The vendor's name of the target.
        family: `"TXX"` (two's-complement grids that contain zero), `"T40F"` (full-range symmetric grids of odd codes)
            or `"T02"` (arithmetic of T40F, few operators).
        channel_multiple: Operators marked so need channel counts that are multiples of this.

    Source:
        spec/ingenic.md, target families; manual, "target_device" of each operator.
    """

    name: str
    family: str
    channel_multiple: int

    @property
    def has_zero(self) -> bool:
        """Whether signed codes include zero (TXX); otherwise the pad value of a signed feature is the lowest code."""
        return self.family == "TXX"


TXX = ("Txx", "Xs1", "Xs2")
T40F = ("T40", "T41", "A1", "X2500")
T02 = ("T02",)
ALL = TXX + T40F + T02

DEVICES: dict[str, Device] = {
    **{name: Device(name, "TXX", 16) for name in TXX},
    **{name: Device(name, "T40F", 32) for name in T40F},
    **{name: Device(name, "T02", 16) for name in T02},
}
"""Every target by its vendor name."""

FEATURE_BITS = (*range(2, 13), 32)
"""Widths a feature may have; 32 stands for "not quantised"."""

WEIGHT_BITS = (*range(2, 9), 32)
"""Widths a weight may have; 32 stands for "not quantised"."""


def device(name: str | Device, operator: str, supported: Iterable[str] = ALL) -> Device:
    """Look up a target and check that an operator runs on it.

    Args:
        name: The vendor's name, for example `"T40"`; or a description, which stays as it is, for instance with another
            `channel_multiple`.
        operator: Operator that asks, for the error message.
        supported: Names of the targets this operator runs on.

    Raises:
        InvalidTypeError: `name` is not a string.
        InvalidValueError: `name` is no Ingenic target that this library knows.
        UnsupportedError: The target is known but does not run this operator.

    Example:
        >>> device("T41", "Conv2D").family
        'T40F'
        >>> device("Txx", "Pixel_Shuffle", T40F)
        Traceback (most recent call last):
        ...
        chipfit.errors.UnsupportedError: Pixel_Shuffle.target_device: this operator does not run on the target; ...
    """
    where = f"{operator}.target_device"
    supported = tuple(supported)
    given, name = name, name.name if isinstance(name, Device) else name
    if not isinstance(name, str):
        raise InvalidTypeError("a target is named by a string", given=name, allowed=", ".join(supported), where=where)
    if name not in DEVICES:
        raise InvalidValueError(
            "unknown target", given=name, allowed=", ".join(supported), where=where, hint=nearest(name, supported)
        )
    if name not in supported:
        raise UnsupportedError(
            "this operator does not run on the target", given=name, allowed=", ".join(supported), where=where
        )
    return given if isinstance(given, Device) else DEVICES[name]


def check_channels(channels: int, dev: Device, operator: str, argument: str = "in_channels") -> None:
    """Check that a channel count is a multiple of what the target's vector unit needs.

    Raises:
        InvalidValueError: It is not.

    Source:
        spec/ingenic.md, section 3, "Ch"; enforced by the vendor since 2023.

    Example:
        >>> check_channels(48, DEVICES["T40"], "Conv2D")
        Traceback (most recent call last):
        ...
        chipfit.errors.InvalidValueError: Conv2D.in_channels: ... got 48; allowed: multiples of 32 on target T40
    """
    check_int(channels, operator, argument)
    if channels % dev.channel_multiple:
        raise InvalidValueError(
            "the channel count does not fit the target",
            given=channels,
            allowed=f"multiples of {dev.channel_multiple} on target {dev.name}",
            where=f"{operator}.{argument}",
        )


def check_int(value: int, operator: str, argument: str, low: int = 1) -> None:
    """Check that an argument is an int of at least `low`.

    Raises:
        InvalidTypeError: Not an int.
        InvalidValueError: Below `low`.
    """
    where = f"{operator}.{argument}"
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):  # NumPy's ints are welcome
        raise InvalidTypeError("an int is needed", given=value, allowed=f"an int >= {low}", where=where)
    if value < low:
        raise InvalidValueError("value too small", given=value, allowed=f"an int >= {low}", where=where)


def check_bits(bits: int, operator: str, argument: str) -> None:
    """Check a bit width; which widths are allowed follows from the argument's name.

    Raises:
        InvalidTypeError: Not an int.
        InvalidValueError: Not a width the chips have.

    Example:
        >>> check_bits(16, "Conv2D", "weight_bitwidth")
        Traceback (most recent call last):
        ...
        chipfit.errors.InvalidValueError: Conv2D.weight_bitwidth: no such bit width; got 16; allowed: 2 to 8, or 32 ...
    """
    allowed = WEIGHT_BITS if argument.startswith("weight") else FEATURE_BITS
    check_int(bits, operator, argument, low=2)
    if bits not in allowed:
        raise InvalidValueError(
            "no such bit width",
            given=bits,
            allowed=f"2 to {allowed[-2]}, or 32 for not quantised",
            where=f"{operator}.{argument}",
        )


def check_positive(value: float, operator: str, argument: str) -> None:
    """Check that an argument is a finite number above zero.

    Raises:
        InvalidTypeError: Not a number.
        InvalidValueError: Zero, negative, NaN or infinite.
    """
    where = f"{operator}.{argument}"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise InvalidTypeError("a number is needed", given=value, allowed="a number above 0", where=where)
    if not (math.isfinite(value) and value > 0):
        raise InvalidValueError(
            "a positive finite number is needed", given=value, allowed="a number above 0", where=where
        )


def check_choice(value: str, allowed: tuple[str, ...], operator: str, argument: str) -> None:
    """Check that an argument is one of a few names.

    Raises:
        InvalidValueError: It is not; the message names the nearest one.
    """
    if value not in allowed:
        raise InvalidValueError(
            "unknown value",
            given=value,
            allowed=", ".join(map(repr, allowed)),
            where=f"{operator}.{argument}",
            hint=nearest(str(value), allowed),
        )

"""The Ingenic targets: which family each belongs to, what each runs, and the checks that every layer shares."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

from chipfit.errors import ChipfitWarning, InvalidTypeError, InvalidValueError, UnsupportedError, nearest


@dataclass(frozen=True)
class Device:
    """One target.

    Args:
        name: The vendor's name of the target.
        family: `"TXX"` (two's-complement grids that contain zero), `"T40F"` (full-range symmetric grids of odd codes)
            or `"T02"` (arithmetic of T40F, few operators).
        channel_multiple: Operators marked so need channel counts that are multiples of this.
        strict: Whether a channel count that does not fit is an error (True), a warning (False), or as `check_channels`
            says (None).

    Source:
        spec/ingenic.md, target families; manual, "target_device" of each operator.
    """

    name: str
    family: str
    channel_multiple: int
    strict: bool | None = None

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


def device(name: str | Device, operator: str, supported: Iterable[str] = ALL, strict: bool | None = None) -> Device:
    """Look up a target and check that an operator runs on it.

    Args:
        name: The vendor's name, for example `"T40"`; or a description, which stays as it is, for instance with another
            `channel_multiple`.
        operator: Operator that asks, for the error message.
        supported: Names of the targets this operator runs on.
        strict: See `Device`; None leaves it as it is.

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
    found = given if isinstance(given, Device) else DEVICES[name]
    return found if strict is None else replace(found, strict=bool(strict))


def unchecked(dev: Device) -> Device:
    """The target for the parts of an operator whose channels were checked as a whole."""
    return replace(dev, channel_multiple=1)


def check_channels(
    channels: int, dev: Device, operator: str, argument: str = "in_channels", stacklevel: int = 3
) -> None:
    """Check that a channel count is a multiple of what the target's vector unit needs.

    The vendor's 2022 kit takes any count, and its manual's examples have such; its 2023 kit takes none. Here fewer
    channels than one multiple train, with a warning, and more are an error. `strict` makes both the one or the other.

    Args:
        channels: The count.
        dev: The target, and whether it is strict.
        operator: Operator that asks.
        argument: Its argument, for the message.
        stacklevel: Of the warning; 3 names the line that builds the operator.

    Raises:
        InvalidValueError: It is none, and that is an error here.

    Warns:
        ChipfitWarning: It is none, and the network can be trained but not converted.

    Source:
        spec/ingenic.md, section 3, "Ch", and section 8.

    Example:
        >>> check_channels(48, DEVICES["T40"], "Conv2D")
        Traceback (most recent call last):
        ...
        chipfit.errors.InvalidValueError: Conv2D.in_channels: ... got 48; allowed: multiples of 32 on target T40...
    """
    check_int(channels, operator, argument)
    check_multiple(channels, dev, f"{operator}.{argument}", stacklevel + 1)


def check_multiple(channels: int, dev: Device, where: str, stacklevel: int = 3) -> None:
    """`check_channels` for any count of channels; `where` says whose it is."""
    multiple = dev.channel_multiple
    if channels % multiple == 0:
        return
    if dev.strict or (dev.strict is None and channels > multiple):
        raise InvalidValueError(
            "the channel count does not fit the target",
            given=channels,
            allowed=f"multiples of {multiple} on target {dev.name}",
            where=where,
            hint="strict=False trains it, as the vendor's 2022 kit does; the converter refuses it."
            if dev.strict is None
            else None,
        )
    warnings.warn(
        f"{where}: {channels} channels are no multiple of {multiple}: this trains, but the converter for {dev.name} "
        f"refuses it, and so do export_magik and strict=True",
        ChipfitWarning,
        stacklevel=stacklevel,
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

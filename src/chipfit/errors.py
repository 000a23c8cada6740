"""Every exception that chipfit raises on purpose.

Each says what was given, what is allowed, where, and what to do. Each also subclasses the built-in exception that a
caller would expect, and the one that the vendor's closed library raises in the same place, so that both kinds of
`except` in existing scripts keep working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ChipfitError(Exception):
    """Base class of all chipfit errors.

    Args:
        problem: What is wrong, in one clause.
        given: The offending value, shown with `repr`; omit it where there is none to show.
        allowed: What would have been accepted.
        where: Layer, argument or file at fault.
        hint: What to do about it.

    Example:
        >>> print(InvalidValueError("bias_row_N is out of range", given=40, allowed="1 to 32", where="fc1"))
        fc1: bias_row_N is out of range; got 40; allowed: 1 to 32
    """

    def __init__(
        self,
        problem: str,
        *,
        given: object = ...,
        allowed: str | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem, self.given, self.allowed, self.where, self.hint = problem, given, allowed, where, hint
        text = f"{where}: {problem}" if where else problem
        if given is not ...:
            text += f"; got {_short(given)}"
        if allowed:
            text += f"; allowed: {allowed}"
        if hint:
            text += f". {hint}"
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by fields, since `args` holds the finished message only (data loader workers send errors this way)."""
        return _rebuild, (type(self), self.problem, self.given, self.allowed, self.where, self.hint)


class InvalidValueError(ChipfitError, ValueError, AssertionError):
    """A value of the right type lies outside what is allowed."""


class InvalidTypeError(ChipfitError, TypeError, ValueError, AssertionError):
    """A value has a type that the argument cannot take."""


class UnknownOptionError(ChipfitError, TypeError, ValueError, KeyError):
    """A name that nothing knows; the message names the nearest known one."""

    __str__ = Exception.__str__  # KeyError would show the repr of the message


class ShapeError(ChipfitError, ValueError, RuntimeError, AssertionError):
    """A tensor's shape or dtype does not fit the layer."""


class CalibrationError(ChipfitError, ValueError, AssertionError):
    """Statistics do not determine a scale: an all-zero tensor, or no data at all."""


class NonFiniteError(ChipfitError, ValueError, ArithmeticError):
    """A tensor holds NaN or infinity (checked when `debug_mode` is on)."""


class UnsupportedError(ChipfitError, NotImplementedError, ValueError, AssertionError):
    """The request is understood but this chip, target or version cannot do it."""


class UnpublishedError(UnsupportedError, AttributeError):
    """The vendor names something that it never published, so nobody outside can compute it."""


class ProofError(ChipfitError, AssertionError):
    """A network and its integer program do not compute the same codes."""


class FileFormatError(ChipfitError, ValueError):
    """A file is missing, damaged, or not of the format it should be."""


class WritingError(ChipfitError, OSError):
    """A file or folder cannot be written: the disk is full, or there are no rights."""


class ChipfitWarning(UserWarning):
    """Base class of chipfit's warnings: something that works, but perhaps not as meant."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names come closest to a mistyped one.

    Args:
        name: What was given.
        known: The names that would have worked.

    Returns:
        A sentence for the `hint` of an error.

    Example:
        >>> nearest("x_quant_bit", ["x_quant_bits", "scale_x"])
        "Did you mean 'x_quant_bits'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else "Known: " + ", ".join(sorted(known)) + "."


def _short(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _rebuild(
    cls: type[ChipfitError], problem: str, given: object, allowed: str | None, where: str | None, hint: str | None
) -> ChipfitError:
    return cls(problem, given=given, allowed=allowed, where=where, hint=hint)

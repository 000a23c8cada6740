"""A row of the certificate: what every chip's layers have, and what one vendor's add to it as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from torch import Tensor

from chipfit.program.dialect import Range

Ranges = Callable[[], Mapping[str, Range]]
"""Gives `code_ranges` of the program, computed once, when a row asks for them."""


@dataclass(frozen=True)
class Seen:
    """What data showed of one operation.

    Args:
        outputs: Outputs counted.
        code_use: Share of the output codes that occurred; None for real outputs.
        own: What only this vendor's rows say, by name; each is an attribute too.
    """

    outputs: int
    code_use: float | None
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __getattr__(self, name: str) -> Any:
        return _own(self, name)


@dataclass(frozen=True)
class Row:
    """One operation that sums or combines codes; at a layer's second call it has a row of its own.

    Args:
        name: The operation, as its edge in the program is named; a part of one has a suffix.
        kind: What it computes: 'linear', 'conv', 'mean', 'add' and so on.
        inputs: Codes that one output adds up or combines.
        channels: Output channels.
        bound: Largest magnitude of a sum for any input, the worst channel; 0 where nothing is summed.
        bits: Width of a signed register that holds it.
        exact_in_float32: Whether float32 sums exactly; if not, the exact path takes float64.
        lo, hi: Lowest and highest output code; None for real outputs.
        weight_codes: Different weight codes that occur; None without weights.
        seen: What data showed, or None.
        own: What only this vendor's rows say, by name; each is an attribute too.

    Example:
        >>> row = Row("fc", "linear", 2, 1, 32640, 16, True, -128, 127, 1, own={"g": 128.0})
        >>> row.g, as_plain(row)["g"]
        (128.0, 128.0)
    """

    name: str
    kind: str
    inputs: int
    channels: int
    bound: int
    bits: int
    exact_in_float32: bool
    lo: int | None
    hi: int | None
    weight_codes: int | None = None
    seen: Seen | None = None
    own: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __getattr__(self, name: str) -> Any:
        return _own(self, name)


def _own(entry: Row | Seen, name: str) -> Any:
    own = entry.__dict__.get("own", {})
    if name not in own:
        raise AttributeError(f"{type(entry).__name__} has no {name!r}")
    return own[name]


def as_plain(entry: Row | Seen) -> dict[str, Any]:
    """A row, or what was seen, as plain data, the vendor's entries among the others."""
    plain: dict[str, Any] = {}
    for part in fields(entry):
        value = getattr(entry, part.name)
        if part.name == "own":
            plain.update(value)
        else:
            plain[part.name] = as_plain(value) if isinstance(value, Seen) else value
    return plain


class Counting(Protocol):
    """Counts of one operation over batches, and its row."""

    def add(self, edges: Mapping[str, Tensor]) -> None:
        """Take a batch's edges into account."""

    def row(self) -> Row:
        """The row; `seen` is None before any batch."""


@dataclass(frozen=True)
class Column:
    """A column of the certificate's table, after the layer's name.

    Args:
        heading: Its heading.
        cell: What stands in a row.
        of_data: Whether it says what only data can show, and is left out without.
    """

    heading: str
    cell: Callable[[Row], str]
    of_data: bool = False


def sum_cell(row: Row) -> str:
    """Width of the sums' register."""
    return f"{row.bits} bits" if row.bound else ""


def exact_cell(row: Row) -> str:
    """What computes the sums exactly."""
    return ("float32" if row.exact_in_float32 else "float64") if row.bound else ""


def codes_cell(row: Row) -> str:
    """Range of the output codes."""
    return "real" if row.lo is None else f"{row.lo} to {row.hi}"


def weights_cell(row: Row) -> str:
    """Different weight codes."""
    return "" if row.weight_codes is None else str(row.weight_codes)


def use_cell(row: Row) -> str:
    """Share of the codes that occurred."""
    return "" if row.seen is None or row.seen.code_use is None else f"{row.seen.code_use:.0%}"


COLUMNS = (
    Column("inputs", lambda row: f"{row.kind} {row.inputs}"),
    Column("outputs", lambda row: str(row.channels)),
    Column("sum", sum_cell),
    Column("exact in", exact_cell),
    Column("codes", codes_cell),
    Column("weight codes", weights_cell),
    Column("codes used", use_cell, of_data=True),
)
"""Columns of a vendor that names none of its own."""

"""What an operation means: one row a kind, and a dialect as the rows of one vendor.

A dialect adds operations to the core ones. Whoever computes, bounds, writes or certifies a program looks its operations
up here, and knows no vendor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Meaning:
    """What one kind of operation means.

    Args:
        op: Its dataclass.
        reference: Computes it in int64, from the operation, the values of its inputs and the program's tensors.
        fast: Prepares its step of the fast path; None where the reference serves.
        ranges: Lowest and highest code that it gives; None where that follows from the inputs' alone.
        onnx: Adds its nodes to an ONNX graph; None where ONNX cannot say it.
        c: Writes it as C; None where C cannot say it.
        row: Its row of the certificate; None where it has none.
    """

    op: type[Any]
    reference: Callable[..., Any]
    fast: Callable[..., Any] | None = None
    ranges: Callable[..., Any] | None = None
    onnx: Callable[..., Any] | None = None
    c: Callable[..., Any] | None = None
    row: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Dialect:
    """The operations of one vendor's programs.

    Args:
        name: The vendor's.
        meanings: One row a kind of operation.
    """

    name: str
    meanings: tuple[Meaning, ...]

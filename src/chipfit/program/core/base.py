"""What every operation of every dialect is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Op:
    """An operation of an integer program: a small frozen dataclass, whose meanings stand in its dialect's table."""

"""The table of what is read: one function an operator, whose parameters are the operator's inputs and attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from chipfit.convert.onnx.values import RefusedError

READS: dict[str, Reading] = {}
"""By name of the operator."""


@dataclass(frozen=True)
class Reading:
    """How an operator is read.

    Args:
        function: Takes the builder, then the inputs by position (None for one left out) and attributes by name; gives
            a Value, or a list of them.
        least: Fewest inputs.
        most: Most inputs.
        attributes: Names of the attributes that it knows.
    """

    function: Callable[..., Any]
    least: int
    most: float
    attributes: frozenset[str]

    def misfit(self, inputs: int, attributes: dict[str, Any]) -> str:
        """What of a node it cannot read, as a clause; empty if nothing."""
        unknown = sorted(set(attributes) - self.attributes)
        if unknown:
            return "unknown attributes: " + ", ".join(unknown)
        if not self.least <= inputs <= self.most:
            return f"{inputs} inputs"
        return ""


def reads(*operators: str, **fixed: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a function into the table.

    Args:
        *operators: The operators that it reads.
        **fixed: Arguments that it gets besides.
    """

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        inputs = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        needed = [p for p in inputs if p.default is p.empty]
        endless = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        known = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) - set(fixed)

        def read(*args: Any, **options: Any) -> Any:
            return function(*args, **options, **fixed)

        for operator in operators:
            READS[operator] = Reading(read, len(needed), float("inf") if endless else len(inputs), known)
        return function

    return enter


def known(what: str, given: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse a value of an attribute that is not read.

    Raises:
        RefusedError: it is none of the allowed ones.
    """
    if given not in allowed:
        given = given if len(str(given)) <= 80 else str(given)[:80] + "..."
        raise RefusedError(f"{what} {given!r} is not read; allowed: {', '.join(map(str, allowed))}")

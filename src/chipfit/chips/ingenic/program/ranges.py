"""How large the codes of Ingenic's operations can become."""

from __future__ import annotations

from chipfit.chips.ingenic.program import ops
from chipfit.program.core.ranges import hull
from chipfit.program.dialect import Context, Range


def requantised_range(op: ops.Requantise) -> Range:
    """Lowest and highest code of a feature quantiser.

    Example:
        >>> [requantised_range(ops.Requantise(kind, 8, 1.0)) for kind in ("unsigned", "signed", "odd")]
        [(0, 8), (-8, 7), (-8, 8)]
    """
    return (0 if op.kind == "unsigned" else -op.n), (op.n - 1 if op.kind == "signed" else op.n)


def of_requantised(op: ops.Finish | ops.Combine, inputs: list[Range], context: Context) -> Range:
    """Of an operation that ends in a feature quantiser."""
    return hull(inputs) if op.requantise is None else requantised_range(op.requantise)


def enlarge(op: ops.Enlarge, inputs: list[Range], context: Context) -> Range:
    """The filling's code too."""
    return hull([*inputs, (op.value, op.value)]) if op.mode == "zero" else hull(inputs)

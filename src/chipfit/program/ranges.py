"""How large a program's codes can become, from its tensors alone."""

from __future__ import annotations

from chipfit.errors import UnsupportedError
from chipfit.program.core.ranges import hull
from chipfit.program.dialect import Range, computing, context_of, meaning_of
from chipfit.program.types import Node, Program


def code_ranges(program: Program, or_width: bool = False) -> dict[str, Range]:
    """Lowest and highest code of every integer edge of a program, sums included, for any input.

    Args:
        program: The program.
        or_width: Take what the edge's width holds where nothing says more.

    Raises:
        UnsupportedError: a sum over an axis whose length is not known; not with `or_width`.

    Example:
        >>> import torch
        >>> from chipfit.program.core import ops
        >>> from chipfit.program.types import VERSION, Input, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True)
        >>> q = Node("q", ops.Quantise(128.0, 0, -128, 127), ("x",), codes)
        >>> total = Node("sum", ops.Accumulate("linear", "w", 128), ("q",), ValueType((1,), 12, True))
        >>> tensors = {"w": torch.tensor([[3, -1]])}
        >>> code_ranges(Program(VERSION, "t40", (q, total), (Input("x", real),), (), tensors))["sum"]
        (-511, 509)
    """
    found: dict[str, Range] = {}
    for node in program.nodes:
        if not node.output.real:
            try:
                found[node.name] = _code_range(node, [found.get(name, (0, 0)) for name in node.inputs], program)
            except UnsupportedError:
                if not or_width:
                    raise
                found[node.name] = (node.output.lo, node.output.hi)
    return found


def _code_range(node: Node, inputs: list[Range], program: Program) -> Range:
    ranges = meaning_of(node.op).ranges
    with computing(node.name):
        return hull(inputs) if ranges is None else ranges(node.op, inputs, context_of(node, program))

"""How networks of Ingenic operators are compared with their programs."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipfit.chips.ingenic.program.ops import Finish
from chipfit.program.comparing import Comparing, Settled
from chipfit.program.types import Program

_OFF_GRID = 2e-3
"""Distance from a code, in codes, that float32 can put a value of 12 bits."""


def settle(root: nn.Module, program: Program) -> Settled:
    """A mean is signed from its first negative input on: put it in the state that the program was made in."""
    for node in reversed(program.nodes):  # of a layer that is called twice, its first call decides
        if node.layer and isinstance(node.op, Finish) and node.op.requantise is not None:
            layer: Any = root.get_submodule(node.layer)
            if hasattr(layer, "signed"):
                layer.signed = node.op.requantise.kind != "unsigned"
    return Settled(rounding=("tround",))


COMPARING = Comparing(settle, widens=False, tolerance=_OFF_GRID)

"""How networks of Witmem layers are compared with their programs."""

from __future__ import annotations

from torch import nn

from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.program.ops import arrays
from chipfit.program.comparing import Comparing, Settled
from chipfit.program.types import Program, owner_of


def settle(root: nn.Module, program: Program) -> Settled:
    """Put the layers on the program's rounding rules, and say which of them train another one."""
    layers = {name: module for name, module in root.named_modules() if isinstance(module, WitinLayer)}
    rules = {owner_of(node, layers): op.rounding for _, node, op in arrays(program)}
    trained_otherwise = tuple(name for name, layer in layers.items() if name in rules and layer.rounding != rules[name])
    for name, layer in layers.items():
        layer.set_mode(layer.mode, None, rules.get(name))
    return Settled(tuple(dict.fromkeys(op.rounding for _, _, op in arrays(program))), trained_otherwise)


COMPARING = Comparing(settle)

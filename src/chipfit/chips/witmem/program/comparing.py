"""How networks of Witmem layers are compared with their programs."""

from __future__ import annotations

from torch import nn

from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.program.ops import arrays
from chipfit.program.comparing import Comparing, Settled
from chipfit.program.types import Program


def settle(root: nn.Module, program: Program) -> Settled:
    """Put the layers on the program's rounding rules, and say which of them train another one."""
    rules = _rules(program)
    layers = {name: module for name, module in root.named_modules() if isinstance(module, WitinLayer)}
    trained_otherwise = tuple(name for name, layer in layers.items() if name in rules and layer.rounding != rules[name])
    for name, layer in layers.items():
        layer.set_mode(layer.mode, None, rules.get(name))
    return Settled(tuple(dict.fromkeys(op.rounding for _, _, op in arrays(program))), trained_otherwise)


def _rules(program: Program) -> dict[str, str]:
    """Rounding rule by layer; a cell of a GRU belongs to the layer that its name begins with."""
    layers = sorted((node.layer for node in program.nodes if node.layer), key=len, reverse=True)
    rules: dict[str, str] = {}
    for name, node, op in arrays(program):
        owner = node.layer or next((layer for layer in layers if name.startswith(f"{layer}.")), "")
        rules[owner] = op.rounding
    return rules


COMPARING = Comparing(settle)

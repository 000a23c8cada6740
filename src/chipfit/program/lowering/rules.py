"""What a vendor says about lowering its layers; the engine beside it knows no vendor.

A rule is a function `rule(b, call, layer, *arguments)` of the builder, the call, the layer that is called and the
lowered arguments of the call, in the order of the layer's `forward`. It appends nodes to the program and returns what
the call's result becomes. A lowered value is a `Value`, or any structure of tuples with values in place of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.lowering import torch as plain
from chipfit.program.lowering.builder import Builder, Value
from chipfit.program.types import ValueType

Rule = Callable[..., Any]


@dataclass(frozen=True)
class PlainRules:
    """What of torch's own may stand between a vendor's layers.

    Args:
        modules: Rules by class of module; a subclass takes its nearest base's.
        methods: Rules by name of tensor method.
        functions: Rules by function.
    """

    modules: Mapping[type[nn.Module], Rule]
    methods: Mapping[str, Rule]
    functions: Mapping[Any, Rule]


EXACT = PlainRules(plain.MODULES, plain.METHODS, plain.FUNCTIONS)
"""Everything that is exact on codes of a grid with a zero and a power-of-two scale."""
MOVING = PlainRules(
    {kind: rule for kind, rule in plain.MODULES.items() if kind in plain.MOVING_MODULES},
    {name: rule for name, rule in plain.METHODS.items() if rule in plain.MOVING},
    {function: rule for function, rule in plain.FUNCTIONS.items() if rule in plain.MOVING},
)
"""What neither computes nor compares codes: it is exact on any grid."""


def real_input(b: Builder, name: str, once: Tensor, twice: Tensor) -> Value:
    """An input of the network as a real input of the program."""
    return b.input(name, once, twice)


def dequantised(b: Builder, result: Any) -> Value | None:
    """A result of the network as a real output of the program.

    Raises:
        UnsupportedError: it is no tensor.
    """
    if not isinstance(result, Value):
        raise UnsupportedError("the network returns something that is no tensor", given=result)
    return result if result.type.real else b.add("output", ops.Dequantise(), (result,), ValueType(None, None))


def as_it_is(root: nn.Module, options: Mapping[str, Any]) -> None:
    """Leave a network as it is."""


def no_remark(chip: str, calls: Sequence[tuple[str, nn.Module, Any]]) -> None:
    """Say nothing of the calls."""


@dataclass(frozen=True)
class Lowering:
    """From a vendor's layers to operations.

    Args:
        layers: Rule by class of layer; a subclass takes its nearest base's.
        refused: Classes that cannot be lowered, with the reason.
        plain: What of torch's own may stand between the layers.
        advice: What to do about a call that has no rule, by the name of its class, function or method, or of what a
            rule for plain torch refuses ('mean').
        hint: The same for a call of any other name.
        between: What the functions and methods that have no rule stand between, for the error; '' says nothing.
        prepare: Puts a copy of the network, already in evaluation and without noise, in the state that is lowered,
            from the vendor's options of 'lower'.
        chip: Which of the vendor's chips a network is for; None where there is one.
        input: What a tensor that the network is given becomes.
        output: What a leaf of the network's result becomes: a real edge, or None to leave it out.
        starts_at_zeros: Classes whose rules take a state of zeros that the network makes, as a `Zeros`.
        remark: Is told the chip and every call of a module (its name, it, and the lowered arguments) of a network that
            was lowered, to warn of what its user should know.
        uncalibrated: Names of the layers of a network that `chipfit.convert` made which have no scales yet.
        take: Takes a call before any rule does, or leaves it by returning None: gets the traced call, the module where
            it calls one, and the lowered arguments. For what becomes something only together with what follows it.

    Example:
        >>> from chipfit.program.lowering.builder import Call
        >>> class Twice(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> def twice(b: Builder, call: Call, layer: Twice, x: Value) -> Value:
        ...     return b.add(call.name, ops.Add(0, -128, 127), (x, x), x.type, layer=call.layer)
        >>> Lowering({Twice: twice}).plain is EXACT
        True
    """

    layers: Mapping[type[nn.Module], Rule]
    refused: Mapping[type[nn.Module], str] = field(default_factory=dict)
    plain: PlainRules = EXACT
    advice: Mapping[str, str] = field(default_factory=dict)
    hint: str | None = None
    between: str = ""
    prepare: Callable[[nn.Module, Mapping[str, Any]], None] = as_it_is
    chip: Callable[[nn.Module], str] | None = None
    input: Callable[[Builder, str, Tensor, Tensor], Value] = real_input
    output: Callable[[Builder, Any], Value | None] = dequantised
    starts_at_zeros: tuple[type[nn.Module], ...] = ()
    remark: Callable[[str, Sequence[tuple[str, nn.Module, Any]]], None] = no_remark
    uncalibrated: Callable[[nn.Module], Sequence[str]] = lambda network: ()
    take: Callable[[fx.Node, nn.Module | None, Any, Any], Any] | None = None

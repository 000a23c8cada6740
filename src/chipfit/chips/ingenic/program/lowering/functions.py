"""Functions that the CPU core computes between two operators of the chip: of codes, they are tables.

A converted network leaves the chip by `ToTensor`, computes in torch, and comes back by `ToFeature`. Where torch takes
each value by itself, the way there and back is a function from codes to codes with as many entries as there are codes.
Its entries are what torch gives for them in float32.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.chips.ingenic.operators.bridges import ToFeature
from chipfit.chips.ingenic.program.lowering.edges import add
from chipfit.chips.ingenic.program.lowering.parts import Target
from chipfit.chips.ingenic.program.reference import requantise
from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.grid import value
from chipfit.program.lowering.builder import Builder, Call, Value

_WIDEST = 12
"""Bits of codes for which a table is made."""
_NAMES = {
    *("sigmoid", "tanh", "silu", "gelu", "relu", "relu6", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "elu"),
    *(
        "selu",
        "celu",
        "mish",
        "softplus",
        "softsign",
        "logsigmoid",
        "log_sigmoid",
        "clamp",
        "clip",
        "abs",
        "exp",
        "sqrt",
        "rsqrt",
    ),
    *("square", "neg", "add", "sub", "rsub", "mul", "div", "truediv", "pow", "sin", "cos", "log", "reciprocal", "erf"),
}
"""Functions and methods that take each value by itself."""
_MODULES = (
    *(
        nn.Sigmoid,
        nn.Tanh,
        nn.SiLU,
        nn.GELU,
        nn.ReLU,
        nn.ReLU6,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.LeakyReLU,
    ),
    *(nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Softsign, nn.LogSigmoid),
)
"""Modules that do."""


@dataclass(frozen=True)
class Function:
    """Real numbers that are a function of codes, value by value.

    Args:
        source: The codes.
        scale: What torch multiplies the codes' values by, one factor a channel or one for all.
        compute: From these numbers on.
        where: What the network calls it, for messages.
        computed: Whether torch has computed anything yet.
    """

    source: Value
    scale: Tensor
    compute: Callable[[Tensor], Tensor]
    where: str
    computed: bool = False

    def table(self, b: Builder, call: Call, to: Target) -> Value:
        """The codes that follow, as a table over all codes of the source.

        Args:
            b: Gets the table.
            call: That of the layer that makes codes again.
            to: Where they lead.
        """
        grid, low, high = self.source.grid, self.source.lo, self.source.hi
        if to.op is None or to.grid is None or grid is None or high - low >= 2 << _WIDEST:
            raise UnsupportedError("codes are too wide for a table", allowed=f"up to {_WIDEST} bits", where=self.where)
        scale = self.scale[:1] if bool((self.scale == self.scale[0]).all()) else self.scale
        real = value(torch.arange(low, high + 1), grid).view(1, -1) * scale.view(-1, 1)
        codes = requantise(self.compute(real), to.op)
        op = ops.LookUp(self.where, b.keep(f"{call.name}.table", codes), low)
        return add(b, call.name, op, (self.source,), to.grid, (int(codes.min()), int(codes.max())), call.layer)


def is_elementwise(n: fx.Node, module: nn.Module | None) -> bool:
    """Whether a call takes each value by itself."""
    if n.op == "call_module":
        return isinstance(module, _MODULES)
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    return str(name).rstrip("_") in _NAMES


def taken(n: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Function | None:
    """A call as a function of codes; None where it is none.

    Raises:
        UnsupportedError: the call reads what a function gave, but is none itself, and does not lead back to codes.
    """
    found = function_of(n, module, args, kwargs)
    given = [f for f in _functions((args, tuple(kwargs.values()))) if f.computed]
    if found is None and given and not isinstance(module, ToFeature):
        raise UnsupportedError(
            f"what {given[0].where} gives is real numbers, of which only a function value by value can be lowered"
        )
    return found


def function_of(n: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Function | None:
    """A call as a function of codes; None where it is none.

    Args:
        n: The call.
        module: The module that it calls, if it does.
        args: Its arguments, lowered.
        kwargs: Likewise.
    """
    functions = list(_functions((args, tuple(kwargs.values()))))
    if not functions or not is_elementwise(n, module) or _others((args, tuple(kwargs.values()))):
        return None
    first = functions[0]
    if any(f.source is not first.source or not torch.equal(f.scale, first.scale) for f in functions):
        return None

    def compute(x: Tensor) -> Tensor:
        given, named = fx.node.map_aggregate((args, kwargs), lambda a: _origin(a, x))
        if module is not None:
            result = module(*given, **named)
        elif n.op == "call_method":
            result = operator.methodcaller(str(n.target), *given[1:], **named)(given[0])
        else:
            result = n.target(*given, **named)  # type: ignore[operator]  # a function, since it is called
        return torch.as_tensor(result)

    return Function(first.source, first.scale, compute, n.name, True)


def _origin(argument: Any, x: Tensor) -> Any:
    function = as_function(argument)
    return argument if function is None else function.compute(x)


def as_function(x: Any) -> Function | None:
    """What is a function of codes: a `Function`, or what `ToTensor` gave."""
    if isinstance(x, Function):
        return x
    if isinstance(x, Value) and x.origin is not None:
        source, scale = x.origin
        return Function(source, scale, lambda real: real, x.name)
    return None


def _functions(results: Any) -> Iterator[Function]:
    if isinstance(results, (tuple, list)):
        for part in results:
            yield from _functions(part)
    else:
        function = as_function(results)
        if function is not None:
            yield function


def _others(results: Any) -> bool:
    """Whether anything else of the network is among the arguments."""
    if isinstance(results, (tuple, list)):
        return any(_others(part) for part in results)
    return isinstance(results, Value) and as_function(results) is None

"""Functions of each value by itself, which the CPU core computes between operators of the chip, as nodes of opset 9.

A recipe says which nodes a function is, and what these are read back as: torch's own function, so that reading back
changes no bit. Another reader computes the nodes, in float32 too, and may differ in the last bits.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph, decimal
from chipfit.chips.ingenic.magik.view import View, attributes
from chipfit.errors import UnsupportedError

_LARGEST = float(np.finfo(np.float32).max)
"""What opset 9 takes for an end of Clip that is not there."""
Attribute = tuple[str, str, Any]
"""Name in the file, torch's name or '' for a fixed value, and the value otherwise."""


@dataclass(frozen=True)
class Recipe:
    """A function as nodes.

    Args:
        function: What it is read back as.
        steps: Kind and inputs of each node: 'x', a number, or the position of a step as text.
        module: The module of torch that computes it.
        attributes: Attributes of its one node.
        fixed: Arguments of torch's that have to have one value.
    """

    function: Callable[..., Tensor]
    steps: tuple[tuple[Any, ...], ...]
    module: type[nn.Module] | None = None
    attributes: tuple[Attribute, ...] = ()
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of torch's arguments behind the first, in order."""
        return (*(name for _, name, _ in self.attributes if name), *self.fixed)


def _one(kind: str, function: Callable[..., Tensor], module: type[nn.Module] | None = None) -> Recipe:
    return Recipe(function, ((kind, "x"),), module)


_GATE: tuple[Attribute, ...] = (("alpha", "", 1 / 6), ("beta", "", 0.5))
_CLIP = (("Clip", "x"),)

RECIPES: dict[str, Recipe] = {
    "sigmoid": _one("Sigmoid", torch.sigmoid, nn.Sigmoid),
    "tanh": _one("Tanh", torch.tanh, nn.Tanh),
    "relu": _one("Relu", torch.relu, nn.ReLU),
    "softsign": _one("Softsign", F.softsign, nn.Softsign),
    "selu": _one("Selu", F.selu, nn.SELU),
    "abs": _one("Abs", torch.abs),
    "neg": _one("Neg", torch.neg),
    "exp": _one("Exp", torch.exp),
    "log": _one("Log", torch.log),
    "sqrt": _one("Sqrt", torch.sqrt),
    "reciprocal": _one("Reciprocal", torch.reciprocal),
    "sin": _one("Sin", torch.sin),
    "cos": _one("Cos", torch.cos),
    "erf": _one("Erf", torch.erf),
    "rsqrt": Recipe(torch.rsqrt, (("Sqrt", "x"), ("Reciprocal", "0"))),
    "leaky_relu": Recipe(F.leaky_relu, (("LeakyRelu", "x"),), nn.LeakyReLU, (("alpha", "negative_slope", 0.01),)),
    "elu": Recipe(F.elu, (("Elu", "x"),), nn.ELU, (("alpha", "alpha", 1.0),)),
    "relu6": Recipe(F.relu6, _CLIP, nn.ReLU6, (("min", "", 0.0), ("max", "", 6.0))),
    "clamp": Recipe(torch.clamp, _CLIP, None, (("min", "min", None), ("max", "max", None))),
    "hardtanh": Recipe(F.hardtanh, _CLIP, nn.Hardtanh, (("min", "min_val", -1.0), ("max", "max_val", 1.0))),
    "softplus": Recipe(F.softplus, (("Softplus", "x"),), nn.Softplus, (), {"beta": 1.0, "threshold": 20.0}),
    "silu": Recipe(F.silu, (("Sigmoid", "x"), ("Mul", "x", "0")), nn.SiLU),
    "mish": Recipe(F.mish, (("Softplus", "x"), ("Tanh", "0"), ("Mul", "x", "1")), nn.Mish),
    "logsigmoid": Recipe(F.logsigmoid, (("Neg", "x"), ("Softplus", "0"), ("Neg", "1")), nn.LogSigmoid),
    "hardsigmoid": Recipe(F.hardsigmoid, (("HardSigmoid", "x"),), nn.Hardsigmoid, _GATE),
    "hardswish": Recipe(F.hardswish, (("HardSigmoid", "x"), ("Mul", "x", "0")), nn.Hardswish, _GATE),
    "gelu": Recipe(
        F.gelu,
        (("Div", "x", math.sqrt(2)), ("Erf", "0"), ("Add", "1", 1.0), ("Mul", "x", "2"), ("Mul", "3", 0.5)),
        nn.GELU,
        (),
        {"approximate": "none"},
    ),
}
"""Functions of one value by torch's name."""

BINARY: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": operator.truediv,
    "Pow": operator.pow,
}
"""Functions of two values by kind of node, one of which may be a number."""
_LABELS = {"add": "Add", "sub": "Sub", "rsub": "Sub", "mul": "Mul", "div": "Div", "truediv": "Div", "pow": "Pow"}
_SAME = {"clip": "clamp", "log_sigmoid": "logsigmoid"}


def function(g: MagikGraph, unit: str, label: str, args: Any, kwargs: dict[str, Any], result: Tensor) -> Edge | None:
    """Write a function of plain torch; None where it is none of these.

    Args:
        g: The graph.
        unit: What its nodes are called.
        label: Torch's name of it.
        args: Its arguments, edges among them.
        kwargs: Likewise.
        result: What it computes.

    Raises:
        UnsupportedError: its arguments have no nodes.
    """
    if label == "square":
        label, args = "mul", (args[0], args[0])
    if label in _LABELS:
        return _binary(g, unit, label, args, kwargs, result)
    recipe = RECIPES.get(_SAME.get(label, label))
    if recipe is None:
        return None
    options = {name: value for name, value in kwargs.items() if name not in ("inplace", "input")}
    options |= dict(zip(recipe.arguments, args[1:], strict=False))
    return _written(g, unit, unit, label, recipe, args[0] if args else kwargs["input"], options, result)


def module_function(g: MagikGraph, unit: str, module: nn.Module, x: Edge, result: Tensor) -> Edge | None:
    """Write a module of torch that computes such a function; None where it does not. Arguments as for `function`."""
    for label, recipe in RECIPES.items():
        if recipe.module is type(module):
            options = {name: getattr(module, name) for name in recipe.arguments}
            return _written(g, unit, f"{unit}/activation", label, recipe, x, options, result)
    return None


def _written(
    g: MagikGraph, unit: str, end: str, label: str, recipe: Recipe, x: Edge, options: dict[str, Any], result: Tensor
) -> Edge:
    """The nodes of a recipe; the last is called `end`."""
    for name, value in recipe.fixed.items():
        if options.pop(name, value) != value:
            raise UnsupportedError(f"{label} with another {name} has no nodes in the file", allowed=f"{name}={value}")
    given: dict[str, Any] = {}
    for attribute, name, default in recipe.attributes:
        value = options.pop(name, default) if name else default
        if value is None:
            value = -_LARGEST if attribute == "min" else _LARGEST
        if not isinstance(value, (int, float)):
            raise UnsupportedError(f"{label}: {name} is no number of the network's", given=type(value).__name__)
        given[attribute] = float(value)
    if options:
        raise UnsupportedError(f"{label} with these arguments has no nodes in the file", given=", ".join(options))
    made: list[Edge] = []
    for number, (kind, *inputs) in enumerate(recipe.steps):
        last = number == len(recipe.steps) - 1
        read = [
            x
            if step == "x"
            else made[int(step)]
            if isinstance(step, str)
            else g.constant(f"{unit}/number{number}", [step])
            for step in inputs
        ]
        name = end if last else f"{unit}/step{number}"
        made.append(g.add(kind, name, *read, sample=result, **(given if number == 0 else {})))
    return made[-1]


def _binary(g: MagikGraph, unit: str, label: str, args: Any, kwargs: dict[str, Any], result: Tensor) -> Edge:
    given = [*args, *(kwargs[name] for name in ("other", "exponent") if name in kwargs)]
    if kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None or len(given) != 2:
        raise UnsupportedError(f"{label} with these arguments has no nodes in the file", given=", ".join(kwargs))
    if label == "rsub":
        given.reverse()
    for x in given:
        if not isinstance(x, (Edge, int, float)) or (isinstance(x, Edge) and x.tag is not None):
            raise UnsupportedError(f"{label} takes real numbers of the network, or constants", given=type(x).__name__)
    read = [x if isinstance(x, Edge) else g.constant(f"{unit}/number", [x]) for x in given]
    return g.add(_LABELS[label], unit, *read, sample=result)


def found(view: View, nodes: list[Any], x: str) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """The recipes that nodes are, each with its arguments.

    Args:
        view: The file.
        nodes: The nodes, in order.
        x: The edge that they read.
    """
    for recipe in RECIPES.values():
        if [node.op_type for node in nodes] != [step[0] for step in recipe.steps]:
            continue
        wired = all(
            len(node.input) == len(step) - 1
            and all(_is(view, nodes, name, x, s) for name, s in zip(node.input, step[1:], strict=True))
            for node, step in zip(nodes, recipe.steps, strict=True)
        )
        given = attributes(nodes[0])
        fixed = all(np.float32(value) == given[key] for key, name, value in recipe.attributes if not name)
        if wired and fixed:
            values = {name: decimal(given[key]) for key, name, _ in recipe.attributes if name}
            yield recipe, {name: None if abs(v) >= decimal(_LARGEST) else v for name, v in values.items()}


def _is(view: View, nodes: list[Any], name: str, x: str, step: Any) -> bool:
    """Whether an input of a node is what its recipe says."""
    if isinstance(step, str):
        return name == (x if step == "x" else nodes[int(step)].output[0])
    return view.constant(name) and bool((view.array(name) == np.float32(step)).all())

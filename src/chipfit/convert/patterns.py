"""Activations that a network writes out in arithmetic, as one function each, so that a chip's own can stand there."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from chipfit.convert.operations import arguments_of, kind_of
from chipfit.convert.trace import Traced
from chipfit.convert.words import Seen


def focus(x: Tensor) -> Tensor:
    """Each 2x2 patch to channels, in the order of YOLOv5's first layer.

    Example:
        >>> import torch
        >>> focus(torch.arange(4.0).view(1, 1, 2, 2)).flatten()
        tensor([0., 2., 1., 3.])
    """
    return torch.cat([x[..., row::2, column::2] for row, column in _PATCH], 1)


_PATCH = ((0, 0), (1, 0), (0, 1), (1, 1))


def write_patterns(traced: Traced, features: bool = False) -> list[str]:
    """Write `x * sigmoid(x)` as silu, `relu6(x + 3) / 6` as hardsigmoid, `x` times that as hardswish, and so on.

    `x * (x > 0)` is a ReLU; any other truth values that arithmetic reads are made numbers first.

    Args:
        traced: The network; its graph is changed.
        features: Write a concatenation of every second row and column as `focus`, and `a - k * b` as `a + (-k) * b`,
            too: for chips whose operators pass features.

    Returns:
        What was found, in order.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from chipfit.convert.trace import trace
        >>> class Net(nn.Module):
        ...     def forward(self, x):
        ...         return x * F.relu6(x + 3.0) / 6.0
        >>> write_patterns(trace(Net(), torch.randn(1, 4)))
        ['hardswish']
    """
    graph = _Graph(traced)
    found = []
    for node in list(traced.network.graph.nodes):
        for name, function, match in (
            ("relu", F.relu, graph.relu),
            ("silu", F.silu, graph.silu),
            ("hardswish", F.hardswish, graph.hardswish),
            ("hardsigmoid", F.hardsigmoid, graph.hardsigmoid),
            *([("focus", focus, graph.focus)] if features else []),
        ):
            x = match(node)
            if x is not None:
                node.op, node.target, node.args, node.kwargs = "call_function", function, (x,), {}
                found.append(name)
                break
    _numbers_from_truth(traced)
    if features:
        graph.only_sums(traced)
    traced.network.graph.eliminate_dead_code()
    traced.network.recompile()
    # A hardsigmoid that a hardswish then took in is no longer there.
    return [name for i, name in enumerate(found) if not (name == "hardsigmoid" and "hardswish" in found[i + 1 : i + 2])]


def _numbers_from_truth(traced: Traced) -> None:
    """Make numbers of truth values and integers that arithmetic reads beside numbers, as torch does by itself."""
    made: dict[fx.Node, fx.Node] = {}
    for node in list(traced.network.graph.nodes):
        if not node.op.startswith("call") or kind_of(node, None) not in ("add", "sub", "rsub", "mul", "div", "matmul"):
            continue
        found = [traced.seen.get(x) for x in node.all_input_nodes]
        if not any(isinstance(seen, Seen) and not seen.counts for seen in found):
            continue
        for read, seen in zip(node.all_input_nodes, found, strict=True):
            if not isinstance(seen, Seen) or not seen.counts:
                continue
            if read not in made:
                with traced.network.graph.inserting_after(read):
                    made[read] = traced.network.graph.call_method("float", (read,))
                made[read].meta = dict(read.meta)
                traced.seen[made[read]] = replace(seen, counts=False)
            node.replace_input_with(read, made[read])


_ABOVE = ("gt", "ge", "greater", "greater_equal")


class _Graph:
    def __init__(self, traced: Traced) -> None:
        self.modules = dict(traced.network.named_modules())

    def only_sums(self, traced: Traced) -> None:
        """Write differences and weighted sums of two tensors as plain sums, with a product before them."""
        for node in list(traced.network.graph.nodes):
            kind, operands, options = self.parts(node)
            if kind not in ("add", "sub", "rsub") or not all(isinstance(x, fx.Node) for x in operands):
                continue
            factor = options.get("alpha", 1) * (1 if kind == "add" else -1)
            if factor == 1 or len(operands) != 2:
                continue
            first, second = operands[::-1] if kind == "rsub" else operands
            with traced.network.graph.inserting_before(node):
                product = traced.network.graph.call_function(operator.mul, (second, factor))
            product.meta = dict(node.meta)
            seen = traced.seen[second]
            if isinstance(seen, Seen):
                most, least = abs(factor) * seen.largest, abs(factor) * seen.smallest
                seen = replace(seen, lowest=-most, largest=most, smallest=least, steps=0)
            traced.seen[product] = seen
            node.op, node.target, node.args, node.kwargs = "call_function", operator.add, (first, product), {}

    def parts(self, node: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Kind, operands and options of a node; nothing for anything else."""
        if not isinstance(node, fx.Node) or not node.op.startswith("call"):
            return "", (), {}
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        kind = kind_of(node, module)
        return (kind, *arguments_of(node, kind, module))

    def relu(self, node: fx.Node) -> fx.Node | None:
        """`x * (x > 0)`, or with `>=`, the truth values as numbers or not."""
        kind, operands, _ = self.parts(node)
        if kind != "mul" or len(operands) != 2:
            return None
        for x, mask in (operands, operands[::-1]):
            while self.parts(mask)[0] in ("float", "to", "type", "type_as"):
                mask = mask.args[0]
            if not isinstance(mask, fx.Node) or not isinstance(x, fx.Node) or self.parts(mask)[0] not in _ABOVE:
                continue
            if len(mask.args) == 2 and mask.args[0] is x and mask.args[1] == 0:
                return x
        return None

    def silu(self, node: fx.Node) -> fx.Node | None:
        """`x * sigmoid(x)`."""
        kind, operands, _ = self.parts(node)
        return self._times(operands, "sigmoid") if kind == "mul" else None

    def hardsigmoid(self, node: fx.Node) -> fx.Node | None:
        """`relu6(x + 3) / 6`."""
        return self._gate(self._sixth(node))

    def hardswish(self, node: fx.Node) -> fx.Node | None:
        """`x * relu6(x + 3) / 6`, in either order."""
        kind, operands, _ = self.parts(node)
        if kind == "mul":
            found = self._times(operands, "hardsigmoid")
            if found is not None:
                return found
        product = self._sixth(node)
        kind, operands, _ = self.parts(product)
        if kind != "mul" or len(operands) != 2 or product is None or len(product.users) > 1:
            return None
        for x, gate in (operands, operands[::-1]):
            if isinstance(x, fx.Node) and self._gate(gate) is x:
                return x
        return None

    def focus(self, node: fx.Node) -> fx.Node | None:
        """`x`, where the node joins its four halves, as `focus` does."""
        kind, parts, options = self.parts(node)
        if kind != "cat" or len(parts) != 4 or options.get("dim", 0) not in (1, -3):
            return None
        sources = set()
        for part, (row, column) in zip(parts, _PATCH, strict=True):
            if self.parts(part)[0] != "getitem" or not isinstance(part.args[1], tuple):
                return None
            *rest, down, across = part.args[1]
            whole = all(i is Ellipsis or i == slice(None) for i in rest) and len(rest) in (1, 2)
            if not whole or (down, across) != (_every_second(down, row), _every_second(across, column)):
                return None
            sources.add(part.args[0])
        (x,) = sources if len(sources) == 1 else (None,)
        return x if isinstance(x, fx.Node) else None

    def _times(self, operands: tuple[Any, ...], kind: str) -> fx.Node | None:
        """`x`, where the operands are `x` and a function of it that nothing else reads."""
        for x, gate in (operands, operands[::-1]) if len(operands) == 2 else ():
            name, read, _ = self.parts(gate)
            if name == kind and read[:1] == (x,) and isinstance(x, fx.Node) and len(gate.users) == 1:
                return x
        return None

    def _sixth(self, node: Any) -> fx.Node | None:
        """`y`, where the node is `y / 6` or `y * (1 / 6)`."""
        kind, operands, options = self.parts(node)
        if len(operands) != 2 or not isinstance(operands[0], fx.Node) or options.get("rounding_mode"):
            return None
        number = operands[1]
        if not isinstance(number, (int, float)):
            return None
        sixth = (kind == "div" and number == 6) or (kind == "mul" and math.isclose(number, 1 / 6, rel_tol=1e-6))
        return operands[0] if sixth else None

    def _gate(self, node: Any) -> fx.Node | None:
        """`x`, where the node is `relu6(x + 3)` and is read once."""
        kind, operands, options = self.parts(node)
        ends = options.get("min", options.get("min_val")), options.get("max", options.get("max_val"))
        six = kind == "relu6" or (kind in ("hardtanh", "clamp") and ends == (0, 6))
        if not six or len(node.users) > 1:
            return None
        kind, operands, options = self.parts(operands[0])
        if kind != "add" or len(operands) != 2 or options.get("alpha", 1) != 1:
            return None
        for x, number in (operands, operands[::-1]):
            if isinstance(x, fx.Node) and isinstance(number, (int, float)) and number == 3:
                return x
        return None


def _every_second(index: Any, start: int) -> slice:
    """The slice that takes every second row from `start` on, written as the user wrote it."""
    written = isinstance(index, slice) and index.start is None and start == 0
    return slice(None if written else start, None, 2)

"""What becomes of each operation of a network on a chip: the analysis that `convert` and `check` share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from chipfit.chips.chip import Chip, ChipLayer
from chipfit.chips.conversion import MapOperation, Mapped, Operation, Seen, rules_of
from chipfit.convert.fold import drop_expansions, fold_batch_norms
from chipfit.convert.functions import lift_functions
from chipfit.convert.operations import WEIGHTED, arguments_of, kind_of
from chipfit.convert.signs import is_nonnegative
from chipfit.convert.trace import Traced, trace, user_line
from chipfit.errors import UnsupportedError


@dataclass(frozen=True)
class Step:
    """One operation and what the chip makes of it.

    Args:
        node: Its call in the graph.
        operands: The nodes and numbers that it reads.
        operation: What it computes.
        mapped: What the chip makes of it.
        line: The user's line that asks for it.
    """

    node: fx.Node
    operands: tuple[Any, ...]
    operation: Operation
    mapped: Mapped
    line: str


@dataclass(frozen=True)
class Plan:
    """All operations of a network in order.

    Args:
        traced: The network, batch norms folded.
        steps: Its operations.
        folded: Names of the folded batch norms.
    """

    traced: Traced
    steps: tuple[Step, ...]
    folded: tuple[str, ...]


def make_plan(model: nn.Module, chip: Chip, example: Any) -> Plan:
    """Trace, fold, and ask the chip about every operation.

    Args:
        model: The user's network; it is not changed.
        chip: The chip.
        example: An input batch, or a tuple of the network's inputs.

    Raises:
        UnsupportedError: the network cannot be traced or has a chip's layers already, or the chip has no conversion
            rules.
    """
    rules = rules_of(chip)
    written = [name for name, module in model.named_modules() if isinstance(module, ChipLayer)]
    if written:
        raise UnsupportedError(
            "the network has a chip's layers already",
            given=written[0] or type(model).__name__,
            allowed="a network of torch.nn",
            hint="Go on with chipfit.calibrate.",
        )
    traced = trace(model, example)
    taken = {name for name, _ in traced.network.named_modules()}

    def name_of(node: fx.Node) -> str:
        name = _fresh(_owner(node), kind_of(node, None), taken)
        taken.add(name)
        return name

    lift_functions(traced, name_of)
    folded = fold_batch_norms(traced)
    drop_expansions(traced)
    modules = dict(traced.network.named_modules())
    signs = _signs(traced, modules)
    names, calls, steps = set(modules), Counter[str](), []
    for node in traced.network.graph.nodes:
        found = traced.seen[node]
        if node.op not in ("call_module", "call_function", "call_method") or not _tensors(found):
            continue
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        kind = kind_of(node, module)
        operands, options = arguments_of(node, kind, module)
        if node.op == "call_module":
            calls[node.target] += 1
            name = node.target if calls[node.target] == 1 else f"{node.target}_{calls[node.target] - 1}"
        else:
            name = _fresh(_owner(node), kind, names)
        names.add(name)
        tensors = [x for x in operands if isinstance(x, (int, float)) or _is_tensor(x, traced)]
        inputs = tuple(_tensors(traced.seen[x])[0] if isinstance(x, fx.Node) else x for x in tensors)
        usable = all(isinstance(x, (Seen, int, float)) for x in inputs) and any(isinstance(x, Seen) for x in inputs)
        if not usable:
            inputs = tuple(_tensors(traced.seen[x])[0] for x in node.all_input_nodes if _tensors(traced.seen[x]))
        options = fx.node.map_arg(options, lambda n: traced.seen[n])
        sign = tuple(signs[x] if isinstance(x, fx.Node) else x >= 0 for x in tensors)
        operation = Operation(name, kind, inputs, _tensors(found)[0], sign, options, module)
        steps.append(Step(node, tuple(tensors), operation, _mapped(operation, rules, chip), user_line(node)))
    return Plan(traced, tuple(steps), tuple(folded))


def _mapped(operation: Operation, rules: MapOperation, chip: Chip) -> Mapped:
    if not any(isinstance(x, Seen) for x in operation.inputs):
        return Mapped("", "cpu", reason="it does not depend on the input")
    if operation.kind in WEIGHTED and operation.module is None:
        return Mapped(
            "",
            "cpu",
            reason=f"the function {operation.kind} with weights that are computed or not its own",
            suggestions=("Use the module of torch.nn.",),
        )
    return rules(operation, chip)


def _is_tensor(operand: Any, traced: Traced) -> bool:
    return isinstance(operand, fx.Node) and bool(_tensors(traced.seen[operand]))


def _tensors(found: Any) -> list[Seen]:
    """The tensors in what a node gave."""
    if isinstance(found, Seen):
        return [found]
    return [seen for part in found for seen in _tensors(part)] if isinstance(found, (tuple, list)) else []


def _signs(traced: Traced, modules: dict[str, nn.Module]) -> dict[fx.Node, bool]:
    """Which nodes have no negative values."""
    signs: dict[fx.Node, bool] = {}
    for node in traced.network.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        kind = kind_of(node, module)
        operands, options = arguments_of(node, kind, module) if node.op.startswith("call") else ((), {})
        numbers = tuple(x for x in operands if isinstance(x, (fx.Node, int, float)))
        signs[node] = is_nonnegative(node, kind, numbers, options, signs, traced.seen[node])
    return signs


def _owner(node: fx.Node) -> str:
    """Name of the user's module whose forward made a node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _fresh(owner: str, kind: str, names: set[str]) -> str:
    base = f"{owner}.{kind}" if owner else kind
    name, count = base, 0
    while name in names:
        count += 1
        name = f"{base}_{count}"
    return name


def has_weights(module: nn.Module | None) -> bool:
    """Whether a module holds tensors, so that all its calls share one layer."""
    return module is not None and any(isinstance(t, Tensor) for t in (*module.parameters(), *module.buffers()))

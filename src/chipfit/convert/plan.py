"""What becomes of each operation of a network on a chip: the analysis that `convert` and `check` share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from chipfit.convert.fold import drop_expansions, fold_batch_norms, fold_into
from chipfit.convert.functions import lift_functions
from chipfit.convert.fuse import Widths, fused
from chipfit.convert.operations import WEIGHTED, arguments_of, kind_of
from chipfit.convert.patterns import write_patterns
from chipfit.convert.preparing import Preparation
from chipfit.convert.signs import is_nonnegative
from chipfit.convert.steps import Step, fresh_name, owner_of
from chipfit.convert.trace import Range, Traced, trace, user_line
from chipfit.convert.words import MapOperation, Mapped, Operation, Seen, feature_rules_of, rules_of
from chipfit.errors import UnsupportedError
from chipfit.hardware import Chip, ChipLayer


@dataclass(frozen=True)
class Plan:
    """All operations of a network in order.

    Args:
        traced: The network, batch norms folded.
        steps: Its operations.
        folded: Names of the folded batch norms.
        signs: Which values of the graph have no negative ones.
        bits: Width wanted for features.
        approximated: What the chip computes otherwise than the network, by name.
        prepared: Tensors that first layers read as an image, and how they come from the network's inputs.
    """

    traced: Traced
    steps: tuple[Step, ...]
    folded: tuple[str, ...]
    signs: Mapping[fx.Node, bool]
    bits: int = 8
    approximated: tuple[tuple[str, str], ...] = ()
    prepared: Mapping[fx.Node, Preparation] = field(default_factory=dict)


def make_plan(
    model: nn.Module,
    chip: Chip,
    example: Any,
    widths: Widths | None = None,
    approximate: bool = False,
    keep_values: bool = False,
    input_range: Range | Sequence[Range] | None = None,
) -> Plan:
    """Trace, fold, and ask the chip about every operation.

    Args:
        model: The user's network; it is not changed.
        chip: The chip.
        example: An input batch, or a tuple of the network's inputs.
        widths: Bits wanted, where the chip offers several; None for its usual ones.
        approximate: Let the chip's nearest operator stand for what it has not.
        keep_values: Keep what every call gave on the example.
        input_range: What values the inputs may have, where the example does not show it.

    Raises:
        UnsupportedError: the network cannot be traced or has a chip's layers already, or the chip has no conversion
            rules, or one choice of widths.
        InvalidValueError: widths that the chip has not.
    """
    rules, features = rules_of(chip), feature_rules_of(chip)
    if features is None and widths is not None:
        raise UnsupportedError(
            "the widths are the chip's",
            given=widths,
            where="convert",
            hint="A layer's configuration has its widths: layer.layer_config.",
        )
    written = [name for name, module in model.named_modules() if isinstance(module, ChipLayer)]
    if written:
        raise UnsupportedError(
            "the network has a chip's layers already",
            given=written[0] or type(model).__name__,
            allowed="a network of torch.nn",
            hint="Go on with chipfit.calibrate.",
        )
    traced = trace(model, example, keep_values, input_range)
    taken = {name for name, _ in traced.network.named_modules()}

    def name_of(node: fx.Node) -> str:
        name = fresh_name(owner_of(node), kind_of(node, None), taken)
        taken.add(name)
        return name

    lift_functions(traced, name_of)
    write_patterns(traced, features is not None)
    norms: dict[str, nn.Module] = {}
    norm_names = {module: name for name, module in traced.network.named_modules()}
    before: list[str] = []

    def keep(name: str, layer: nn.Module, norm: nn.Module) -> bool:
        if name in norms:  # an operator has one norm: the first of two in a row becomes part of the layer
            before.append(norm_names[norms[name]])
            fold_into(layer, norms.pop(name))
        if features is None or not features.keeps_norm(layer, norm):
            return False
        norms[name] = norm
        return True

    folded = fold_batch_norms(traced, keep)
    folded = [*before, *folded]
    drop_expansions(traced)
    modules = dict(traced.network.named_modules())
    signs = _signs(traced, modules)
    names, calls, steps, approximated = set(modules), Counter[str](), list[Step](), list[tuple[str, str]]()
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
            name = fresh_name(owner_of(node), kind, names)
        names.add(name)
        tensors = [x for x in operands if isinstance(x, (int, float)) or _is_tensor(x, traced)]
        inputs = tuple(_tensors(traced.seen[x])[0] if isinstance(x, fx.Node) else x for x in tensors)
        usable = all(isinstance(x, (Seen, int, float)) for x in inputs) and any(isinstance(x, Seen) for x in inputs)
        if not usable:
            inputs = tuple(_tensors(traced.seen[x])[0] for x in node.all_input_nodes if _tensors(traced.seen[x]))
        options = fx.node.map_arg(options, lambda n: traced.seen[n])
        sign = tuple(signs[x] if isinstance(x, fx.Node) else x >= 0 for x in tensors)
        if approximate and features is not None and kind in features.stand_ins:
            approximated.append((name, f"{kind} by {features.stand_ins[kind]}"))
            kind = features.stand_ins[kind]
        operation = Operation(name, kind, inputs, _tensors(found)[0], sign, options, module, approximate=approximate)
        steps.append(Step(node, tuple(tensors), operation, _mapped(operation, rules, chip), user_line(node)))
    prepared: dict[fx.Node, Preparation] = {}
    if features is not None:
        widths = widths or Widths()
        steps, prepared = fused(steps, traced, chip, rules, features, norms, widths)
        kinds = {s.operation.name: s for s in steps if s.operation.kind == "lstm" and s.mapped.unit == "npu"}
        approximated += [(name, "the chip's gates and start") for name in kinds]
    bits = widths.bits if widths else 8
    folded += [s.operation.name for s in steps if s.prepares and s.operation.kind == "batch_norm"]
    return Plan(traced, tuple(steps), tuple(folded), signs, bits, tuple(approximated), prepared)


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

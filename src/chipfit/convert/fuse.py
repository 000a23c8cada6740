"""What a chip with features asks of a plan: activations and norms inside operators, first and last layers, widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx, nn

from chipfit.convert.fold import fold_into
from chipfit.convert.operations import kind_of
from chipfit.convert.preparing import Preparation, on_tensors, preparations
from chipfit.convert.steps import Step, has_weights
from chipfit.convert.trace import Traced
from chipfit.convert.words import FeatureOut, FeatureRules, MapOperation, Mapped, on_cpu
from chipfit.errors import InvalidValueError, nearest
from chipfit.hardware import Chip


@dataclass(frozen=True)
class Widths:
    """Bits wanted.

    Args:
        bits: Of features; and of weights, but for the first and the last layer, which keep 8.
        weights: Of weights; one number for all layers, or one by name for some. None is `bits`.
    """

    bits: int = 8
    weights: int | Mapping[str, int] | None = None

    def of_weight(self, name: str, end: bool) -> int:
        """Bits of a layer's weight; `end` is whether it is the first or the last."""
        if isinstance(self.weights, int):
            return self.weights
        return (self.weights or {}).get(name, 8 if end else self.bits)

    def check(self, names: Sequence[str], rules: FeatureRules, chip: Chip) -> None:
        """Refuse widths that the chip has not, and names of no layer."""
        rules.check_bits(self.bits, "bits", chip)
        weights = self.weights if isinstance(self.weights, Mapping) else {"": self.weights or self.bits}
        for name, bits in weights.items():
            rules.check_bits(bits, "weight_bits", chip)
            if name and name not in names:
                raise InvalidValueError(
                    "no layer of this name has weights",
                    given=name,
                    allowed=", ".join(names),
                    where="convert(weight_bits=)",
                    hint=nearest(name, tuple(names)),
                )


def fused(
    steps: list[Step],
    traced: Traced,
    chip: Chip,
    rules: MapOperation,
    features: FeatureRules,
    norms: Mapping[str, nn.Module],
    widths: Widths,
) -> tuple[list[Step], dict[fx.Node, Preparation]]:
    """The steps of a plan, told what the chip puts into one operator, and where each of them stands.

    Args:
        steps: The steps, each mapped by itself.
        traced: The network.
        chip: The chip.
        rules: Its rules.
        features: What it adds to them.
        norms: Batch norms that stay behind a layer's sum, by the layer's name.
        widths: Bits wanted.

    Returns:
        The steps, and the tensors that first layers read as an image.
    """
    widths.check(weighted_names(steps), features, chip)
    steps = _parts(_focused([_output_alone(step) for step in _refusing_shared(steps)]))
    steps = _absorbed(steps, chip, rules, features, norms, widths.bits)
    prepared = preparations(steps, traced)
    steps = on_tensors(steps, prepared)
    readers = readers_of(steps)
    placed = []
    for step in steps:
        stays = step.into is not None or step.prepares
        if step.mapped.unit != "npu" or stays or step.operation.kind == "getitem":
            placed.append(step)
            continue
        first = any(x in prepared for x in step.operands if isinstance(x, fx.Node))
        last = not any(reader.mapped.unit == "npu" for reader in readers[step.node])
        # An input may also be read by what is not made for it, so that it comes as any other feature.
        begins = first or any(isinstance(x, fx.Node) and x.op == "placeholder" for x in step.operands)
        operation = replace(
            step.operation,
            first=first,
            last=last,
            readers=tuple(reader.operation.kind for reader in readers[step.node]),
            weight_bits=widths.of_weight(step.operation.name, begins or last),
        )
        placed.append(replace(step, operation=operation, mapped=rules(operation, chip)))
    return placed, prepared


def weighted_names(steps: Iterable[Step]) -> list[str]:
    """The user's names of the layers whose weights may have a width of their own."""
    return [step.operation.name for step in steps if _weighted(step)]


def _weighted(step: Step) -> bool:
    return has_weights(step.operation.module) and step.operation.kind in (
        *("linear", "conv1d", "conv2d", "conv_transpose2d"),
    )


def _refusing_shared(steps: list[Step]) -> list[Step]:
    """A layer with weights that is called twice may get features of two ranges, and its weights suit one of them."""
    calls = Counter(id(step.operation.module) for step in steps if step.operation.module is not None)
    shared = on_cpu("its calls share one weight, and their inputs may have two ranges", "Copy the layer, a call each.")
    return [
        replace(step, mapped=shared) if _weighted(step) and calls[id(step.operation.module)] > 1 else step
        for step in steps
    ]


def _parts(steps: list[Step]) -> list[Step]:
    """Taking one of several features is no operation."""
    several = {step.node for step in steps if step.mapped.feature is not None and step.mapped.feature.several}
    taken = Mapped("none", "npu", feature=FeatureOut("kept", passes=True))
    return [
        replace(step, mapped=taken) if step.operation.kind == "getitem" and step.operands[0] in several else step
        for step in steps
    ]


def _focused(steps: list[Step]) -> list[Step]:
    """Every second row and column to channels is part of the first convolution."""
    patches = {step.node: step for step in steps if step.operation.kind == "focus"}
    result, gone = [], set()
    for step in steps:
        patch = patches.get(step.operands[0]) if step.operands else None
        alone = patch is not None and len(patch.node.users) == 1 and patch.operands[0].op == "placeholder"
        begins = step.operation.kind == "conv2d" and step.mapped.feature is not None and step.mapped.feature.begins
        if patch is not None and patch.mapped.unit == "npu" and alone and begins:
            gone.add(patch.node)
            options = {**step.operation.options, "focus": True}
            step = replace(step, operands=patch.operands, operation=replace(step.operation, options=options))
        result.append(step)
    return [step for step in result if step.node not in gone]


def _output_alone(step: Step) -> Step:
    """A recurrent operator of the chip gives torch's output, its states in another form."""
    if step.operation.kind != "lstm" or step.mapped.unit != "npu":
        return step
    states = [u for u in step.node.users if (kind_of(u, None) != "getitem" or u.args[1] != 0) and u.users]
    reason = "the chip's LSTM has states of another shape"
    return replace(step, mapped=on_cpu(reason, "Take the last step of its output.")) if states else step


def _absorbed(
    steps: list[Step],
    chip: Chip,
    rules: MapOperation,
    features: FeatureRules,
    norms: Mapping[str, nn.Module],
    bits: int,
) -> list[Step]:
    by_node = {step.node: step for step in steps}
    into: dict[fx.Node, fx.Node] = {}
    result = []
    for step in steps:
        if step.mapped.unit != "npu" and step.operation.name in norms:
            fold_into(step.operation.module, norms[step.operation.name])  # torch's own layer has nothing behind its sum
        norm = norms.get(step.operation.name) if step.mapped.unit == "npu" else None
        operation = replace(step.operation, bits=bits, norm=norm)
        mapped, own = step.mapped, step.mapped.feature
        if step.node in into:
            host = by_node[into[step.node]].operation.name
            inside = Mapped(f"inside {host}", "npu", feature=own)
            result.append(replace(step, operation=operation, mapped=inside, into=into[step.node]))
            continue
        if mapped.unit == "npu" and own is not None and own.form == "new":
            users = [user for user in step.node.users if user in by_node or user.op == "output"]
            behind = by_node.get(users[0]) if len(users) == 1 else None
            alone = features.absorbs(operation, chip)  # an activation itself
            if behind is not None and not alone and features.absorbs(behind.operation, chip):
                operation = replace(operation, activation=behind.operation, output=behind.operation.output)
                into[behind.node] = step.node
        if mapped.unit == "npu" and operation.kind != "getitem":
            mapped = rules(operation, chip)
        result.append(replace(step, operation=operation, mapped=mapped))
    return result


def readers_of(steps: list[Step]) -> dict[fx.Node, list[Step]]:
    """Who reads the result of each step, through what only passes it on."""
    by_node = {step.node: step for step in steps}
    readers: dict[fx.Node, list[Step]] = {}
    for step in reversed(steps):
        found = []
        for user in step.node.users:
            reader = by_node.get(user)
            if reader is None:
                continue
            passing = reader.into is not None or reader.prepares or is_passing(reader)
            found += readers[user] if passing else [reader]
        readers[step.node] = found
    return readers


def is_passing(step: Step) -> bool:
    """Whether a step takes a tensor as well as a feature, and gives back what it took."""
    return step.mapped.feature is not None and step.mapped.feature.passes

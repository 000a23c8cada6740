"""The graph of a network on a chip whose operators pass features: `(tensor, width, sign)` instead of tensors.

Each value is followed through the graph as what it now is. Where an operator of the chip reads a tensor, or torch reads
a feature, a module goes in between; so it does where features meet that differ in sign or, on chips whose sums have a
fixed range, in range.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from chipfit.convert.fuse import is_passing, readers_of
from chipfit.convert.operations import MOVES, kind_of
from chipfit.convert.plan import Plan
from chipfit.convert.steps import Step, fresh_name, has_weights, owner_of
from chipfit.convert.words import FeatureOut, FeatureRules, Operation, Seen
from chipfit.errors import UnsupportedError
from chipfit.hardware import Chip


@dataclass(frozen=True)
class _Value:
    """What a node of the user's graph is now.

    Args:
        arg: What to give to who reads it: a node, or a tuple of nodes.
        node: The node after which it is there.
        form: 'tensor', 'feature', 'parts' (a list of features) or 'image' (from the operator that prepares one).
        shape: Its shape on the example.
        signed: Whether a feature has negative codes.
        summed: Whether its unit is that of a sum.
        gate: Whether its values lie between 0 and 1 by their nature, so that it has no unit.
        mixed: Whether its unit is the product of two.
        joined: Whether its channels may have several units.
    """

    arg: Any
    node: fx.Node
    form: str
    shape: tuple[int, ...] = ()
    signed: bool = False
    summed: bool = False
    gate: bool = False
    mixed: bool = False
    joined: bool = False


def arrange(plan: Plan, chip: Chip, rules: FeatureRules) -> None:
    """Put the chip's operators into the graph, and what is needed between them.

    Args:
        plan: The plan; its network is changed.
        chip: The chip.
        rules: What it says of features.
    """
    _Arrangement(plan, chip, rules).run()


class _Arrangement:
    def __init__(self, plan: Plan, chip: Chip, rules: FeatureRules) -> None:
        self.plan, self.chip, self.rules = plan, chip, rules
        self.network, self.graph = plan.traced.network, plan.traced.network.graph
        self.steps = {step.node: step for step in plan.steps}
        self.values: dict[fx.Node, _Value] = {}
        self.made: dict[tuple[fx.Node, str], _Value] = {}
        self.modules = dict(self.network.named_modules())
        self.names = set(self.modules)
        self.images = {how.at: how for how in plan.prepared.values()}
        self.readers = readers_of(list(plan.steps))

    def run(self) -> None:
        """Follow every value through the graph."""
        for node in list(self.graph.nodes):
            step = self.steps.get(node)
            if step is not None and step.into is not None:
                self.values[node] = self.values[step.into]
            elif step is not None and step.prepares:
                self.values[node] = self.values[next(x for x in step.operands if x in self.values)]
            elif node.op == "placeholder":
                self.values[node] = self._tensor(node)
            elif step is None and node.op != "output":
                node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), self._inside)
                self.values[node] = self._tensor(node)
            elif step is None or step.mapped.unit != "npu":
                self.values[node] = self._on_cpu(node, step)
            else:
                self.values[node] = self._on_chip(step)
            if node in self.images:
                self.values[node] = self._image(node)

    def _tensor(self, node: fx.Node) -> _Value:
        seen = self.plan.traced.seen.get(node)
        return _Value(node, node, "tensor", seen.shape if isinstance(seen, Seen) else ())

    def _image(self, node: fx.Node) -> _Value:
        """What first layers read of a tensor that comes straight from an input."""
        how = self.images[node]
        seen = replace(self.plan.traced.seen[node], steps=how.steps)
        prepare = self.rules.image(seen, not self.plan.signs[node], self.chip, how)
        image = self._inserted(self.values[node], "preprocess", "", prepare)
        return _Value(image, image, "image")

    def _on_cpu(self, node: fx.Node, step: Step | None) -> _Value:
        if step is not None and step.mapped.feature is not None and step.mapped.feature.form == "kept":
            source = self._early(step)
            if source.form == "feature":
                return self._moved(step, self._one_unit(step, source))
        node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._as_tensor(n).arg)
        return self._tensor(node)

    def _early(self, step: Step) -> _Value:
        """What a step that only passes values on reads: a function's values as codes already, if they become codes."""
        node = step.operands[0]
        before = self.steps.get(node)
        tabled = before is not None and before.mapped.feature is not None and before.mapped.feature.form == "table"
        if tabled and any(reader.mapped.unit == "npu" for reader in self.readers[step.node]):
            return self._as_feature(node)
        return self.values[node]

    def _moved(self, step: Step, value: _Value) -> _Value:
        """What only moves values does so with the codes of a feature."""
        node, source = step.node, step.operands[0]
        with self.graph.inserting_before(node):
            parts = self._parts_of(value)
        args = fx.node.map_arg((node.args, node.kwargs), lambda n: parts[0] if n is source else self._inside(n))
        node.args, node.kwargs = args
        return replace(value, arg=(node, parts[1], parts[2]), node=node, shape=step.operation.output.shape)

    def _on_chip(self, step: Step) -> _Value:
        node, mapped, own = step.node, step.mapped, step.mapped.feature or FeatureOut()
        sources = [x for x in step.operands if isinstance(x, fx.Node)]
        if self.values[sources[0]].form == "parts":
            source = self.values[sources[0]]
            node.args = (source.arg, *node.args[1:])
            return replace(source, arg=node, node=node, form="feature", shape=step.operation.output.shape)
        if self.values[sources[0]].form == "image" and step.operation.kind == "pad" and mapped.build is not None:
            image = self.values[sources[0]]
            self._call(node, step.operation.name, mapped.build(), image.arg)
            return replace(image, arg=node, node=node)
        if is_passing(step) and self._early(step).form == "tensor":
            if mapped.build is None:
                return self._on_cpu(node, step)
            self._call(node, step.operation.name, mapped.build(), self.values[sources[0]].arg)
            return self._tensor(node)
        if step.operation.kind == "dropout":
            return self._dropped(step, self._as_feature(sources[0]))
        if mapped.build is None:
            return replace(self._as_feature(sources[0]), shape=step.operation.output.shape)
        if step.operation.first:
            read = [self.values[sources[0]]]
        else:
            read = self._alike([self._one_unit(step, self._as_feature(source)) for source in sources], own)
        shared = node.op == "call_module" and has_weights(step.operation.module)
        name = str(node.target) if shared else step.operation.name
        args = [value.arg for value in read]
        self._call(node, name, mapped.build(), args if own.joins else args[0])
        if step.operation.last and own.form == "new":
            return self._tensor(node)
        signed = own.signed if own.signed is not None else any(value.signed for value in read)
        summed = own.form == "sum" or (own.form == "kept" and any(value.summed for value in read))
        form = "parts" if own.several else "feature"
        inside = step.operation.activation
        gate = (own.form == "new" and inside is not None and inside.kind == "hardsigmoid") or (
            own.form == "kept" and all(value.gate for value in read)
        )
        units = sum(not value.gate for value in read) if step.operation.kind == "mul" else 1
        mixed = own.form == "kept" and (units > 1 or any(value.mixed for value in read))
        several = step.operation.kind == "cat" and len({value.node for value in read}) > 1
        joined = own.form == "kept" and (several or any(value.joined for value in read))
        return _Value(node, node, form, step.operation.output.shape, signed, summed, gate, mixed, joined)

    def _call(self, node: fx.Node, name: str, module: nn.Module, arg: Any) -> None:
        """Have a node call a module of the chip."""
        self.network.add_submodule(name, module)
        self.names.add(name)
        node.op, node.target, node.args, node.kwargs = "call_module", name, (arg,), {}

    def _alike(self, read: list[_Value], own: FeatureOut) -> list[_Value]:
        """Operands that agree in what they must agree in."""
        signed = any(value.signed for value in read)
        fixed = self.rules.sums_are_fixed(self.chip)
        result = []
        for value in read:
            wrong_sign = "sign" in own.alike and value.signed != signed
            # Codes of such a sum are counted otherwise, and two of them may have been divided by different numbers.
            wrong_unit = fixed and value.summed and ("unit" in own.alike or ("sign" in own.alike and signed))
            wrong_unit = wrong_unit or (value.mixed and "unit" in own.alike)
            if wrong_sign or wrong_unit:
                value = self._requantised(value, signed if wrong_sign else value.signed)
            result.append(value)
        return result

    def _one_unit(self, step: Step, value: _Value) -> _Value:
        """What a step reads that mixes channels; those of a concatenation may have several units."""
        if not value.joined or _keeps_channels(step.operation):
            return value
        return self._requantised(value, value.signed)

    def _requantised(self, value: _Value, signed: bool) -> _Value:
        key = (value.node, f"requantised, {signed}")
        if key not in self.made:
            module = self.rules.requantise(value.shape, signed, self.plan.bits, self.chip)
            node = self._inserted(value, "requantise", _home(value.node), module)
            self.made[key] = replace(value, arg=node, node=node, signed=signed, summed=False, mixed=False, joined=False)
        return self.made[key]

    def _as_feature(self, node: fx.Node) -> _Value:
        value = self.values[node]
        if value.form == "feature":
            return value
        if value.form != "tensor":
            raise UnsupportedError("an operator reads what is no feature", given=value.form, where=node.name)
        key = (value.node, "feature")
        if key not in self.made:
            signed, source = not self.plan.signs[node], self._kind_behind(node)
            seen = self.plan.traced.seen[node]
            bits = 8 if node.op == "placeholder" and self._only_weighted(node) else self.plan.bits
            enter = self.rules.enter(seen, source, signed, bits, self.chip)
            entered = self._inserted(value, "to_feature", _home(node), enter)
            gate = bool(getattr(enter, "gate", False))
            self.made[key] = _Value(entered, entered, "feature", seen.shape, signed, gate=gate)
        return self.made[key]

    def _kind_behind(self, node: fx.Node) -> str:
        """What computed a tensor's values, before others moved them."""
        while True:
            module = self.modules.get(str(node.target)) if node.op == "call_module" else None
            kind = kind_of(node, module)
            if kind not in MOVES or len(node.all_input_nodes) != 1:
                return kind
            node = node.all_input_nodes[0]

    def _only_weighted(self, node: fx.Node) -> bool:
        """Whether all that read a value make codes of their own, so that its width need not be everybody's."""
        forms = [self.steps[user].mapped.feature for user in node.users if user in self.steps]
        return all(form is not None and form.form == "new" for form in forms)

    def _as_tensor(self, node: fx.Node) -> _Value:
        value = self.values[node]
        if value.form == "tensor":
            return value
        if value.form != "feature":
            raise UnsupportedError("torch reads what is no feature", given=value.form, where=node.name)
        key = (value.node, "tensor")
        if key not in self.made:
            left = self._inserted(value, "to_tensor", _home(node), self.rules.leave(Seen(value.shape), self.chip))
            self.made[key] = _Value(left, left, "tensor", value.shape)
        return self.made[key]

    def _inside(self, node: fx.Node) -> Any:
        """The bare tensor inside a feature, for who asks for its size."""
        value = self.values[node]
        if value.form not in ("feature", "image"):
            return value.arg
        with self.graph.inserting_after(value.node):
            return self.graph.call_function(operator.getitem, (value.arg, 0))

    def _dropped(self, step: Step, value: _Value) -> _Value:
        """Dropout on the tensor inside a feature; it does nothing in evaluation."""
        node = step.node
        with self.graph.inserting_before(node):
            parts = self._parts_of(value)
        node.args = (parts[0],)
        return replace(value, arg=(node, parts[1], parts[2]), node=node)

    def _parts_of(self, value: _Value) -> list[fx.Node]:
        """Tensor, width and sign of a feature."""
        return [self.graph.call_function(operator.getitem, (value.arg, i)) for i in range(3)]

    def _inserted(self, value: _Value, kind: str, owner: str, module: nn.Module) -> fx.Node:
        """A call of a new module on a value, right behind it."""
        name = fresh_name(owner, kind, self.names)
        self.names.add(name)
        self.network.add_submodule(name, module)
        with self.graph.inserting_after(value.node):
            return self.graph.call_module(name, (value.arg,))


def _keeps_channels(operation: Operation) -> bool:
    """Whether no channel of a result mixes values of several channels that it does not weigh one by one."""
    kind, before, after = operation.kind, operation.shape, operation.output.shape
    if kind == "linear":
        return len(before) == 2
    if kind in ("view", "reshape", "squeeze", "unsqueeze", "unflatten", "flatten"):
        return len(after) == 2 or after[1] == before[1]
    return kind not in ("permute", "transpose", "swapaxes", "movedim", "t", "select", "pixel_shuffle") and (
        kind != "getitem" or len(after) == len(before)
    )


def _home(node: fx.Node) -> str:
    """Name of the user's module to which something that stands beside a node belongs."""
    return str(node.target).rpartition(".")[0] if node.op == "call_module" else owner_of(node)

"""`convert`: a plain network with the chip's layers in place of torch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from chipfit.convert.equivalence import check_equivalence
from chipfit.convert.features import arrange
from chipfit.convert.fuse import Widths, weighted_names
from chipfit.convert.plan import Plan, make_plan
from chipfit.convert.steps import Step, has_weights
from chipfit.convert.trace import Range, user_line
from chipfit.convert.words import feature_rules_of, rules_of
from chipfit.errors import UnsupportedError
from chipfit.hardware import Chip, ChipLayer
from chipfit.vendor import chip as chip_named


class Converted(fx.GraphModule):
    """A network on a chip; `print` shows its layers, and what of it runs on the CPU core. It can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As torch.fx pickles a graph, by its code; what comes back is of this class and has its meta."""
        rebuild, (body, imports) = super().__reduce__()
        return _unpickled, (rebuild, body, imports, type(self).__name__, self.meta)

    def extra_repr(self) -> str:
        """Say what `print` shows."""
        lines = [f"# on the CPU core: {name}: {reason}" for name, reason in self.meta.get("on_cpu", {}).items()]
        lines += [f"# approximated: {name}: {how}" for name, how in self.meta.get("approximated", {}).items()]
        return "\n".join(lines)


def _unpickled(rebuild: Any, body: dict[str, Any], imports: str, name: str, meta: dict[str, Any]) -> Converted:
    network = rebuild(body, imports)
    made = Converted(network, network.graph, name)
    made.meta.update(meta)
    made.training = body["training"]
    return made


def convert(
    model: nn.Module,
    chip: Chip | str,
    example: Any,
    strict: bool = False,
    *,
    bits: int | None = None,
    weight_bits: int | Mapping[str, int] | None = None,
    approximate: bool = False,
    input_range: Range | Sequence[Range] | None = None,
) -> nn.Module:
    """Put a plain network on a chip: the same network, with the chip's layers in place of torch's.

    Batch norm is folded into the layer before it, or goes into the chip's operator where that has one. Modules keep the
    user's names and parameters; a function such as `+` becomes a module named after it in the module whose forward
    calls it. Dropout and Identity stay, and do nothing in evaluation. What the chip cannot compute stays torch's and
    runs on the CPU core: `print` and `net.meta["on_cpu"]` name it with the reason, and `chipfit.check` lists it.

    Args:
        model: Any network that torch.fx can trace. It is not changed; the result has copies of its tensors.
        chip: The chip, or its name.
        example: An input batch, or a tuple of the network's inputs. It tells shapes, and whether the inputs have
            negative values; the signs of everything else follow from the graph.
        strict: Refuse a network of which anything would run on the CPU core.
        bits: Width of features, and of weights but for the first and the last layer, which keep 8; on a chip that has
            several. None is 8.
        weight_bits: Width of weights: one for all layers, or by the layer's name for some (`net.meta["weighted"]` of a
            network converted before has the names). None follows `bits`.
        approximate: Let the chip's nearest operator stand for what it has not, for instance Hswish for SiLU and GELU,
            Hsigmoid for a sigmoid, its LSTM for torch's. The float output then is not that of `model`, so
            fine-tune; `net.meta["approximated"]` lists what was replaced.
        input_range: The smallest and the largest value that the inputs may have, or such a pair for each input, where
            the example does not show it: without it an input is unsigned if the example has no negative values, and
            `chipfit.calibrate` refuses data that have.

    Returns:
        The network, in mode 'float': in evaluation its outputs are those of `model`. Next come `chipfit.calibrate` and
        `chipfit.set_mode(net, "quant")`.

    Raises:
        UnsupportedError: no conversion to this chip, control flow or shapes that depend on values, or with `strict`
            operations that the chip cannot compute; the error names the lines of the user's code. Or the result does
            not give, on the example, what `model` gives: by more than 1e-4 of the largest value; the error names the
            first module that differs.
        InvalidValueError: a width that the chip has not, or of a layer that there is not; a range that is none.
        ShapeError: the network does not run on the example.

    Source:
        docs/convert.md.

    Example:
        >>> import torch
        >>> from chipfit.vendor import chip
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> print(convert(net, chip("wtm2101"), torch.rand(1, 1, 8, 8)).get_submodule("4"))
        WitinLinear(
          in_features=144, out_features=2, bias=True
          (autoscale_x_obj): AutoScale(...)
          ...
    """
    chip = chip_named(chip)
    wanted = None if bits is None and weight_bits is None else Widths(8 if bits is None else bits, weight_bits)
    plan = make_plan(model, chip, example, wanted, approximate, True, input_range)
    on_cpu = {step.operation.name: step.mapped.reason for step in plan.steps if step.mapped.unit == "cpu"}
    if strict and on_cpu:
        lines = [f"{s.operation.name}: {s.mapped.reason} ({s.line})" for s in plan.steps if s.mapped.unit == "cpu"]
        raise UnsupportedError(
            f"{len(lines)} operation(s) cannot run on {chip.name}:\n  " + "\n  ".join(lines),
            where=type(model).__name__,
            hint="With strict=False they run on the CPU core; chipfit.check has suggestions.",
        )
    network = plan.traced.network
    features = feature_rules_of(chip)
    _keep_dropout(plan)
    if features is None:
        _replace(plan, chip)
    else:
        arrange(plan, chip, features)
    _refuse_lost_parameters(network)
    network.graph.eliminate_dead_code()
    network.graph.lint()
    network.delete_all_unused_submodules()
    network.graph._tracer_cls = fx.Tracer  # reads its code when it is unpickled; ours needs an example
    result = Converted(network, network.graph, type(model).__name__)
    result.meta["on_cpu"] = on_cpu
    result.meta["approximated"] = dict(plan.approximated)
    result.meta["weighted"] = weighted_names(plan.steps)
    result.meta["folded"] = list(plan.folded)
    result.meta["unsigned_inputs"] = [
        position for position, node in enumerate(_inputs(plan)) if plan.signs.get(node, False)
    ]
    if features is not None:
        features.finish(result)
    for layer in result.modules():
        if isinstance(layer, ChipLayer):
            layer.set_mode("float")
    check_equivalence(plan, result.eval(), example if isinstance(example, tuple) else (example,))
    return result.train(model.training)


def _inputs(plan: Plan) -> list[fx.Node]:
    return [node for node in plan.traced.network.graph.nodes if node.op == "placeholder"]


def _refuse_lost_parameters(network: fx.GraphModule) -> None:
    """Refuse a forward that reads parameters of a layer that the chip's layer has in another form.

    Raises:
        UnsupportedError: some call does; the error names its line.
    """
    for node in reversed(network.graph.nodes):
        if node.op != "get_attr":
            continue
        if not node.users:
            network.graph.erase_node(node)
            continue
        owner, _, name = str(node.target).rpartition(".")
        if not hasattr(network.get_submodule(owner), name):
            raise UnsupportedError(
                "the forward reads a parameter of a layer that becomes the chip's",
                given=str(node.target),
                where=user_line(next(iter(node.users), node)) or str(node.target),
                hint="Give the tensor a parameter or buffer of its own.",
            )


def _replace(plan: Plan, chip: Chip) -> None:
    network = plan.traced.network
    built: set[str] = set()
    for step in plan.steps:
        if step.mapped.build is None:
            continue
        node, shared = step.node, has_weights(step.operation.module)
        target = str(node.target) if shared else step.operation.name
        if target not in built:
            built.add(target)
            network.add_submodule(target, _joint(plan, step, chip) if shared else step.mapped.build())
        rest = _states(step) if step.operation.kind in ("gru", "gru_cell", "lstm") else {}
        node.op, node.target, node.args, node.kwargs = "call_module", target, step.operands[: step.mapped.reads], rest


def _joint(plan: Plan, step: Step, chip: Chip) -> nn.Module:
    """The layer of all calls of one module: it is unsigned where all its inputs are."""
    calls = [s.operation for s in plan.steps if s.operation.module is step.operation.module]
    signs = tuple(all(column) for column in zip(*(c.nonnegative for c in calls), strict=False))
    mapped = rules_of(chip)(replace(step.operation, nonnegative=signs), chip)
    if mapped.build is None:  # cannot happen: the sign decides no unit
        raise UnsupportedError("the calls of one module map differently", where=step.operation.name)
    return mapped.build()


def _states(step: Step) -> dict[str, Any]:
    return {name: value for name, value in step.node.kwargs.items() if name == "hx"}


def _keep_dropout(plan: Plan) -> None:
    """A function `dropout(x, p, self.training)` becomes a module, so that it still drops in training."""
    for step in plan.steps:
        node, options = step.node, step.operation.options
        if step.operation.kind == "dropout" and node.op != "call_module" and options.get("training") is False:
            plan.traced.network.add_submodule(step.operation.name, nn.Dropout(options.get("p", 0.5)))
            node.op, node.target, node.args, node.kwargs = "call_module", step.operation.name, step.operands, {}

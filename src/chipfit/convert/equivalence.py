"""The proof upwards: a converted network gives, in float, what the user's network gives on the example.

Compared is relative to the size of what is compared, so that a network of small outputs is held to its own measure; and
besides the outputs every call that both networks have, so that an error can name where they part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from chipfit.convert.plan import Plan
from chipfit.convert.relative import TOLERANCE, difference, largest, tensors_in
from chipfit.convert.trace import user_line
from chipfit.errors import UnsupportedError

_ROUNDING = 1e-6
"""What rounding may leave of a difference between values, as a share of what was read: sums cancel."""


@dataclass(frozen=True)
class _Parting:
    """A call whose result differs.

    Args:
        name: The user's name of it.
        line: The user's line that asks for it.
        share: `difference` of the two results.
        counts: Whether that is more than rounding of what it read can be.
    """

    name: str
    line: str
    share: float
    counts: bool

    def __str__(self) -> str:
        return f"{self.name} ({self.line})" if self.line else self.name


def check_equivalence(plan: Plan, network: fx.GraphModule, examples: tuple[Any, ...]) -> None:
    """Refuse a converted network that does not give what the user's gives.

    What the chip computes otherwise because the user allowed it (`approximate`), and all that depends on it, is left
    out.

    Args:
        plan: The plan, with what the user's network and every call of it gave.
        network: The converted network, in mode 'float' and in evaluation; it shares its nodes with the plan.
        examples: Its inputs.

    Raises:
        UnsupportedError: they differ by more than `TOLERANCE`; the error names the first call that does.
    """
    runner = _Comparing(plan, network)
    try:
        with torch.no_grad():
            got = runner.run(*examples)
    except Exception as error:
        step = runner.current
        raise UnsupportedError(
            "the converted network does not run on the example",
            given=(str(error) or type(error).__name__).splitlines()[0],
            where=step or type(network).__name__,
            hint="The chip's layers cannot take what is computed there: write it otherwise.",
        ) from error
    shares = list(_outputs(plan.traced.result, got)) if not runner.free_output() else []
    worst = max(shares, default=0.0)
    counting = [parting for parting in runner.partings if parting.counts]
    if worst <= TOLERANCE and not counting:
        return
    parting = (runner.partings if worst > TOLERANCE else counting)[:1]
    where = str(parting[0]) if parting else "the output"
    share = parting[0].share if parting else worst
    raise UnsupportedError(
        "the converted network does not give what the network gives",
        given=f"{share:.3g} of the largest value apart, {worst:.3g} at the output",
        allowed=f"at most {TOLERANCE:g}",
        where=where,
        hint="This is a fault of the conversion: please report it, with this layer and what it reads. Until it is "
        "mended, write this part otherwise, or leave it out of the network that is converted.",
    )


def _outputs(expected: Any, got: Any) -> Iterator[float]:
    """The difference of each output of real numbers; places (argmax) may change by a rounding."""
    for a, b in zip(tensors_in(expected), tensors_in(got), strict=False):
        if a.shape != b.shape:
            yield float("inf")
        elif a.is_floating_point():
            yield difference(a, b)


class _Comparing(fx.Interpreter):
    """Runs a converted network and compares each call with what the user's gave."""

    def __init__(self, plan: Plan, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.current = ""
        self.plan, self.nodes, self.partings = plan, list(network.graph.nodes), list[_Parting]()
        self.steps = {step.node: step for step in plan.steps}
        self.gives = dict(plan.traced.gives)
        for step in plan.steps:  # an operator gives what the last one gave that it took in
            if step.into is not None:
                self.gives[step.into] = self.gives.get(step.node, step.node)
        otherwise = {name for name, _ in plan.approximated}
        self.free = {step.into or step.node for step in plan.steps if step.operation.name in otherwise}
        for node in self.nodes:
            if any(source in self.free for source in node.all_input_nodes):
                self.free.add(node)

    def free_output(self) -> bool:
        """Whether the outputs depend on what was allowed to differ."""
        return any(node.op == "output" and node in self.free for node in self.nodes)

    def run_node(self, n: fx.Node) -> Any:
        step = self.steps.get(n)
        line = user_line(n)
        self.current = f"{step.operation.name if step else n.name} ({line})" if line else n.name
        result = super().run_node(n)
        if step is not None and n.op == "call_module" and n not in self.free:
            expected = self.plan.traced.values.get(self.gives.get(n, n))
            for a, b in zip(tensors_in(expected), tensors_in(result), strict=False):
                if a.shape == b.shape and a.is_floating_point():
                    self._compare(step.operation.name, line, a, b, n)
        return result

    def _compare(self, name: str, line: str, expected: Tensor, got: Tensor, node: fx.Node) -> None:
        share = difference(expected, got)
        if share > TOLERANCE:
            read = [t for source in node.all_input_nodes for t in tensors_in(self.env.get(source))]
            rounding = _ROUNDING * max((largest(t) for t in read if t.is_floating_point()), default=0.0)
            counts = share * largest(expected) > TOLERANCE * largest(expected) + rounding or share == float("inf")
            self.partings.append(_Parting(name, line, share, counts))

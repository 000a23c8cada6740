"""The fast path: a program on codes held in floating point, equal to the reference in every code.

Each operation's step stands in its dialect's table, and what several of them are in one is the dialect's to say. What
is not worth a form of its own goes through the reference's functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chipfit.program.core.fast import by_reference
from chipfit.program.dialect import Step, computing, context_of, dialects, meaning_of
from chipfit.program.reference import real_inputs
from chipfit.program.types import Node, Program


class FastProgram:
    """A program prepared for speed.

    Args:
        program: From `lower` or `load_program`.

    Example:
        >>> from chipfit.program.core import ops
        >>> from chipfit.program.types import VERSION, Input, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> y = Node("y", ops.Dequantise(), ("q",), real)
        >>> program = Program(VERSION, "wtm2101", (q, y), (Input("x", real),), ("y",), {})
        >>> FastProgram(program)(torch.tensor([[0.49, 9.0]]))
        tensor([[0.5000, 7.9375]])
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._steps: list[tuple[str, tuple[str, ...], Step]] = []
        self._fuse = [dialect.fuse for dialect in dialects() if dialect.fuse is not None]
        done: set[str] = set()
        for node in program.nodes:
            if node.name not in done:
                with computing(node.name):
                    step, computed = self._prepared(node)
                self._steps.append((computed[-1].name, node.inputs, step))
                done |= {entry.name for entry in computed}
        last_use = {edge: i for i, (_, inputs, _) in enumerate(self._steps) for edge in inputs}
        self._free = [
            [edge for edge in set(inputs) if last_use[edge] == i and edge not in program.outputs]
            for i, (_, inputs, _) in enumerate(self._steps)
        ]

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the program; arguments, result and errors as `run`."""
        with torch.no_grad():
            edges = dict(real_inputs(self.program, inputs))
            for (name, sources, step), free in zip(self._steps, self._free, strict=True):
                with computing(name):
                    edges[name] = step([edges[source] for source in sources])
                for edge in free:
                    del edges[edge]
        outputs = tuple(edges[name] for name in self.program.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _prepared(self, node: Node) -> tuple[Step, list[Node]]:
        """A node's step, and the nodes that it computes."""
        for fuse in self._fuse:
            found = fuse(node, self.program)
            if found is not None:
                return found
        prepare = meaning_of(node.op).fast or by_reference
        return prepare(node.op, context_of(node, self.program)), [node]

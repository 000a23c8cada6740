"""The reference: computes an integer program in int64, one plain function an operation.

The functions stand in the tables of the dialects, written from the specifications and from the operations' own text;
they share no arithmetic with the training layers. Floating point appears where real numbers come in and go out, and
where a dialect says so, and nowhere else. `fast.py` computes the same, faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from chipfit.errors import ShapeError
from chipfit.program.core.base import Op
from chipfit.program.dialect import Context, computing, context_of, meaning_of
from chipfit.program.types import Node, Program


def run(program: Program, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
    """Compute a program.

    Args:
        program: From `lower` or `load_program`.
        inputs: Real inputs in the order of the network's arguments, floating dtype, batch first.

    Returns:
        The outputs as float32 values on their grids; a tuple where there are several.

    Raises:
        ShapeError: another number of inputs than the program has, or of another shape; or a node cannot compute them.
        NonFiniteError: an input holds NaN.

    Example:
        >>> from chipfit.program.core import ops
        >>> from chipfit.program.types import VERSION, Input, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> y = Node("y", ops.Dequantise(), ("q",), real)
        >>> run(Program(VERSION, "wtm2101", (q, y), (Input("x", real),), ("y",), {}), torch.tensor([[0.49, 9.0]]))
        tensor([[0.5000, 7.9375]])
    """
    edges = trace(program, *inputs)
    outputs = tuple(edges[name] for name in program.outputs)
    return outputs[0] if len(outputs) == 1 else outputs


def trace(program: Program, *inputs: Tensor) -> dict[str, Tensor]:
    """Compute a program and keep every edge: codes as int64, real numbers as float32.

    Args:
        program: As for `run`.
        inputs: As for `run`.

    Returns:
        Every edge by name, the inputs among them. Raises as `run`.
    """
    edges = dict(real_inputs(program, inputs))
    for node in program.nodes:
        edges[node.name] = compute(node, [edges[name] for name in node.inputs], program)
    return edges


def real_inputs(program: Program, inputs: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
    """The inputs by name, checked, in float32 on the CPU."""
    if len(inputs) != len(program.inputs):
        allowed = ", ".join(given.name for given in program.inputs)
        raise ShapeError("wrong number of inputs", given=len(inputs), allowed=allowed, where="program")
    for given, x in zip(program.inputs, inputs, strict=True):
        if given.type.shape is not None and tuple(x.shape[1:]) != given.type.shape:
            allowed = f"(N, {', '.join(map(str, given.type.shape))})"
            raise ShapeError("input has the wrong shape", given=tuple(x.shape), allowed=allowed, where=given.name)
        yield given.name, x.detach().cpu().to(torch.float32)


def compute(node: Node, args: list[Tensor], program: Program) -> Tensor:
    """Compute one node from the values of its input edges."""
    with computing(node.name):
        return meaning_of(node.op).reference(node.op, args, context_of(node, program))


def apply(op: Op, args: list[Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
    """Compute an operation on values, with the tensors that it names; not for one that asks for its edges' types."""
    return meaning_of(op).reference(op, args, Context(tensors))

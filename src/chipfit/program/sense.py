"""Whether a program that was read makes sense: what no type says, and no lowering would ever write.

Fields are judged by their names, which mean the same in every operation; what is true of one operation or one vendor
alone stands in its row or its dialect. Shapes are followed without computing anything: nothing enormous
is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from chipfit.errors import ChipfitError, FileFormatError, UnsupportedError, nearest
from chipfit.program.core.base import Op
from chipfit.program.core.ops import Clamp, LookUp, Quantise
from chipfit.program.dialect import Context, context_of, dialect_of, meaning_of
from chipfit.program.ranges import code_ranges
from chipfit.program.types import Node, Program, ValueType, tensor_names

_WIDEST = 64
_LARGEST = 1 << 28
"""Values of one sample on an edge: those of a feature map of 16,384 by 16,384."""
_AT_LEAST = {"groups": 1, "stride": 1, "dilation": 1, "kernel": 1, "step": 1, "padding": 0, "output_padding": 0}
_ABOVE_0 = ("n", "scale", "clip", "divisor")
_CODES = ("weight_tensor", "table_tensor", "codes_tensor")
"""Ends of the names of tensors that hold codes."""


def refuse_senseless(program: Program, where: str) -> None:
    """Refuse a program that makes no sense.

    Args:
        program: The program.
        where: The file, for errors.

    Raises:
        FileFormatError: it makes none; the message says which node and why.
    """
    for place, problem in problems(program):
        raise FileFormatError("the program makes no sense", given=problem, where=f"{where}, {place}")


def problems(program: Program) -> Iterator[tuple[str, str]]:
    """Where a program makes no sense, and why; what comes later relies on what was asked before."""
    from chipfit.vendor import known_chips

    if program.chip not in known_chips():
        yield "chip", f"unknown chip {program.chip!r}. {nearest(program.chip, known_chips())}"
    for given in program.inputs:
        yield from ((f"input {given.name}", said) for said in _type_problems(given.type))
    for name, tensor in program.tensors.items():
        if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            yield f"tensor {name}", "it holds what is no number"
    for node in program.nodes:
        said = chain(_type_problems(node.output), _field_problems(node.op), _node_problems(node, program))
        yield from ((node.name, problem) for problem in said)
    if not program.outputs:
        yield "outputs", "there are none"
    for name in program.outputs:
        if not program.type(name).real:
            yield f"output {name}", "it is no edge of real numbers"
    dialect = dialect_of(program)
    if dialect is not None and dialect.problems is not None:
        yield from dialect.problems(program)
    yield from _shape_problems(program)
    yield from _table_problems(program)


def _type_problems(kind: ValueType) -> Iterator[str]:
    if kind.bits is not None and not 1 <= kind.bits <= _WIDEST:
        yield f"a register of {kind.bits} bits; allowed: 1 to {_WIDEST}"
    if kind.shape is not None and (min(kind.shape, default=1) < 1 or math.prod(kind.shape) > _LARGEST):
        yield f"shape {kind.shape}; allowed: sizes from 1, {_LARGEST} values in all"


def _field_problems(op: Any) -> Iterator[str]:
    """What fields say by their names alone, those of dataclasses inside included."""
    values = {entry.name: getattr(op, entry.name) for entry in fields(op)}
    for name, value in values.items():
        if is_dataclass(value):
            yield from _field_problems(value)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                yield from _number_problems(name, number)
        if name == "lo" or name.endswith("_lo"):
            highest = values.get(f"{name.removesuffix('lo')}hi")
            if highest is not None and value > highest:
                yield f"{name} is {value}, above {name.removesuffix('lo')}hi, {highest}"


def _number_problems(name: str, value: float) -> Iterator[str]:
    if abs(value) >= 1 << 62:
        yield f"{name} is {value}; allowed: what int64 holds"
    if (name == "shift" or name.endswith("_shift") or name.startswith("log2_")) and abs(value) > 62:
        yield f"{name} is {value}; allowed: -62 to 62"
    if name in _AT_LEAST and value < _AT_LEAST[name]:
        yield f"{name} is {value}; allowed: from {_AT_LEAST[name]}"
    if name in _ABOVE_0 and value <= 0:
        yield f"{name} is {value}; allowed: above 0"
    if name.endswith("bits") and not 1 <= value <= _WIDEST:
        yield f"{name} is {value}; allowed: 1 to {_WIDEST}"


def _node_problems(node: Node, program: Program) -> Iterator[str]:
    op, kind = node.op, node.output
    lowest, highest = getattr(op, "lo", None), getattr(op, "hi", None)
    if isinstance(op, Clamp) and not kind.real:  # its bounds may lie beyond what comes in
        came = program.type(node.inputs[0])
        lowest, highest = (min(max(bound, came.lo), came.hi) for bound in (op.lo, op.hi))
    inside = kind.real or lowest is None or (kind.lo <= lowest and highest is not None and highest <= kind.hi)
    if not inside:
        yield f"codes from {lowest} to {highest} on an edge of {kind.lo} to {kind.hi}"
    if isinstance(op, Quantise) and (kind.grid is None or (op.scale, op.zero) != (kind.grid.n, kind.grid.zero)):
        yield f"it quantises to {op.scale:g} codes a unit and zero {op.zero}, its edge says {kind.grid}"
    for name in tensor_names(op):
        if not program.tensors[name].numel():
            yield f"tensor {name} is empty"
    for name in _code_tensors(op):
        if program.tensors[name].dtype.is_floating_point:
            yield f"tensor {name} holds codes, but no integers"
    extra = meaning_of(op).problems
    if extra is not None:
        yield from extra(op, context_of(node, program))


def _code_tensors(op: Any) -> Iterator[str]:
    for entry in fields(op):
        value = getattr(op, entry.name)
        if is_dataclass(value):
            yield from _code_tensors(value)
        elif entry.name.endswith(_CODES) and value is not None:
            yield value


def _table_problems(program: Program) -> Iterator[tuple[str, str]]:
    """Every code that can come into a table has an entry."""
    try:
        found = code_ranges(program)
    except UnsupportedError:  # a sum over an axis whose length is not known
        return
    for node in program.nodes:
        if isinstance(node.op, LookUp):
            entries = program.tensors[node.op.table_tensor].shape[1]
            lowest, highest = found[node.inputs[0]]
            if lowest < node.op.first or highest >= node.op.first + entries:
                last = node.op.first + entries - 1
                yield node.name, f"codes from {lowest} to {highest} come in, its table has {node.op.first} to {last}"


def _shape_problems(program: Program) -> Iterator[tuple[str, str]]:
    """Follow shapes through the reference on tensors that have no content."""
    tensors = {name: _hollow(tensor.shape, tensor.dtype) for name, tensor in program.tensors.items()}
    edges: dict[str, Tensor | None] = {given.name: _of(given.type) for given in program.inputs}
    for node in program.nodes:
        args = [arg for name in node.inputs if (arg := edges[name]) is not None]
        declared = node.output.shape
        made: Tensor | None = None
        if len(args) == len(node.inputs) and not _loops(node.op):
            sources = tuple(program.type(name) for name in node.inputs)
            context = Context(tensors, sources, node.output, node.name, node.exact_in_float32)
            reference = meaning_of(node.op).reference
            try:
                made = _followed(lambda: reference(node.op, args, context))  # noqa: B023  # called at once
            except Exception as error:
                yield node.name, str(error).splitlines()[0] if str(error) else type(error).__name__
                return
            if made is not None and declared is not None and tuple(made.shape[1:]) != declared and made.dim():
                yield node.name, f"it gives shape {tuple(made.shape[1:])}, its edge says {declared}"
                return
        edges[node.name] = _of(node.output) if made is None else made


def _followed(compute: Callable[[], Tensor]) -> Tensor | None:
    """The result, without content; None where the content decides it."""
    try:
        return compute()
    except ChipfitError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
            return None
        raise


def _loops(op: Op) -> bool:
    """Whether an operation holds others, which it computes once a step of time."""
    return any(isinstance(getattr(op, entry.name), Op) for entry in fields(op))


def _of(kind: ValueType) -> Tensor | None:
    if kind.shape is None:
        return None
    return _hollow((1, *kind.shape), torch.float32 if kind.real else torch.int64)


def _hollow(shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")

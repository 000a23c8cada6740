"""The C program of an integer program: what every step is, in which memory, and what a host needs to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.export.c.builder import CBuilder
from chipfit.export.c.core import WRITINGS
from chipfit.export.c.plan import Plan, plan
from chipfit.export.c.steps import copy, plain
from chipfit.export.c.views import Buffer, Table, View, type_of
from chipfit.export.golden import narrowest
from chipfit.program.core import ops
from chipfit.program.dialect import meaning_of
from chipfit.program.reference import trace
from chipfit.program.types import Node, Program

MOVES = (ops.Pad, ops.Reshape, ops.Permute, ops.Slice, ops.Select, ops.Flip, ops.Cat)


@dataclass(frozen=True)
class Edge:
    """An edge that lies in memory.

    Args:
        name: Its name in the program.
        view: Where.
        dtype: As golden vectors have it.
        first, last: Steps that make it; -1 for an input.
    """

    name: str
    view: View
    dtype: str
    first: int
    last: int


@dataclass
class CProgram:
    """A program as C.

    Args:
        program: Where it comes from.
        builder: Its steps and constants.
        plan: Its arena, without scratch.
        inputs, outputs: Edges in order.
        edges: All edges that lie in memory, inputs among them, by name.
        hidden: Nodes whose edges exist in registers only.
    """

    program: Program
    builder: CBuilder
    plan: Plan
    inputs: list[Edge]
    outputs: list[Edge]
    edges: dict[str, Edge]
    hidden: list[str]

    @property
    def rows_at(self) -> int:
        """Where the scratch of 16-bit rows begins."""
        return self.wide_at + -(-4 * self.builder.wide_needed // 16) * 16

    @property
    def wide_at(self) -> int:
        """Where the scratch of 32-bit numbers begins."""
        return self.plan.bytes

    @property
    def arena(self) -> int:
        """Bytes of everything."""
        return self.rows_at + -(-2 * self.builder.rows_needed // 16) * 16


def reads_index(node: Node) -> bool:
    """Whether an operation takes its input as indices, not as a number to be turned into a code."""
    writing = meaning_of(node.op).c
    return writing is not None and "index" in writing.takes


def example_inputs(program: Program, samples: int = 1, seed: int = 0, extreme: bool = False) -> tuple[Tensor, ...]:
    """Real inputs whose codes are drawn from all that can come.

    Args:
        program: The program.
        samples: How many.
        seed: Of what is drawn.
        extreme: Only lowest and highest codes, and a little beyond.

    Raises:
        UnsupportedError: an input whose axis 0 is not the batch.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for given in program.inputs:
        if given.type.shape is None:
            raise UnsupportedError("an input whose shape is not known", where=given.name)
        shape = (samples, *given.type.shape)
        readers = _first_readers(program, given.name)
        scale, zero, low, high = _codes_of(readers, program)
        codes = torch.randint(low, high + 1, shape, generator=generator).double()
        if extreme:
            codes = torch.where(codes * 2 > low + high, float(high), float(low))
        found.append(((codes - zero) / scale).float())
    return tuple(found)


def _codes_of(readers: list[Node], program: Program) -> tuple[float, float, int, int]:
    """Scale, zero, lowest and highest code that an input's first reader knows."""
    for node in readers:
        op: Any = node.op
        if isinstance(op, ops.Quantise):
            return op.scale, op.zero, op.lo, op.hi
        if hasattr(op, "n") and hasattr(op, "lo"):
            return float(op.n), 0.0, op.lo, op.hi
        if reads_index(node):
            return 1.0, 0.0, 0, len(program.tensors[op.table_tensor]) - 1
    return 64.0, 0.0, -256, 255


def _first_readers(program: Program, edge: str) -> list[Node]:
    found = []
    for node in program.readers(edge):
        found += _first_readers(program, node.name) if isinstance(node.op, MOVES) else [node]
    return found


def build(
    program: Program,
    layout: str = "auto",
    weights: str = "int8",
    examples: Sequence[Tensor] | None = None,
) -> CProgram:
    """Write a program as steps of C and plan their memory.

    Args:
        program: From `lower` or `load_program`.
        layout: 'nhwc', 'nchw', or 'auto' for the one that needs less memory, nhwc where it is not much.
        weights: 'int8' or 'int16'.
        examples: Real inputs of one sample; drawn where they are not given.

    Raises:
        UnsupportedError: operations that C cannot say, all of them.
    """
    drawn = tuple(x[:1] for x in examples) if examples is not None else example_inputs(program)
    edges = trace(program, *drawn)
    shapes = {name: tuple(value.shape) for name, value in edges.items()}
    if layout == "auto":
        tried = {name: _built(program, name, weights, shapes) for name in ("nhwc", "nchw")}
        much = tried["nchw"].arena < 0.9 * tried["nhwc"].arena
        return tried["nchw" if much else "nhwc"]
    return _built(program, layout, weights, shapes)


def _built(program: Program, layout: str, weights: str, shapes: dict[str, tuple[int, ...]]) -> CProgram:
    b = CBuilder(program, shapes, layout, weights, WRITINGS)
    named = {node.name: node for node in program.nodes}
    given = {entry.name for entry in program.inputs}
    results = []
    for name in program.outputs:
        node = named.get(name)
        direct = node is not None and isinstance(node.op, ops.Dequantise) and not program.readers(name)
        results.append(node.inputs[0] if direct and node is not None else name)
    b.result_edges = tuple(results)
    boundary = _boundary(program)
    wanted: set[str] = set()
    queue = list(results)
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue += [] if name in boundary or name in given else named[name].inputs
    b.needed = [node for node in program.nodes if node.name in wanted and node.name not in boundary]
    unknown = [node for node in b.needed if b.writing(node.op) is None]
    if unknown:
        lines = "".join(f"\n  {node.name}: {type(node.op).__name__}" for node in unknown)
        raise UnsupportedError(f"operations without a meaning in C:{lines}", where="c")
    sources = [entry.name for entry in program.inputs if entry.name in wanted]
    sources += [node.name for node in program.nodes if node.name in boundary and node.name in wanted]
    for name in sources:
        kind = program.type(name)
        shape = shapes[name]
        low, high = (0, 0) if kind.real else b.ranges[name]
        type_ = "float32" if kind.real else type_of(low, high)
        if kind.real and all(reads_index(node) for node in b.readers(name)):
            type_ = "int32"
        order = b.conv_order(len(shape)) if len(shape) == 4 else tuple(range(len(shape)))
        b.views[name] = b.room(name, type_, shape, order, low, high)
        b.buffers[-1].first = -1
    try:
        for node in b.needed:
            b.add(node)
    except UnsupportedError as error:
        raise UnsupportedError(f"the program cannot be written as C:\n  {error}", where="c") from error
    for name in results:
        b.views[name] = _settled(b, plain(b, b.views[name], name), name)
    return _planned(b, sources, results)


def _settled(b: CBuilder, view: View, name: str) -> View:
    """An output in the arena, not among the constants."""
    if isinstance(view.base, Buffer):
        return view
    out = b.room(name, view.type, view.shape, range(len(view.shape)), view.low, view.high)
    before = len(b.steps)
    b._now = [name]
    copy(b, view, out)
    b.made[name] = (before, before)
    return out


def _boundary(program: Program) -> set[str]:
    """The nodes that turn an input, moved or not, into codes: where C begins."""
    raw = {entry.name for entry in program.inputs}
    found = set()
    for node in program.nodes:
        if node.output.real and isinstance(node.op, MOVES) and all(name in raw for name in node.inputs):
            raw.add(node.name)
        elif not node.output.real and len(node.inputs) == 1 and node.inputs[0] in raw and not reads_index(node):
            found.add(node.name)
    return found


def _planned(b: CBuilder, sources: list[str], results: list[str]) -> CProgram:
    edges: dict[str, Edge] = {}
    for name, view in b.views.items():
        if view.pending or view.border is not None or isinstance(view.base, Table):
            continue
        kind = b.program.type(name)
        dtype = view.type if kind.real else narrowest(kind)
        first, last = b.made.get(name, (-1, -1))
        edges[name] = Edge(name, view, dtype, first, last)
    for name in results:
        base = b.views[name].base
        assert isinstance(base, Buffer)
        base.last = len(b.steps)
    _share(b)
    planned = plan([x for x in b.buffers if x.alias_of is None], len(b.steps) + 1)
    for buffer in b.buffers:
        buffer.offset = buffer.root.offset
    hidden = [node.name for node in b.needed if node.name not in edges]
    return CProgram(b.program, b, planned, [edges[n] for n in sources], [edges[n] for n in results], edges, hidden)


def _share(b: CBuilder) -> None:
    """Let an output take the place of an input that nobody needs after the step, element by element."""
    for index, step in enumerate(b.steps):
        if step.alias is None or step.writes.first != index:
            continue
        root = step.alias.root
        if sum(buffer.root is root for buffer in step.reads) > 1:
            continue
        if root.last == index and root.bytes == step.writes.bytes and root is not step.writes:
            root.last = max(root.last, step.writes.last)
            step.writes.alias_of = root

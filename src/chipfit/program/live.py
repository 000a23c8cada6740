"""What a finished program needs: nodes that something reads, without detours and without the same thing twice.

Lowering a layer gives all that the layer returns; a network that takes the sequence of a GRU and drops its last state
leaves nodes behind that compute for nobody, and a chip's compiler would place them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from chipfit.program.ops import Cat, Op, Reshape, Select
from chipfit.program.types import Node, Program, ValueType, tensor_names


def numbered_calls(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Say on each node that gives a layer's output which call of the layer it is; all calls must still be there.

    Args:
        nodes: In the order of the network.

    Example:
        >>> from chipfit.program.ops import Relu
        >>> from chipfit.program.types import ValueType
        >>> twice = [Node(name, Relu(), ("x",), ValueType((2,), 8), "act") for name in ("act", "act@1")]
        >>> [node.call for node in numbered_calls(twice)]
        [0, 1]
    """
    calls: Counter[tuple[str, int]] = Counter()
    numbered = []
    for node in nodes:
        result = node.layer, node.share[0]
        numbered.append(replace(node, call=calls[result]) if node.layer else node)
        calls[result] += 1
    return tuple(numbered)


def simplified(program: Program) -> Program:
    """The same program without what nobody reads and without detours.

    Dropped are nodes whose result nobody reads and their tensors, stacks that are read entry by entry, and a second
    place where the same numbers are moved or become the same codes. Inputs stay, read or not: they are the network's
    arguments.

    Args:
        program: With shapes.

    Example:
        >>> from chipfit.program.ops import Dequantise, Quantise, Relu
        >>> from chipfit.program.types import VERSION, Input, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> unread, y = Node("unread", Relu(), ("q",), codes), Node("y", Dequantise(), ("q",), real)
        >>> program = Program(VERSION, "wtm2101", (q, unread, y), (Input("x", real),), ("y",), {})
        >>> [node.name for node in simplified(program).nodes]
        ['q', 'y']
    """
    live = _read(program)
    nodes, same = _without_detours(live)
    outputs = tuple(same.get(name, name) for name in live.outputs)
    return _read(replace(live, nodes=tuple(nodes), outputs=outputs))


def _read(program: Program) -> Program:
    """The nodes that something reads, and the tensors of these."""
    needed = set(program.outputs)
    for node in reversed(program.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    nodes = tuple(node for node in program.nodes if node.name in needed)
    read = {name for node in nodes for name in tensor_names(node.op)}
    return replace(
        program, nodes=nodes, tensors={name: tensor for name, tensor in program.tensors.items() if name in read}
    )


def stacked(program: Program, edge: str) -> tuple[str, ...]:
    """The edges that an edge holds one behind the other along a first axis of its own; none if it is no such stack.

    Args:
        program: With shapes.
        edge: For instance the last states of a GRU, `(cells, batch, hidden)`.
    """
    return _parts(edge, {node.name: node for node in program.nodes}, _shapes(program))


_Shapes = Mapping[str, tuple[int, ...] | None]


def _shapes(program: Program) -> _Shapes:
    return {given.name: given.type.shape for given in program.inputs} | {
        node.name: node.output.shape for node in program.nodes
    }


def _without_detours(program: Program) -> tuple[list[Node], dict[str, str]]:
    """The nodes but those that only give what an edge before them holds already, and which edge that is."""
    shapes, same = _shapes(program), dict[str, str]()
    real = {given.name for given in program.inputs} | {node.name for node in program.nodes if node.output.real}
    kept: dict[str, Node] = {}
    known: dict[tuple[Op, tuple[str, ...], ValueType], str] = {}
    for node in program.nodes:
        node = replace(node, inputs=tuple(same.get(name, name) for name in node.inputs))
        what = node.op, node.inputs, node.output
        source = "" if node.layer else _source(node, kept, shapes)
        if not node.layer and real.issuperset(node.inputs):
            source = source or known.get(what, "")
        if source:
            same[node.name] = source
        else:
            kept[node.name] = node
            known.setdefault(what, node.name)
    return list(kept.values()), same


def _source(node: Node, made: Mapping[str, Node], shapes: _Shapes) -> str:
    """The edge before a node that holds the same codes in the same shape, or ''."""
    if isinstance(node.op, Select) and node.op.dim == 0:
        parts = _parts(node.inputs[0], made, shapes)
        return parts[node.op.index] if parts else ""
    if isinstance(node.op, Reshape) and node.op.shape[0] == -1:
        source = made.get(node.inputs[0])
        if source is not None and isinstance(source.op, Reshape) and shapes[source.inputs[0]] == node.op.shape[1:]:
            return source.inputs[0]
    return ""


def _parts(edge: str, made: Mapping[str, Node], shapes: _Shapes) -> tuple[str, ...]:
    node = made.get(edge)
    if node is None or node.layer:
        return ()
    if isinstance(node.op, Cat) and node.op.dim == 0:
        parts = [_parts(name, made, shapes) for name in node.inputs]
        return tuple(name for part in parts for name in part) if all(parts) else ()
    if isinstance(node.op, Reshape):
        source = node.inputs[0]
        whole = shapes[source]
        return (source,) if whole is not None and node.op.shape == (1, -1, *whole) else ()
    return ()

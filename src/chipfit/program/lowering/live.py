"""What of a traced network, and of a program, its results depend on."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn

from chipfit.program.types import Program, tensor_names


def without_dead_nodes(program: Program) -> Program:
    """A program without the nodes and tensors that neither an output nor a chip layer's output depends on.

    A chip layer's output stays even where nothing reads it (a GRU of which only the last state is used), so that it is
    compared.

    Example:
        >>> from chipfit.program.ops import Dequantise, Quantise, Relu
        >>> from chipfit.program.types import VERSION, Input, Node, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> dead, y = Node("dead", Relu(), ("q",), codes), Node("y", Dequantise(), ("q",), real)
        >>> program = Program(VERSION, "wtm2101", (q, dead, y), (Input("x", real),), ("y",), {})
        >>> [node.name for node in without_dead_nodes(program).nodes]
        ['q', 'y']
    """
    needed, nodes = {*program.outputs, *(node.name for node in program.nodes if node.layer)}, []
    for node in reversed(program.nodes):
        if node.name in needed:
            nodes.append(node)
            needed |= set(node.inputs)
    used = {name for node in nodes for name in tensor_names(node.op)}
    tensors = {name: tensor for name, tensor in program.tensors.items() if name in used}
    return replace(program, nodes=tuple(reversed(nodes)), tensors=tensors)


def live_calls(graph: fx.Graph) -> set[fx.Node]:
    """The calls that the result of a traced network depends on."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op in ("placeholder", "output") or node in live:
            live |= {node, *node.all_input_nodes}
    return live


def without_in_place(traced: fx.GraphModule) -> None:
    """Let what reads a tensor after an in-place call read the call's result, so that the graph shows the dependence.

    Views of the tensor are not followed: of a network that changes a tensor through one, `verify` finds that.
    """
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and _in_place(node, traced):
            for user in list(source.users):
                if order[user] > order[node]:
                    user.replace_input_with(source, node)


def _in_place(node: fx.Node, traced: fx.GraphModule) -> bool:
    if node.op == "call_module":
        module: nn.Module = traced.get_submodule(str(node.target))
        return getattr(module, "inplace", False) is True
    if node.kwargs.get("inplace") is True:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).endswith("_") and not str(name).endswith("__")

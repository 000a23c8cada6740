"""What of a traced network its results depend on."""

from __future__ import annotations

from torch import fx, nn


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

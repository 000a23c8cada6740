"""Networks made of what a file describes: layers in their places, and a graph that calls them."""

from __future__ import annotations

from torch import fx, nn


def put(root: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer at a qualified name below a module, unless there is one."""
    *outer, last = name.split(".")
    at = root
    for part in outer:
        if part not in at._modules:
            at.add_module(part, nn.Module())
        at = at.get_submodule(part)
    if last not in at._modules:
        at.add_module(last, layer.eval())


def finished(kind: str, root: nn.Module, graph: fx.Graph, *own: dict[str, str]) -> fx.GraphModule:
    """The network of a graph.

    Args:
        kind: Name of its class.
        root: Its layers.
        graph: What calls what.
        *own: The name in the network of each name of the file; those that differ are kept in `meta["file_names"]`.
    """
    graph.lint()
    made = fx.GraphModule(root, graph, class_name=kind)
    called = {str(node.target) for node in graph.nodes if node.op in ("placeholder", "call_module", "get_attr")}
    pairs = [pair for given in own for pair in given.items()]
    made.meta["file_names"] = {path: name for name, path in pairs if path != name and path in called}
    return made.eval()

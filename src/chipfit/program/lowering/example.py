"""Tracing a network, and running it on the user's example, once and with twice its batch."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from chipfit.convert.tracer import ValueTracer
from chipfit.copying import copied
from chipfit.errors import ChipfitError, UnsupportedError


def traced(
    root: nn.Module, leaves: tuple[type, ...], examples: tuple[Any, ...], where: str = ""
) -> tuple[fx.GraphModule, frozenset[str]]:
    """Trace a network. It is computed on the example as it is traced, so that its forward may branch on shapes.

    Args:
        root: The network; it is left as it was.
        leaves: Classes of modules that are one call each, besides torch's own.
        examples: Its inputs, batch first.
        where: What the network is called in the error; default its class.

    Returns:
        The traced network, and the names in it of modules that forward builds.

    Raises:
        UnsupportedError: its forward cannot be traced.

    Example:
        >>> import torch
        >>> graph, _ = traced(nn.Sequential(nn.ReLU()), (), (torch.zeros(1, 2),))
        >>> [node.name for node in graph.graph.nodes]
        ['input_1', '_0', 'output']
    """
    tracer = ValueTracer(copied(root), examples, leaves, unpack=True, doubled=True)
    try:
        graph = tracer.traced(root, len(examples))
        _without_defaults(graph, len(examples))
        return fx.GraphModule(root, graph), frozenset(tracer.built)
    except ChipfitError:
        raise
    except Exception as error:
        raise UnsupportedError(
            "the network cannot be traced",
            given=str(error).splitlines()[0] if str(error) else type(error).__name__,
            where=where or type(root).__name__,
            hint="Its forward must not branch or loop on the values of tensors.",
        ) from error
    finally:
        tracer.forget_built(root)


def _without_defaults(graph: fx.Graph, given: int) -> None:
    """Take out the arguments that kept their defaults: forward was traced with these, and torch.fx asserts as much."""
    for argument in [node for node in graph.nodes if node.op == "placeholder"][given:]:
        doomed = [argument]
        for node in doomed:
            doomed.extend(user for user in node.users if user not in doomed)
        if all(node is argument or node.name.startswith(("eq", "_assert")) for node in doomed):
            for node in reversed(doomed):
                graph.erase_node(node)


def run_on_example(runner: fx.Interpreter, inputs: tuple[Any, ...]) -> None:
    """Run a traced network; what goes wrong in it is an error that says what the network has to allow.

    Args:
        runner: The traced network.
        inputs: Its inputs, batch first.

    Raises:
        UnsupportedError: the network does not run on them.
    """
    try:
        runner.run(*inputs)
    except ChipfitError:
        raise
    except Exception as error:
        raise UnsupportedError(
            "the network does not run on the example, or not with twice its batch",
            given=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="Axis 0 of every input must be the batch, and no batch size may be fixed in the network.",
        ) from error

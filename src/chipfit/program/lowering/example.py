"""Tracing a network, and running it on the user's example, once and with twice its batch."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from chipfit.errors import ChipfitError, UnsupportedError


class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type, ...]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def traced(root: nn.Module, leaves: tuple[type, ...], where: str = "") -> fx.GraphModule:
    """Trace a network.

    Args:
        root: The network.
        leaves: Classes of modules that are one call each, besides torch's own.
        where: What the network is called in the error; default its class.

    Raises:
        UnsupportedError: its forward cannot be traced.

    Example:
        >>> [node.name for node in traced(nn.Sequential(nn.ReLU()), ()).graph.nodes]
        ['input_1', '_0', 'output']
    """
    try:
        return fx.GraphModule(root, _Tracer(leaves).trace(root))
    except Exception as error:
        raise UnsupportedError(
            "the network cannot be traced",
            given=str(error).splitlines()[0] if str(error) else type(error).__name__,
            where=where or type(root).__name__,
            hint="Its forward must not branch or loop on the values of tensors.",
        ) from error


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

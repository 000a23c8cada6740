"""The proof for networks of Ingenic operators: their own forward in evaluation and their program, code for code."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.integer.lower_ingenic import ingenic_layers
from chipfit.integer.ops_ingenic import Finish
from chipfit.integer.program import Node, Program
from chipfit.integer.verify import OUTPUT, Compared, Proof, calls_of, compared, nodes_by_layer, tensors_of

_NOISE = 2e-3
"""Distance from a code, in codes, that float32 can put a value; anything farther is no code."""


def verify_ingenic(model: nn.Module, program: Program, loader: Iterable[Any]) -> Proof:
    """As `verify`, for networks of Ingenic operators: real outputs are compared bit by bit.

    Args:
        model: The network that was lowered. It is not changed.
        program: Its program.
        loader: Batches.

    Returns:
        The proof.

    Raises:
        CalibrationError: the loader gives no batch.
        UnsupportedError: the network's layers are not the program's.
    """
    root = copy.deepcopy(model) if "" not in ingenic_layers(model) else nn.Sequential(copy.deepcopy(model))
    root.eval()
    nodes = nodes_by_layer(program, ingenic_layers(root))
    _settle_signs(root, nodes)
    with torch.no_grad(), _recorded(root, nodes) as seen:
        found = compared(root, program, loader, seen, partial(_pairs, program, nodes, seen), list(nodes))
    samples, counts, mismatch = found
    return Proof(samples, counts, (), ("tround",), (), mismatch)


def _settle_signs(root: nn.Module, nodes: dict[str, list[Node]]) -> None:
    """A mean is signed from its first negative input on: put it in the state that the program was made in."""
    for name, layer in ingenic_layers(root).items():
        op = nodes[name][0].op if name in nodes else None
        module: Any = layer
        if hasattr(layer, "signed") and isinstance(op, Finish) and op.requantise is not None:
            module.signed = op.requantise.kind != "unsigned"


@contextmanager
def _recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    for name in seen:

        def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            seen[name].append(tensors_of(output)[0].detach().cpu())

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _pairs(
    program: Program,
    nodes: dict[str, list[Node]],
    seen: dict[str, list[Tensor]],
    edges: dict[str, Tensor],
    results: list[Tensor],
    quick: list[Tensor],
) -> Compared:
    for name, own in nodes.items():
        for node, output in calls_of(name, own, seen[name]):
            yield name, output if node.output.real else _codes(output, node.output.scale), edges[node.name]
    for edge, network, other in zip(program.outputs, results, quick, strict=True):
        yield OUTPUT, network.cpu(), edges[edge]
        yield "fast path", edges[edge], other


def _codes(values: Tensor, scale: float) -> Tensor:
    """Values as codes; what is none stays between two."""
    scaled = values.to(torch.float64) * scale
    codes = scaled.round()
    return torch.where((scaled - codes).abs() <= _NOISE, codes, scaled)

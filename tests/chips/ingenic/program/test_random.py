"""Random Ingenic networks: evaluation forward == reference == fast path, every code of every layer, no tolerance."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from chipfit.errors import UnsupportedError
from chipfit.program import Grid, Program, lower, verify
from support.ingenic.random_networks import SEEDS, draw

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
REASONS = ("the example has no negative value here", "features of different grids meet")


def check(seed: int) -> set[str]:
    net, example, more = draw(seed)
    try:
        program = lower(net, example)
    except UnsupportedError as error:
        # a mean whose signed input happens to have no negative value, or on Txx a Shortcut's codes beside a layer's
        assert all(any(reason in line for reason in REASONS) for line in str(error).splitlines()[1:]), str(error)
        return set()
    proof = verify(net, program, [example, more])
    assert proof.equal, str(proof)
    assert proof.samples == 7 and all(proof.codes.values())
    check_grids(program)
    return {type(layer).__name__ for layer in net.layers}


def check_grids(program: Program) -> None:
    """The type of an edge says what its codes stand for, as the operations that make and read it say."""
    for node in program.nodes:
        requantise = getattr(node.op, "requantise", None)
        if requantise is not None:
            kind = "odd" if requantise.kind == "odd" else "plain"
            assert node.output.grid == Grid(kind, float(requantise.n)), node.name
        named = (node.op.left, node.op.right) if hasattr(node.op, "left") else (getattr(node.op, "grid", None),)
        for edge, grid in zip(node.inputs, named, strict=False):
            kind = program.type(edge)
            assert grid is None or kind.grid in (grid, None), (node.name, edge)
            assert kind.grid is not None or kind.real or edge.endswith(".sum"), edge


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_random_networks(seed: int) -> None:
    check(seed)

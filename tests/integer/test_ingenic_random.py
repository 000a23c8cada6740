"""Random Ingenic networks: evaluation forward == reference == fast path, every code of every layer, no tolerance."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from chipfit.errors import UnsupportedError
from chipfit.program import lower, verify
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
    return {type(layer).__name__ for layer in net.layers}


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=200, deadline=None)
def test_random_networks(seed: int) -> None:
    check(seed)

"""Random plain networks upwards, and MLPerf Tiny's: equal in float, above 20 dB or a warning that names the cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.mlperf_tiny import NETWORKS, inputs_of, network_of
from support.random_upwards import ENOUGH_DB, RandomNetwork, upwards

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "mlperf_tiny"
LEAST_MEDIAN = {"wtm2101": 34.0, "t40": 32.0, "txx": 27.0}


def _never_silent(chip: str, seeds: range) -> None:
    ratios = []
    for seed in seeds:
        net = RandomNetwork(seed, recurrent=chip == "wtm2101")
        row = upwards(net, chip, net.data, seed)
        if row is not None:
            assert row.off < 1e-4 and not row.silent, row
            ratios.append(row.sqnr_db)
    assert len(ratios) > 0.9 * len(seeds)
    assert sorted(ratios)[len(ratios) // 2] > LEAST_MEDIAN[chip]


@pytest.mark.parametrize("chip", LEAST_MEDIAN)
@pytest.mark.parametrize("first", [1000, 1015])
def test_random_networks(chip: str, first: int) -> None:
    _never_silent(chip, range(first, first + 15))


@pytest.mark.slow
@pytest.mark.parametrize("chip", LEAST_MEDIAN)
@pytest.mark.parametrize("first", range(0, 300, 50))
def test_three_hundred_random_networks(chip: str, first: int) -> None:
    _never_silent(chip, range(first, first + 50))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_networks_of_mlperf_tiny(name: str) -> None:
    if not WEIGHTS.is_dir():
        pytest.skip("needs ../shared/data/mlperf_tiny beside the checkout, which is not part of this project")
    row = upwards(network_of(name, WEIGHTS), "wtm2101", inputs_of(name, WEIGHTS, 16), proven=True)
    assert row is not None and row.off < 1e-4 and row.equal
    assert row.sqnr_db >= ENOUGH_DB

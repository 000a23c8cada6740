"""Ranges from a sample: what each method chooses where the right answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.errors import CalibrationError
from chipfit.fit.methods import METHODS, free_range, least_divergence, power_of_two_range


def grid(values: torch.Tensor, clip: float) -> torch.Tensor:
    return (values.clamp(-clip, clip) / clip * 7).round() / 7 * clip


def test_kl_drops_an_outlier_and_keeps_a_uniform_range() -> None:
    torch.manual_seed(0)
    x, uniform = torch.randn(20_000), torch.rand(20_000)
    with_outlier = torch.cat([x, torch.tensor([15.0])])
    assert 3 < free_range(with_outlier, 7, grid, "kl", 99.9, "fc") < 4
    assert power_of_two_range(with_outlier, 8, "kl", 99.9, "fc") == 4.0
    assert power_of_two_range(with_outlier, 8, "mse", 99.9, "fc") == 16.0
    assert least_divergence(uniform, [1.0, 0.5, 0.25], 128) == 1.0
    assert power_of_two_range(uniform, 8, "kl", 99.9, "fc") == 1.0


def test_kl_by_hand() -> None:
    # Bins 1, 2, 3 and 4 hold 4, 4, 1 and 1 values. Clipping at 2 with two codes moves 2 values into bin 2: 4 and 6
    # against 5 and 5. Four bins on two codes are (4, 4), (1, 1): exact.
    x = torch.tensor([0.5] * 4 + [1.5] * 4 + [2.5, 3.5])
    assert least_divergence(x, [4.0, 2.0], 2) == 4.0
    # With 4, 4, 1 and 0 values two codes would smear bin 3 over an empty bin, which does not count: exact again.
    assert least_divergence(x[:-1], [4.0, 2.0], 2) == 4.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.sampled_from(METHODS))
def test_ranges_scale_with_the_data_and_never_exceed_it(seed: int, scale: float, method: str) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed))
    once = free_range(x, 7, grid, method, 99.0, "fc")
    assert 0 < once <= x.abs().max().item()
    scaled = x * scale
    assert free_range(scaled, 7, grid, method, 99.0, "fc") <= scaled.abs().max().item()
    po2 = power_of_two_range(x, 8, method, 99.0, "fc")
    assert 0 < po2 <= 2 * x.abs().max().item()
    if method in ("mse", "kl"):
        assert math.frexp(po2)[0] == 0.5
    assert power_of_two_range(x * 4, 8, method, 99.0, "fc") == pytest.approx(4 * po2, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_no_range_without_values(method: str) -> None:
    for values in (torch.zeros(4), torch.zeros(0), torch.tensor([math.nan])):
        with pytest.raises(CalibrationError, match=r"^fc: "):
            free_range(values, 7, grid, method, 99.0, "fc")

"""The accumulator bound is reached and never passed."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.arithmetic.bounds import FLOAT32_EXACT, accumulator_bound

codes = st.lists(st.lists(st.integers(-128, 127), min_size=4, max_size=4), min_size=1, max_size=3)


@settings(deadline=None)
@given(codes, st.integers(1, 255), st.lists(st.integers(-1000, 1000), min_size=3, max_size=3))
def test_equals_brute_force_over_the_corners(weight, magnitude, bias):
    """A linear function is largest at a corner of its box, so trying every corner tries every input."""
    w, b = torch.tensor(weight, dtype=torch.float32), torch.tensor(bias[: len(weight)], dtype=torch.float32) * 128
    corners = torch.tensor(list(itertools.product([-magnitude, magnitude], repeat=4)), dtype=torch.float32)
    largest = torch.maximum((corners @ w.t() + b).abs(), (corners @ w.t() - b).abs()).amax(0)
    bound = accumulator_bound(w, magnitude, b)
    assert bound.per_channel.tolist() == largest.long().tolist()
    assert bound.largest == int(largest.max())


def test_convolution_weights_and_no_bias():
    weight = torch.ones(2, 3, 5, 5)
    weight[1] *= -2
    assert accumulator_bound(weight, 10).per_channel.tolist() == [750, 1500]


@pytest.mark.parametrize(("largest", "bits"), [(0, 1), (1, 2), (127, 8), (128, 9), (2**23, 25)])
def test_register_width(largest, bits):
    assert accumulator_bound(torch.tensor([[float(largest)]]), 1).bits == bits


@pytest.mark.parametrize(("magnitude", "exact"), [(FLOAT32_EXACT, True), (FLOAT32_EXACT + 1, False)])
def test_exact_in_float32(magnitude, exact):
    assert accumulator_bound(torch.ones(1, 1), magnitude).exact_in_float32 is exact


def test_sums_beyond_float32_are_counted_exactly():
    bound = accumulator_bound(torch.full((1, 10_001), 127.0), 4095)
    assert bound.per_channel.tolist() == [10_001 * 127 * 4095]

"""Grids: ranges, idempotence, saturation, gradient at the ends, power-of-two scales."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.arithmetic.grid import Grid, power_of_two_scale
from chipfit.chips.witmem.rounding import wtm2101
from chipfit.errors import InvalidTypeError, InvalidValueError

grids = st.builds(Grid, bits=st.integers(1, 16), signed=st.booleans(), scale=st.floats(2**-10, 2**13, width=32))
values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20).map(lambda v: torch.tensor(v))


@pytest.mark.parametrize(
    ("bits", "signed", "lo", "hi"),
    [(8, True, -128, 127), (8, False, 0, 255), (12, True, -2048, 2047), (1, True, -1, 0), (1, False, 0, 1)],
)
def test_range(bits, signed, lo, hi):
    assert (Grid(bits, signed).lo, Grid(bits, signed).hi) == (lo, hi)


@settings(deadline=None)
@given(grids, values)
def test_codes_are_whole_and_in_range(grid, x):
    codes = grid.codes(x)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= grid.lo
    assert codes.max() <= grid.hi


@settings(deadline=None)
@given(grids, values)
def test_quantise_is_idempotent(grid, x):
    once = grid.quantise(x)
    assert torch.equal(grid.quantise(once), once)


@settings(deadline=None)
@given(grids, values)
def test_error_is_half_a_code_inside_the_range(grid, x):
    x = x.double()
    inside = (x * grid.scale >= grid.lo) & (x * grid.scale <= grid.hi)
    error = ((grid.quantise(x) - x) * grid.scale).abs()[inside]
    assert (error <= 0.5 + 1e-9).all()


@settings(deadline=None)
@given(grids)
def test_saturation(grid):
    far = torch.tensor([-1e30, 1e30])
    assert grid.codes(far).tolist() == [grid.lo, grid.hi]
    assert grid.codes(torch.tensor([-math.inf, math.inf])).tolist() == [grid.lo, grid.hi]


def test_gradient_includes_the_ends_and_nothing_beyond():
    grid = Grid(8, True, 64)
    x = torch.tensor([-128.0, -128.25, 127.0, 127.25, 0.3]) / 64
    x.requires_grad_()
    grid.quantise(x).sum().backward()
    assert x.grad.tolist() == [1, 0, 1, 0, 1]


def test_other_rounding_rules():
    grid = Grid(8, True, 1)
    x = torch.tensor([-1.74, -1.75, 0.5, 200.0])
    assert grid.codes(x, wtm2101).tolist() == [-1, -2, 1, 127]
    assert grid.codes(x).tolist() == [-2, -2, 0, 127]


@pytest.mark.parametrize("bits", [0, -1])
def test_refuses_widths_that_hold_nothing(bits):
    with pytest.raises(InvalidValueError, match="bits"):
        Grid(bits)


@pytest.mark.parametrize("bits", [8.0, "8", None, True])
def test_refuses_widths_that_are_no_int(bits):
    with pytest.raises(InvalidTypeError):
        Grid(bits)


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_refuses_scales(scale):
    with pytest.raises(InvalidValueError, match="scale"):
        Grid(8, True, scale)


@pytest.mark.parametrize(("scale", "yes"), [(1, True), (0.25, True), (4096, True), (3, False), (0.7, False)])
def test_is_power_of_two(scale, yes):
    assert Grid(8, True, scale).is_power_of_two is yes


@settings(deadline=None)
@given(st.floats(2.0**-20, 2.0**20, width=32), st.integers(1, 16))
def test_power_of_two_scale_covers_and_is_the_finest_to_do_so(largest, bits):
    scale = power_of_two_scale(largest, bits)
    assert math.frexp(scale)[0] == 0.5
    # one float32 step of the logarithm is forgiven: see test_power_of_two_scale_float32_edge
    assert largest * scale <= 2 ** (bits - 1) * (1 + 2e-6)
    assert largest * scale * 2 > 2 ** (bits - 1) * (1 - 2e-6)


@pytest.mark.parametrize(
    ("largest", "bits", "scale"),
    [(1.7309, 8, 64), (1.0, 8, 128), (2.0, 8, 64), (0.5, 9, 512), (8.0, 9, 32), (3e-5, 8, 2.0**22), (1000.0, 8, 0.125)],
)
def test_power_of_two_scale_values(largest, bits, scale):
    assert power_of_two_scale(largest, bits) == scale


def test_power_of_two_scale_float32_edge():
    """The logarithm is a float32: just above 1 it still tells the step, just above 1024 it no longer does."""
    above = lambda v: torch.nextafter(torch.tensor(v), torch.tensor(math.inf)).item()  # noqa: E731
    assert power_of_two_scale(above(1.0), 8) == 64
    assert power_of_two_scale(above(1024.0), 8) == 0.125
    assert power_of_two_scale(1025.0, 8) == 0.0625


@pytest.mark.parametrize("largest", [0, -1.0, math.nan, math.inf])
def test_power_of_two_scale_refuses(largest):
    with pytest.raises(InvalidValueError, match="no scale covers"):
        power_of_two_scale(largest, 8)

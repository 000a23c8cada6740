"""The fused kernels equal the plain grid; the gradient window equals brute force, to the last float."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.arithmetic.fake_quant import clip_window, fake_codes, fake_quantise
from chipfit.arithmetic.grid import Grid
from chipfit.chips.witmem.rounding import wtm2101

grids = st.builds(Grid, bits=st.integers(2, 12), signed=st.booleans(), scale=st.floats(2**-6, 1000, width=32))


def around_the_range(grid, seed, dtype=torch.float32):
    """Random values, and every float next to both ends of the range."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, generator=generator) * 2 ** (grid.bits - 1) / grid.scale
    ends = torch.tensor([grid.lo, grid.hi, grid.lo - 0.5, grid.hi + 0.5]) / grid.scale
    step = torch.finfo(torch.float32).eps * ends.abs()
    return torch.cat([x, *[ends + k * step for k in range(-3, 4)]]).to(dtype)


def gradient(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    up = torch.linspace(1, 3, out.numel()).to(out)
    out.backward(up)
    return out.detach(), x.grad, up


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None)
@given(grid=grids, seed=st.integers(0, 999))
def test_equals_grid(dtype, grid, seed):
    x = around_the_range(grid, seed, dtype)
    y, grad, _ = gradient(lambda v: fake_quantise(v, grid), x)
    expected, expected_grad, _ = gradient(grid.quantise, x)
    assert torch.equal(y, expected)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=0)
    codes, code_grad, _ = gradient(lambda v: fake_codes(v, grid), x)
    expected, expected_grad, _ = gradient(grid.codes, x)
    assert torch.equal(codes, expected)
    torch.testing.assert_close(code_grad, expected_grad, rtol=1e-6, atol=0)


@settings(deadline=None)
@given(grid=grids, seed=st.integers(0, 999))
def test_gradient_equals_float64_model(grid, seed):
    """Written with masks in float64 on the float32 product, which is what decides which side of an end a value lies."""
    x = around_the_range(grid, seed)
    _, grad, up = gradient(lambda v: fake_quantise(v, grid), x)
    v = (x * grid.scale).double()
    inside = (v >= grid.lo) & (v <= grid.hi)
    assert torch.equal(grad.double(), up.double() * inside)
    _, grad, up = gradient(lambda v: fake_quantise(v, grid, round_first=True), x)
    rounded = v.round()
    assert torch.equal(grad.double(), up.double() * ((rounded >= grid.lo) & (rounded <= grid.hi)))


def test_ends_are_inclusive():
    grid = Grid(8, True, 64)
    x = torch.tensor([-128.0, -128.001, 127.0, 127.001, 127.5, 128.0]) / 64
    assert gradient(lambda v: fake_quantise(v, grid), x)[1].ne(0).tolist() == [True, False, True, False, False, False]
    first = gradient(lambda v: fake_quantise(v, grid, round_first=True), x)[1]
    assert first.ne(0).tolist() == [True, True, True, True, False, False]  # 127.5 rounds to 128, out of range


def test_other_rule_and_low_precision():
    grid = Grid(8, True, 1)
    x = torch.tensor([-1.74, -1.75, 0.5])
    assert fake_codes(x, grid, wtm2101).tolist() == [-1, -2, 1]
    for dtype in (torch.float16, torch.bfloat16):
        out, grad, up = gradient(lambda v: fake_quantise(v, Grid(8, True, 64)), torch.tensor([0.49, 3.0]).to(dtype))
        assert out.dtype == dtype
        assert grad.tolist() == [up[0].item(), 0]


def test_input_is_left_alone_and_saved_by_reference():
    x = torch.tensor([0.3, 9.0], requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        fake_quantise(x, Grid(8, True, 64)).sum().backward()
    assert kept == [x.data_ptr()]
    assert torch.equal(x.detach(), torch.tensor([0.3, 9.0]))


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("round_first", [False, True])
@settings(deadline=None)
@given(
    scale=st.floats(2**-6, 500, width=16),
    lo=st.integers(-300, 0),
    width=st.integers(0, 300),
    offset=st.integers(0, 255),
)
def test_clip_window_equals_brute_force(number, round_first, scale, lo, width, offset):
    """Walk the floats around each end: exactly those strictly between the two returned values pass the clip."""
    hi = lo + width
    dtype = {np.float16: torch.float16, np.float32: torch.float32, np.float64: torch.float64}[number]
    below, above = clip_window(scale, lo, hi, float(offset), round_first, dtype)
    for end in (below, above):
        x = number(end)
        for _ in range(3):
            x = np.nextafter(x, number(-np.inf))
        for _ in range(7):
            v = number(x * number(scale)) + number(offset)
            v = np.rint(v) if round_first else v
            assert (lo <= v <= hi) == (below < x < above), (x, v)
            x = np.nextafter(x, number(np.inf))


def test_clip_window_without_an_end():
    """A range wider than the dtype passes every finite value."""
    below, above = clip_window(1.0, -(10**6), 10**6, dtype=torch.float16)
    assert (below, above) == (-float("inf"), float("inf"))

"""The parts of the fast path: sums in pieces and max pooling, equal to int64 and to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.program import ops
from chipfit.program.core.fast import extremes, float32_sums, max_pool, pieces

EXACT = 2**24


def codes(shape: tuple[int, ...], lo: int, hi: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(lo, hi + 1, shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(-300, 0), st.integers(0, 300), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_extremes_are_reached_and_never_passed(lo: int, hi: int, seed: int) -> None:
    weight = codes((3, 2, 2, 2), -255, 255, seed)
    highest, lowest = extremes(weight, lo, hi)
    x_up, x_down = (torch.where(weight > 0, a, b) for a, b in ((hi, lo), (lo, hi)))
    assert torch.equal(highest, (x_up * weight).sum((2, 3)))
    assert torch.equal(lowest, (x_down * weight).sum((2, 3)))


def test_pieces_at_the_bound_and_one_above() -> None:
    weight = torch.full((1, 64), 64)
    assert pieces(weight, 0, 4096, 8) == [slice(0, 64)]  # 64 * 64 * 4096 is 2^24
    weight[0, 63] += 1
    assert pieces(weight, 0, 4096, 8) == [slice(0, 32), slice(32, 64)]


def test_the_sign_of_the_codes_decides() -> None:
    weight = torch.full((1, 600, 1, 1), 127)
    weight[:, ::2] *= -1
    assert pieces(weight, 0, 255, 8) == [slice(0, 600)]  # at most 300 * 127 * 255 on either side
    assert pieces(weight, -255, 255, 8) == [slice(0, 300), slice(300, 600)]


def test_too_many_or_too_narrow_pieces_are_none() -> None:
    assert pieces(torch.full((1, 600), 127), 0, 4095, 64) is None
    assert pieces(torch.full((1, 96), 255), 0, 1023, 64) is None
    assert pieces(torch.full((1, 4, 50, 50), 255), 0, 255, 1) is None


# 9 * 255 * 255 a channel: 28 channels stay within 2^24, 29 do not; 9 * 28 * 8 channels are more than eight pieces
@pytest.mark.parametrize(("inputs", "count"), [(28, 1), (29, 2), (57, 3), (224, 8), (225, None)])
@pytest.mark.parametrize("worst", [True, False])
def test_convolutions_equal_int64(inputs: int, count: int | None, worst: bool) -> None:
    weight = torch.full((4, inputs, 3, 3), 255)
    x = torch.full((2, inputs, 4, 5), 255)
    if not worst:
        weight, x = codes((4, inputs, 3, 3), -128, 127) * 2 + 1, codes((2, inputs, 4, 5), 0, 255)
        weight[0] = 255
    op = ops.Accumulate("conv", "w", 255, (2, 1), (1, 1))
    cuts = pieces(weight, 0, 255, 8)
    assert (None if cuts is None else len(cuts)) == count
    expected = F.conv2d(x, weight, None, (2, 1), (1, 2)).to(torch.float32)
    found = float32_sums(op, weight, 0, (1, 2))(x.to(torch.float32))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("inputs", "count"), [(258, 1), (259, 2), (1000, 4), (2064, 8), (2065, None)])
def test_matrix_products_equal_int64(inputs: int, count: int | None) -> None:
    weight, x = codes((3, inputs), -128, 127) * 2 + 1, codes((2, 5, inputs), -255, 255)
    weight[0], x[0, 0] = 255, 255
    weight[1], x[0, 1] = -255, -255
    op = ops.Accumulate("linear", "w", 255)
    cuts = pieces(weight, -255, 255, 64)
    assert (None if cuts is None else len(cuts)) == count
    assert torch.equal(float32_sums(op, weight, -255, ())(x.float()), F.linear(x, weight).to(torch.float32))


@pytest.mark.parametrize("groups", [2, 4])
def test_pieces_of_groups_equal_int64(groups: int) -> None:
    weight, x = torch.full((8, 96, 1, 3), 255), codes((2, 96 * groups, 2, 6), 250, 255)
    weight[1:] = codes((7, 96, 1, 3), -255, 255)
    assert len(pieces(weight, 0, 255, 8) or ()) == 2
    op = ops.Accumulate("conv", "w", 255, (1, 1), (1, 1), groups)
    found = float32_sums(op, weight, 0, (0, 0))(x.float())
    assert torch.equal(found, F.conv2d(x, weight, groups=groups).to(torch.float32))


def test_a_border_of_a_sequence() -> None:
    weight, x = codes((4, 64, 3), -255, 255), codes((2, 64, 9), -255, 255)
    op = ops.Accumulate("conv", "w", 255, (2,), (2,))
    found = float32_sums(op, weight, -255, (2,))(x.float())
    assert torch.equal(found, F.conv1d(x, weight, None, 2, 2, 2).to(torch.float32))


def test_two_pieces_are_rounded_once_to_float32() -> None:
    """2^24 + 1 and 2^24 + 3 lie between two float32 numbers; each goes to the even one, as int64 does."""
    weight = torch.tensor([[4096] * 4096 + [1] + [0] * 4095, [4096] * 4096 + [3] + [0] * 4095])
    found = float32_sums(ops.Accumulate("linear", "w", 1), weight, 0, ())(torch.ones(1, 8192))
    assert found.tolist() == [[EXACT, EXACT + 4]]


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.booleans(), st.booleans(), st.integers(1, 2), st.data()
)
@settings(max_examples=80, deadline=None)
def test_max_pool_is_torchs(kernel: int, stride: int, dilation: int, pad: bool, ceil: bool, axes: int, data) -> None:
    size = [data.draw(st.integers(9, 12)) for _ in range(axes)]
    x = codes((2, 3, *size), -128, 127, data.draw(st.integers(0, 2**32))).float()
    other = data.draw(st.integers(1, 4)) if axes == 2 else kernel
    kernels = (kernel, other)[:axes]
    padding = tuple(k // 2 * pad for k in kernels)
    op = ops.MaxPool(kernels, (stride,) * axes, padding, (dilation,) * axes, ceil)
    pool = F.max_pool1d if axes == 1 else F.max_pool2d
    before = x.clone()
    assert torch.equal(max_pool(x, op), pool(x, kernels, stride, padding, dilation, ceil))
    assert torch.equal(x, before)

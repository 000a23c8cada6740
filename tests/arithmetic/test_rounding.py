"""Rounding rules against exact integer arithmetic, and their straight-through gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.arithmetic.rounding import floor, half_even, straight_through
from chipfit.chips.witmem.rounding import RULES, rule_named, wtm2101
from chipfit.errors import UnknownOptionError


def wtm2101_exact(accumulator, g):
    """The array's rule in integers: floor(v + 1/2) from zero on, trunc(v - 1/4) below; G is a positive int."""
    if accumulator >= 0:
        return (2 * accumulator + g) // (2 * g)
    return -((4 * -accumulator + g) // (4 * g))


@settings(deadline=None)
@given(st.integers(-(2**24), 2**24), st.sampled_from([2**k for k in range(14)]))
def test_wtm2101_equals_integer_model(accumulator, g):
    got = wtm2101(torch.tensor(float(accumulator), dtype=torch.float64) / g)
    assert int(got) == wtm2101_exact(accumulator, g)


@settings(deadline=None)
@given(st.integers(-300 * 256, 300 * 256), st.sampled_from([256, 1024, 8192]))
def test_wtm2101_float32_equals_integer_model_in_the_output_range(accumulator, g):
    """float32 is enough for every output that is not saturated, since G is a power of two."""
    assert int(wtm2101(torch.tensor(float(accumulator)) / g)) == wtm2101_exact(accumulator, g)


def test_wtm2101_around_every_edge():
    v = torch.tensor([0.0, 0.4999, 0.5, 1.5, -0.25, -0.7499, -0.75, -0.7501, -1.74, -1.75, -1.8, -127.75, 127.49])
    expected = [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, -1.0, -1.0, -1.0, -2.0, -2.0, -128.0, 127.0]
    assert wtm2101(v).tolist() == expected


@settings(deadline=None)
@given(st.integers(-(2**20), 2**20), st.integers(1, 64))
def test_half_even_equals_python(numerator, denominator):
    value = torch.tensor(numerator / denominator, dtype=torch.float64)
    assert int(half_even(value)) == round(value.item())


@settings(deadline=None)
@given(st.floats(-1e6, 1e6))
def test_floor_equals_python(value):
    assert int(floor(torch.tensor(value, dtype=torch.float64))) == value // 1


@pytest.mark.parametrize("rule", [half_even, wtm2101, floor])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rules_give_whole_numbers_near_the_value_in_its_dtype(rule, dtype):
    v = torch.linspace(-9.3, 9.1, 101).to(dtype)
    out = rule(v)
    assert out.dtype == dtype
    assert torch.equal(out, out.trunc())
    assert (out - v).abs().max() < 1
    assert torch.equal(rule(out), out)  # whole numbers stay


@pytest.mark.parametrize("rule", [half_even, wtm2101, floor])
def test_straight_through_keeps_the_value_and_passes_the_gradient(rule):
    v = torch.tensor([-1.75, -0.5, 0.0, 0.5, 2.5], requires_grad=True)
    out = straight_through(rule)(v)
    assert torch.equal(out, rule(v.detach()))
    up = torch.tensor([1.0, -2.0, 3.0, 0.5, 7.0])
    out.backward(up)
    assert torch.equal(v.grad, up)


def test_rules_by_name():
    assert {"witin_nn": half_even, "wtm2101": wtm2101} == RULES
    with pytest.raises(UnknownOptionError, match="Did you mean 'wtm2101'") as caught:
        rule_named("wtm2102")
    assert isinstance(caught.value, (TypeError, ValueError, KeyError))
    assert not str(caught.value).startswith('"')  # a KeyError would show the repr

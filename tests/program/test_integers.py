"""The integer arithmetic against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from chipfit.chips.witmem.program.reference import wtm2101_quotient
from chipfit.program.integers import half_even_quotient, integer_root, shifted

NUMBERS = st.integers(-(2**40), 2**40)


@given(NUMBERS, st.integers(1, 2**20))
def test_quotient_is_the_half_even_rounding_of_the_fraction(a: int, b: int) -> None:
    assert half_even_quotient(torch.tensor(a), b).item() == round(Fraction(a, b))
    assert half_even_quotient(torch.tensor(a), torch.tensor(b)).item() == round(Fraction(a, b))


@given(st.integers(-(2**20), 2**20), st.integers(-60, 20))
def test_shift_is_the_half_even_rounding_of_the_product(v: int, bits: int) -> None:
    assert shifted(torch.tensor(v), bits).item() == round(Fraction(v) * Fraction(2) ** bits)


def test_shift_beyond_the_register_gives_zero() -> None:
    assert shifted(torch.tensor([2**40, -(2**40)]), -80).tolist() == [0, 0]


@given(NUMBERS, st.integers(-3, 20))
def test_array_rounding_is_that_of_the_specification(total: int, log2_g: int) -> None:
    v = Fraction(total) / Fraction(2) ** log2_g
    want = math.floor(v + Fraction(1, 2)) if v >= 0 else math.trunc(v - Fraction(1, 4))
    assert wtm2101_quotient(torch.tensor(total), log2_g).item() == want


@given(st.integers(0, 2**50))
def test_root_is_the_integer_root(v: int) -> None:
    assert integer_root(torch.tensor(v)).item() == math.isqrt(v)


def test_root_just_below_perfect_squares() -> None:
    m = torch.arange(1, 1 << 16)
    assert torch.equal(integer_root(m * m - 1), m - 1)
    assert torch.equal(integer_root(m * m), m)

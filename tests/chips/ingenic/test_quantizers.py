"""Rounding, grids and gradients where the recorded cases are thin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.chips.ingenic import quantizers
from chipfit.chips.ingenic.quantizers import quantize_feature, quantize_weight, shortcut, tround


def tround_by_words(v):
    """Spec section 1.1, sentence by sentence, in float32."""
    a = np.abs(v)
    f = np.floor(a)
    even = np.where(f % 2 == 0, f, f + 1)
    end = f + np.float32(0.501)  # a float32 sum
    return np.copysign(np.where(a < f + np.float32(0.5), f, np.where(a >= end, f + 1, even)), v)


def test_the_end_of_the_band_is_a_float32_sum():
    """Spec section 1.1: the float after 116.50099 is not below float32(116 + 0.501)."""
    v = torch.tensor([116.50099, 116.50099945, 0.5009999, 0.501, 1.50099945, 2047.5009])
    assert tround(v).tolist() == [116, 117, 0, 1, 2, 2048]
    assert np.array_equal(tround(v).numpy(), tround_by_words(v.numpy()))


@pytest.mark.parametrize("edge", [0.5, 0.501, 1.0])
def test_every_float_around_the_tie_band(edge):
    whole = np.concatenate([np.arange(300), [511, 1023, 2046, 4094]]).astype(np.float32)
    steps = np.arange(-200, 201, dtype=np.int32)
    v = ((whole + np.float32(edge)).view(np.int32)[:, None] + steps).view(np.float32)
    v = np.concatenate([v, -v])
    assert np.array_equal(tround(torch.from_numpy(v)).numpy(), tround_by_words(v))


def test_every_float_of_the_finest_band():
    first, last = (np.float32(x).view(np.int32) for x in (0.4999, 0.5011))
    v = np.arange(first, last, dtype=np.int32).view(np.float32)
    assert np.array_equal(tround(torch.from_numpy(v)).numpy(), tround_by_words(v))


@given(st.lists(st.floats(-5000, 5000, width=32), min_size=1, max_size=50))
def test_rounding_by_words(values):
    v = np.array(values, np.float32)
    assert np.array_equal(tround(torch.from_numpy(v)).numpy(), tround_by_words(v))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize(("low", "target"), [(0.0, "T40"), (-6.0, "T40"), (-6.0, "Txx")])
def test_pieces_and_layouts_change_nothing(monkeypatch, layout, low, target):
    x = torch.randn(3, 8, 5, 7) * 4
    whole = quantize_feature(x, 8, low, 6.0, target)
    monkeypatch.setattr(quantizers, "_CHUNK", 64)
    y = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    if layout == "transposed":
        y = x.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(quantize_feature(y, 8, low, 6.0, target), whole)


@pytest.mark.parametrize("shape", [(16, 3, 3, 3), (40, 30), (2, 700, 1, 1)])
@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_weight_in_pieces(monkeypatch, shape, target):
    w = torch.randn(shape)
    whole, scale = quantize_weight(w, 4, 3.0, target)
    monkeypatch.setattr(quantizers, "_CHUNK", 100)
    pieces, same = quantize_weight(w, 4, 3.0, target)
    assert torch.equal(pieces, whole)
    assert torch.equal(scale, same)


@given(bits=st.integers(2, 8), target=st.sampled_from(["T40", "Txx", "T02"]), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_weight_is_an_integer_times_its_scale(bits, target, seed):
    w = torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    q, scale = quantize_weight(w, bits, 3.0, target)
    codes = q / scale.view(-1, 1, 1, 1)
    whole = codes.round()
    assert (codes - whole).abs().max() < 1e-3
    if target == "Txx":
        assert whole.min() >= -(2 ** (bits - 1))
        assert whole.max() <= 2 ** (bits - 1) - 1
    else:
        assert whole.abs().max() <= 2**bits - 1
        assert (whole % 2 == 1).all()


def test_clipped_channels_keep_their_peak():
    """A channel whose outlier is clipped is stretched back to the outlier."""
    w = torch.cat([torch.full((1, 20), 0.1), torch.full((1, 20), -0.1)]).view(2, 20, 1, 1)
    w[0, 0] = 5.0
    q, _ = quantize_weight(w, 8, 1.0, "T40")
    assert q[0, 0].item() == pytest.approx(5.0)
    assert q[1].abs().max().item() == pytest.approx(0.1)


@pytest.mark.parametrize(("target", "expected"), [("T40", -1e-4), ("Txx", -0.05)])
def test_all_zero_channel_becomes_the_lowest_code(target, expected):
    """Degenerate, but what the vendor computes: spec section 1.3."""
    w = torch.randn(2, 4, 3, 3)
    w[1] = 0
    assert torch.allclose(quantize_weight(w, 8, 3.0, target)[0][1], torch.tensor(expected))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_statistics_survive_a_large_mean(offset):
    w = torch.randn(50, 50) * 0.1 + offset
    mean, deviation = quantizers._statistics(w)
    assert mean == pytest.approx(w.double().mean().item(), rel=1e-5, abs=1e-6)
    assert deviation == pytest.approx(w.double().std(correction=0).item(), rel=1e-3)


def test_gradient_passes_at_both_ends_and_not_beyond():
    x = torch.tensor([-6.000001, -6.0, 6.0, 6.000001], requires_grad=True)
    quantize_feature(x, 8, -6.0, 6.0, "T40").sum().backward()
    assert x.grad.tolist() == pytest.approx([0, 1 / 6, 1 / 6, 0])


def test_32_bits_pass_the_value_and_mask_the_gradient():
    """A quirk of the vendor's kit: spec section 1.2."""
    x = torch.tensor([-1.0, 3.0, 9.0], requires_grad=True)
    y = quantize_feature(x, 32, 0.0, 6.0, "T40")
    assert y.tolist() == [-1.0, 3.0, 9.0]
    y.sum().backward()
    assert x.grad.tolist() == pytest.approx([0, 1 / 6, 0])


def test_shortcut_gradients():
    """Txx passes the whole gradient to both inputs, the T40 family that of its quantiser: spec section 1.7."""
    for target, negative, expected in [("Txx", False, 1.0), ("T40", False, 0.5), ("T40", True, 0.5)]:
        a = torch.full((3,), 0.25, requires_grad=True)
        b = torch.full((3,), 0.5, requires_grad=True)
        shortcut(a, b, 8, 6.0, negative, target).sum().backward()
        assert a.grad.tolist() == b.grad.tolist() == [expected] * 3


def test_unsigned_codes_above_127_do_not_wrap():
    """The vendor's CPU code wraps them in int8."""
    one = torch.ones(4)
    assert torch.equal(shortcut(one, one, 8, 2.0, False, "Txx"), one)


@pytest.mark.parametrize("target", ["T31", "T33", "t40", ""])
def test_unknown_targets_are_refused(target):
    for call in (
        lambda: quantize_feature(torch.ones(1), 8, 0.0, 6.0, target),
        lambda: quantize_weight(torch.ones(1, 1), 8, 3.0, target),
        lambda: shortcut(torch.ones(1), torch.ones(1), 8, 2.0, False, target),
    ):
        with pytest.raises(ValueError, match="unknown target"):
            call()

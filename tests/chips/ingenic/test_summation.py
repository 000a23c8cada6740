"""The vendor's order of summation: the same bits as one addition after the other, and the default of every layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from chipfit import chip, convert
from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic import quantizers, summation, use_vendor_statistics
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight, weight_gain
from chipfit.chips.ingenic.quantizers import quantize_weight
from chipfit.chips.ingenic.summation import sequential_sum, vendor_statistics

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


def one_by_one(values):
    """A Python loop of float32 additions."""
    total = np.float32(0)
    for number in values:
        total = total + number
    return float(total)


def statistics_by_words(w):
    """Spec section 1.3 in numpy; `accumulate` adds one after the other."""
    flat, count = w.reshape(-1).numpy(), np.float32(w.numel())
    mean = np.add.accumulate(flat)[-1] / count
    variance = np.add.accumulate((flat - mean) ** 2)[-1] / count
    return float(mean), float(np.sqrt(variance))


@pytest.fixture(params=["window", "accumulate"])
def way(request, monkeypatch):
    if request.param == "accumulate":
        monkeypatch.setattr(summation, "_window_is_sequential", lambda: False)


@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=60))
def test_a_sum_is_one_addition_after_the_other(values):
    values = np.array(values, np.float32)
    assert sequential_sum(torch.from_numpy(values)) == one_by_one(values)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [1, 7, 65_535, 65_536, 65_537, 300_000])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_statistics_are_those_of_the_words(size, mean):
    w = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 0.05 + mean
    assert sequential_sum(w) == float(np.add.accumulate(w.numpy())[-1])
    assert vendor_statistics(w) == statistics_by_words(w)


def test_this_build_of_torch_adds_a_window_in_order():
    """Else the slower way is taken, with the same result."""
    assert summation._window_is_sequential()


def test_the_order_of_a_weight_is_that_of_its_indices():
    w = torch.randn(40, 30, 3, 3, generator=torch.Generator().manual_seed(0))
    last = w.contiguous(memory_format=torch.channels_last)
    assert vendor_statistics(last) == vendor_statistics(w) == statistics_by_words(w)


def clipped_by_words(w, bits, factor):
    """Weight codes of the T40 family in numpy, from the statistics in words."""
    mean, deviation = statistics_by_words(w)
    low, high = np.float32(mean - factor * deviation), np.float32(mean + factor * deviation)
    rows = w.reshape(w.shape[0], -1).numpy()
    v = np.clip(rows, low, high)
    n = np.float32(2**bits - 1)
    u = (v / np.abs(v).max(1, keepdims=True) + np.float32(1)) * (n / 2)
    k = np.floor(u)
    up = (u >= k + np.float32(0.501)) | ((u - k >= 0.5) & (k % 2 == 1))
    return 2 * (k + up) - n


@given(
    spread=st.sampled_from([0.9, 1.0, 1.02, 1.1, 1.5]),
    factor=st.sampled_from([1.0, 1.7, 1.8, 3.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_codes_are_those_of_the_words_whether_something_is_clipped_or_not(spread, factor, seed):
    """Uniform weights, whose largest are sqrt(3) deviations, some stretched: at the edge of the clip window too."""
    w = torch.rand(8, 20, 3, 3, generator=torch.Generator().manual_seed(seed)) - 0.45
    w[0] *= spread
    codes, _ = quantizers.quantise_rows(w, 8, factor, has_zero=False, sequential=True, as_codes=True)
    assert np.array_equal(codes.reshape(8, -1).numpy(), clipped_by_words(w, 8, factor))


def test_statistics_are_not_summed_where_nothing_can_be_clipped(monkeypatch):
    def refuse(w):
        raise AssertionError("summed")

    monkeypatch.setattr(quantizers, "vendor_statistics", refuse)
    w = torch.rand(64, 64, 3, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    quantize_weight(w, 8, 3.0, "T40")
    with pytest.raises(AssertionError, match="summed"):
        quantize_weight(w, 8, 1.7, "T40")


def clipped_conv():
    torch.manual_seed(0)
    conv = ops.Conv2D(256, 256, padding=1, target_device="T40", **Q8)
    nn.init.normal_(conv.Conv2d.weight, 0.02, 0.05)
    return conv


def test_the_vendor_s_order_is_the_default_and_can_be_turned_off():
    conv = clipped_conv()
    weight, quantiser = conv.Conv2d.weight.detach(), conv.Conv2d.QuantizeWeight
    codes, _ = quantiser.codes(weight)
    assert np.array_equal(codes.reshape(256, -1).numpy(), clipped_by_words(weight, 8, 3.0))
    assert torch.equal(quantiser(weight), quantize_weight(weight, 8, 3.0, "T40")[0])
    use_vendor_statistics(conv, False)
    other, _ = quantiser.codes(weight)
    assert 0 < (other != codes).sum() < 0.01 * codes.numel()
    assert torch.equal(quantiser(weight), quantize_weight(weight, 8, 3.0, "T40", sequential=False)[0])
    use_vendor_statistics(conv)
    assert torch.equal(quantiser.codes(weight)[0], codes)


@pytest.mark.parametrize("enabled", [True, False])
def test_what_is_computed_beside_a_layer_follows_its_choice(enabled, monkeypatch):
    """Calibration compares a weight with what its layer makes of it."""
    seen = []
    monkeypatch.setattr(
        "chipfit.chips.ingenic.operators.blocks.quantize_weight",
        lambda *given, sequential: seen.append(sequential) or quantize_weight(*given, sequential=sequential),
    )
    conv = clipped_conv()
    use_vendor_statistics(conv, enabled)
    weight_gain(conv.Conv2d.weight, conv.Conv2d.QuantizeWeight)
    assert seen == [enabled]


def test_converted_networks_have_it_too():
    net = convert(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU()), chip("t40"), torch.rand(1, 3, 8, 8))
    quantisers = [module for module in net.modules() if isinstance(module, QuantizeWeight)]
    assert quantisers and all(q.sequential for q in quantisers)


def test_old_pickles_have_the_vendor_s_order():
    assert QuantizeWeight.__new__(QuantizeWeight).sequential

"""Evaluation on integer codes: exact where float32 alone would not be, and the float path where there are no codes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.devices import device
from chipfit.chips.ingenic.exact import InputCodes, exact_sum, input_codes, weight_codes
from chipfit.chips.ingenic.operators.features import Feature
from chipfit.chips.ingenic.program import reference as interpreter_ingenic
from chipfit.chips.ingenic.quantizers import quantize_weight, tround

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


@given(st.integers(2, 8), st.sampled_from(["T40", "Txx"]), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_weight_codes_times_scale_is_the_weight(bits, target, linear, seed):
    w = torch.randn((6, 5) if linear else (6, 5, 3, 3), generator=torch.Generator().manual_seed(seed))
    codes, scale = weight_codes(w, bits, 3.0, target)
    quantised, size = quantize_weight(w, bits, 3.0, target)
    assert torch.equal(codes * scale.view(-1, *[1] * (w.dim() - 1)), quantised)
    assert torch.equal(scale, size)
    limit = 2**bits - 1 if target == "T40" else 2 ** (bits - 1)
    assert torch.equal(codes, codes.round()) and codes.abs().max() <= limit
    if target == "T40":
        assert bool((codes % 2 == 1).all())


@pytest.mark.parametrize(("target", "signed"), [("T40", False), ("T40", True), ("Txx", False), ("Txx", True)])
def test_sums_beyond_float32_are_exact(target, signed):
    """1,152 products of 8-bit codes pass 2^24: the order of summation would decide the last digits in float32."""
    torch.manual_seed(0)
    conv = ops.Conv2D(
        128, 32, padding=1, enable_bias=False, activation_fn=None, last_layer=True, target_device=target, **Q8
    )
    n = 128.0 if target == "Txx" and signed else 255.0
    codes = (
        torch.randint(200, 256, (1, 128, 4, 4)).double()
        if not signed
        else torch.randint(-60, 60, (1, 128, 4, 4)) * 2.0 + 1
    )
    codes = codes.clamp(-n, n - 1) if target == "Txx" and signed else codes
    x = ((codes + n).float() / n - 1 if target == "T40" and signed else codes.float() / n).float()
    with torch.no_grad():
        conv.Conv2d.weight.abs_()
        y = conv.eval()((x, 8, -1.0 if signed else 0.0))
    w, scale = weight_codes(conv.Conv2d.weight, 8, 3.0, target)
    border = -n if target == "T40" and signed else 0.0
    total = F.conv2d(F.pad(codes.double(), (1, 1, 1, 1), value=border).long(), w.long())
    assert signed or total.max() > 2**24
    assert torch.equal(y, total.float() * (scale / n).view(-1, 1, 1))


class Recorded:
    """A product that remembers the inputs and the dtype of each call."""

    def __init__(self, product):
        self.product, self.calls = product, []

    def __call__(self, x, w):
        self.calls.append((w.shape[1], w.dtype))
        return self.product(x, w)


# 9 * 255 * 255 a channel: 28 channels stay within 2^24
@pytest.mark.parametrize(
    ("inputs", "calls"), [(28, [28]), (56, [28] * 2), (112, [28] * 4), (224, [28] * 8), (29, None), (232, None)]
)
@pytest.mark.parametrize("signed", [False, True])
def test_worst_sums_are_exact_in_pieces(inputs, calls, signed):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (4, inputs, 3, 3), generator=generator) * 2 + 1
    x = torch.randint(-255 if signed else 0, 256, (2, inputs, 4, 4), generator=generator)
    weight[0], weight[1], x[0] = 255, -255, 255
    product = Recorded(F.conv2d)
    scale = torch.ones(4)
    y = exact_sum(product, InputCodes(x.float(), 1.0, 255, signed), weight.float(), scale, None)
    assert torch.equal(y, F.conv2d(x, weight).float())
    wanted = [(inputs, torch.float64)] if calls is None else [(size, torch.float32) for size in calls]
    assert product.calls == wanted


def test_the_sign_of_a_feature_halves_the_largest_sum():
    weight = torch.full((2, 96, 1, 7), 255.0)
    weight[:, ::2] *= -1
    x = torch.randint(0, 256, (1, 96, 1, 9), generator=torch.Generator().manual_seed(0))
    for signed, calls in ((False, 2), (True, 3)):
        product = Recorded(F.conv2d)
        y = exact_sum(product, InputCodes(x.float(), 1.0, 255, signed), weight, torch.ones(2), None)
        assert torch.equal(y, F.conv2d(x, weight.long()).float())
        assert len(product.calls) == calls


@pytest.mark.parametrize("groups", [2, 3])
def test_groups_in_pieces(groups):
    generator = torch.Generator().manual_seed(0)
    weight = torch.full((6, 64, 3, 3), 255)
    weight[1:] = torch.randint(-255, 256, (5, 64, 3, 3), generator=generator)
    x = torch.randint(250, 256, (2, 64 * groups, 3, 3), generator=generator)
    product = Recorded(lambda x, w: F.conv2d(x, w, groups=groups))
    y = exact_sum(product, InputCodes(x.float(), 1.0, 255, False), weight.float(), torch.ones(6), None)
    assert torch.equal(y, F.conv2d(x, weight, groups=groups).float())
    assert [size for size, _ in product.calls] == [16] * 4


@pytest.mark.parametrize(("inputs", "calls"), [(256, 1), (512, 2), (1024, 4), (2048, 8), (4096, 1), (70_000, 1)])
def test_matrix_products_in_pieces(inputs, calls):
    weight, x = torch.full((2, inputs), 255), torch.full((2, 3, inputs), 255)
    x[0, 0, ::3] = 1
    product = Recorded(F.linear)
    y = exact_sum(
        product, InputCodes(x.float(), 1.0, 255, False), weight.float(), torch.ones(1), torch.tensor([0.5, 2])
    )
    assert torch.equal(y, F.linear(x, weight).float() + torch.tensor([0.5, 2]))
    assert product.calls == [(inputs // calls, torch.float64 if inputs > 2048 else torch.float32)] * calls


def test_gradients_in_pieces_are_those_of_one_product():
    generator = torch.Generator().manual_seed(0)
    weight = torch.full((4, 64, 3, 3), 255.0).requires_grad_()
    x = torch.randint(0, 256, (2, 64, 5, 5), generator=generator).float().requires_grad_()
    upstream = torch.randint(-3, 4, (2, 4, 3, 3), generator=generator).float()
    found = []
    for product in (
        lambda: exact_sum(F.conv2d, InputCodes(x, 1.0, 255, False), weight, torch.ones(1), None),
        lambda: F.conv2d(x, weight),
    ):
        x.grad = weight.grad = None
        product().backward(upstream)
        found.append([x.grad, weight.grad])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


def test_codes_of_a_feature_that_is_not_what_it_says():
    t40 = device("T40", "test")
    x = torch.tensor([-1.0, 0.2, 1.0])
    negative = input_codes(x, Feature(x, 4, 0.0, True), t40)
    assert negative.codes.tolist() == [-15.0, 3.0, 15.0]
    assert negative.signed
    for wrong in (1.2, float("nan"), float("inf")):
        assert input_codes(torch.tensor([0.2, wrong]), Feature(x, 4, 0.0, True), t40) is None
    large = torch.zeros(3, 1 << 16)
    large[2, 5] = 0.21
    assert input_codes(large, Feature(large, 4, 0.0, True), t40) is None


def test_gradients_in_evaluation_are_those_of_the_plain_convolution():
    torch.manual_seed(0)
    conv = ops.Conv2D(32, 32, padding=1, enable_batch_norm=True, target_device="T40", **Q8).eval()
    x = (torch.randint(0, 256, (2, 32, 5, 5)) / 255).requires_grad_()
    found = []
    for exact in (True, False):
        conv.zero_grad()
        x.grad = None
        if not exact:
            conv._codes = lambda x, feature: None
        conv((x, 8, 0.0))[0].square().sum().backward()
        found.append([x.grad, conv.Conv2d.weight.grad, conv.Conv2d.bias.grad])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_an_input_off_its_grid_is_convolved_as_it_is():
    torch.manual_seed(0)
    conv = ops.Conv2D(32, 32, enable_bias=False, activation_fn=None, last_layer=True, target_device="T40", **Q8).eval()
    x = torch.rand(1, 32, 5, 5)
    expected = F.conv2d(x, conv.Conv2d.QuantizeWeight(conv.Conv2d.weight))
    assert torch.equal(conv((x, 8, 0.0)), expected)


def around_the_band():
    """Every float32 within a few steps of the end of each code's ties."""
    end = torch.arange(4096) + torch.tensor(0.501)
    steps = torch.arange(-6, 7).unsqueeze(1)
    return (end.view(torch.int32) + steps).to(torch.int32).view(torch.float32).flatten()


@pytest.mark.slow
def test_both_roundings_agree_on_a_dense_sweep():
    v = torch.arange(-4096, 4096, 1 / 1024, dtype=torch.float32)
    v = torch.cat([v, v + 0.5005, torch.linspace(-20, 20, 400_001), around_the_band()])
    assert torch.equal(tround(v).long(), interpreter_ingenic.tround(v))


def test_a_learned_clip_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    conv = ops.Conv2D(32, 32, auto_threshold=True, clip_max_value=1.7, target_device="T40", **Q8).eval()
    x = torch.randint(0, 256, (7, 32, 5, 5)) / 255
    one = torch.cat([conv((part, 8, 0.0))[0] for part in x.split(1)])
    assert torch.equal(one, conv((x, 8, 0.0))[0])

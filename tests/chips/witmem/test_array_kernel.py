"""The fast kernel gives the rule's codes, and its gradients, on random layers of every kind."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.chips.witmem.array.kernel import _fused, array_forward
from chipfit.chips.witmem.array.numbers import ArraySpec, Geometry
from chipfit.chips.witmem.array.rule import array_rule
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.noise import NORMAL

FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift


@st.composite
def layers(draw, noisy):
    """A random layer: its numbers, its linear map, and tensors that reach and pass the ends of every range."""
    kind = draw(st.sampled_from(["linear", "conv1d", "conv2d", "wide_conv2d", "conv_transpose"]))
    direct = kind.endswith(("conv1d", "conv2d", "conv_transpose"))
    negatives = [FALSE, PN] if kind == "conv_transpose" else [FALSE, PN, SHIFT]
    powers = draw(st.booleans()) or noisy
    scale = st.sampled_from([4.0, 16.0, 32.0, 128.0] if powers else [3.0, 7.5, 30.0, 100.0])
    spec = ArraySpec(
        scale_x=draw(scale),
        scale_weight=draw(scale),
        scale_y=draw(st.sampled_from([1.0, 4.0, 8.0] if powers else [0.7, 3.0, 8.0])),
        x_bits=draw(st.sampled_from([4, 8, 10])) if direct else draw(st.sampled_from([5, 8])),
        y_bits=draw(st.integers(4, 12)),
        weight_bits=draw(st.sampled_from([4, 8])),
        negative=draw(st.sampled_from(negatives)),
        signed_input=direct and kind != "conv_transpose",
        per_pass_quotient=direct,
        shift_num=draw(st.sampled_from([0.0, 0.77, 3.0])),
        shift_limit=128 if direct else 256,
        bias_rows=draw(st.sampled_from([1, 8])),
        fp_clip=draw(st.sampled_from([None, 1.5])),
        w_clip=draw(st.sampled_from([None, 0.4])),
        rounding=draw(st.sampled_from(["witin_nn", "wtm2101"])),
        noise=NORMAL if noisy else None,
        noise_level=draw(st.sampled_from([1.0, 4.0, 9.0])) if noisy else 0.0,
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    spread = draw(st.sampled_from([0.3, 2.0])) * spec.x_range[1] / spec.scale_x
    stride, padding, dilation = draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    if kind == "linear":
        lin, x_shape, w_shape, out = Geometry("linear"), draw(st.sampled_from([(5, 7), (2, 3, 7)])), (6, 7), 6
    elif kind == "conv1d":
        lin = Geometry("conv", (stride,), (padding,), (dilation,), (), 1)
        x_shape, w_shape, out = (2, 3, 9), (4, 3, 3), 4
    elif kind == "conv2d":
        groups = draw(st.sampled_from([1, 2]))
        lin = Geometry("conv", (stride, 1), (padding, 0), (dilation, 1), (), groups)
        x_shape, w_shape, out = (2, 4, 7, 6), (6, 4 // groups, 3, 2), 6
    elif kind == "wide_conv2d":
        lin = Geometry("conv", (stride,) * 2, (padding,) * 2, (1, 1), (), 1)
        x_shape, w_shape, out = (2, 20, 6, 5), (18, 20, 3, 3), 18
    else:
        lin = Geometry("conv_transpose", (stride,) * 2, (padding,) * 2, (dilation,) * 2, (0, 0), 1)
        x_shape, w_shape, out = (2, 4, 5, 6), (4, 5, 3, 3), 5
    x = torch.randn(x_shape, generator=generator) * spread
    x[torch.rand(x_shape, generator=generator) < 0.1] = 0.0
    weight = torch.randn(w_shape, generator=generator) * draw(st.sampled_from([0.2, 0.6])) * 128 / spec.scale_weight
    bias = torch.randn(out, generator=generator) * draw(st.sampled_from([1.0, 300.0])) * 128 / spec.product_scale
    return x, weight, bias, lin, spec


def _run(function, tensors, lin, spec, seed=0):
    tensors = [t.clone().requires_grad_() for t in tensors]
    torch.manual_seed(seed)
    y = function(*tensors, lin, spec)[0]
    up = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    y.backward(up)
    return y.detach(), [t.grad for t in tensors]


def _close(got, want, tolerance=1e-4):
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max() + 1e-6


@settings(max_examples=300, deadline=None)
@given(layers(noisy=False))
def test_kernel_equals_rule(layer):
    *tensors, lin, spec = layer
    y, grads = _run(array_forward, tensors, lin, spec)
    expected, expected_grads = _run(array_rule, tensors, lin, spec)
    assert torch.equal(y, expected)
    if spec.negative is PN and spec.rounding != "witin_nn":  # the weight's gradient is one sum there, not two
        _close([grads.pop(1)], [expected_grads.pop(1)], 1e-5)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


@settings(max_examples=100, deadline=None)
@given(layers(noisy=False))
def test_gradients_equal_float64_model(layer):
    """Float32 gradients are those of the same rule in float64 wherever the codes agree."""
    *tensors, lin, spec = layer
    if not spec.power_of_two:
        spec = dataclasses.replace(spec, scale_x=32.0, scale_weight=64.0, scale_y=8.0)
    y, grads = _run(array_forward, tensors, lin, spec)
    expected, expected_grads = _run(array_rule, [t.double() for t in tensors], lin, spec)
    assert torch.equal(y.double(), expected)
    _close([g.double() for g in grads], expected_grads, 1e-4)


@settings(max_examples=100, deadline=None)
@given(layers(noisy=True))
def test_kernel_draws_the_rule_noise(layer):
    """Equal seeds give equal noise in both forms; the codes may differ where a float sum falls on a rounding edge."""
    *tensors, lin, spec = layer
    if spec.g < 1:
        spec = dataclasses.replace(spec, scale_y=spec.product_scale / 2)
    y, grads = _run(array_forward, tensors, lin, spec)
    expected, expected_grads = _run(array_rule, tensors, lin, spec)
    gap = (y - expected).abs() * spec.scale_y
    assert gap.max() <= 1.001
    assert (gap > 0.5).float().mean() <= 0.02
    _close(grads, expected_grads, 1e-3)


def test_watch_reports_the_unrounded_maximum():
    x, w, b = torch.rand(4, 7), torch.randn(6, 7), torch.randn(6)
    spec = ArraySpec(32.0, 64.0, 8.0)
    _, largest = array_forward(x, w, b, Geometry("linear"), spec, watch=True)
    _, v = array_rule(x, w, b, Geometry("linear"), spec)
    assert largest == v.abs().max()
    noisy = dataclasses.replace(spec, noise=NORMAL, noise_level=9.0)
    assert array_forward(x, w, b, Geometry("linear"), noisy, watch=True)[1] == v.abs().max()


@pytest.mark.parametrize("saturating", [False, True])
def test_pn_convolution_with_saturating_weights_takes_two_passes(saturating):
    """A weight at the end of its range has no negative: one pass on signed codes would then be wrong."""
    spec = ArraySpec(16.0, 64.0, 8.0, negative=PN, signed_input=True, per_pass_quotient=True)
    weight = torch.full((1, 1, 1, 1), 2.5 if saturating else 1.5)
    x = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    y, _ = array_forward(x, weight, torch.zeros(1), Geometry("conv", (1, 1), (0, 0), (1, 1)), spec)
    codes = (16 * (-128 if saturating else -96), 16 * (127 if saturating else 96))
    assert torch.equal(y.flatten() * 8, torch.round(torch.tensor(codes) / 128.0))


def test_fallback_covers_what_the_kernel_does_not():
    spec = ArraySpec(30.0, 50.0, 8.0, negative=PN, signed_input=True, per_pass_quotient=True)
    assert not _fused(spec)
    assert _fused(dataclasses.replace(spec, scale_x=32.0, scale_weight=64.0))
    assert not _fused(dataclasses.replace(spec, splits=True))

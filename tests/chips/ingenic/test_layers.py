"""What layers compute, recomputed here from the spec's words; tuples, padding, state."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chipfit.chips.ingenic.operators.padding import same_pads
from chipfit.chips.ingenic.quantizers import quantize_feature, quantize_weight
from chipfit.errors import ShapeError
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


def feature(channels=32, size=6, low=0.0, bits=8):
    x = torch.rand(2, channels, size, size) * (1 - low) + low
    return x.requires_grad_(), bits, low


# One of each operator: constructor and input. Every one of them goes through the same battery below.
BATTERY = {
    "Conv2D": (lambda: ops.Conv2D(32, 32, padding=1, enable_batch_norm=True, target_device="T40", **Q8), feature),
    "Conv2D float": (lambda: ops.Conv2D(32, 32, activation_fn=ops.LeakyReLU(0.1), target_device="T40"), feature),
    "DepthwiseConv2D": (lambda: ops.DepthwiseConv2D(32, padding=1, target_device="T41", **Q8), feature),
    "ConvTranspose2D T40": (lambda: ops.ConvTranspose2D(32, 64, target_device="T40", **Q8), feature),
    "ConvTranspose2D Txx": (lambda: ops.ConvTranspose2D(32, 64, target_device="Txx", **Q8), feature),
    "Conv1D": (
        lambda: ops.Conv1D(32, 32, padding=1, target_device="X2500", **Q8),
        lambda: (torch.rand(2, 32, 9, requires_grad=True), 8, 0.0),
    ),
    "FullConnected": (
        lambda: ops.FullConnected(32, 16, enable_batch_norm=True, target_device="T40", **Q8),
        lambda: (torch.rand(4, 32, requires_grad=True), 8, 0.0),
    ),
    "FullConnected NHWC": (
        lambda: ops.FullConnected(32, 16, enable_batch_norm=True, data_format="NHWC", target_device="T40", **Q8),
        lambda: (torch.rand(4, 3, 32, requires_grad=True), 8, 0.0),
    ),
    "BatchNorm": (lambda: ops.BatchNorm(32, ops.PReLU(32), True, target_device="A1"), feature),
    "Flatten": (lambda: ops.Flatten([-1, 1152]), feature),
    "Maxpool2D": (lambda: ops.Maxpool2D(3, 3, 2, 1, target_device="T40"), lambda: feature(low=-1.0)),
    "Avgpool2D": (lambda: ops.Avgpool2D(32, padding=1, quantize=True), lambda: feature(low=-1.0)),
    "AdaptiveAvgpool2D": (lambda: ops.AdaptiveAvgpool2D(32, quantize=True, target_device="T02"), feature),
    "Unpool2D": (lambda: ops.Unpool2D(quantize=True, target_device="T40"), lambda: feature(low=-1.0)),
    "Se_Block": (lambda: ops.Se_Block(64, 2, target_device="T40", **Q8), lambda: feature(64)),
    "Channel_Split": (lambda: ops.Channel_Split([16, 16]), feature),
    "Pixel_Shuffle": (lambda: ops.Pixel_Shuffle(2), lambda: feature(128)),
    "Focus": (lambda: ops.Focus(), feature),
    "LSTM": (
        lambda: ops.LSTM(16, 8, bidirectional=True, target_device="T40", **Q8),
        lambda: (torch.rand(2, 5, 16, requires_grad=True), 8, 0.0),
    ),
    "SoftAttention": (
        lambda: ops.SoftAttention(16, 8, output_bitwidth=8),
        lambda: (torch.rand(2, 5, 16, requires_grad=True), 8, 0.0),
    ),
    "MILPoolAttention": (lambda: ops.MILPoolAttention(32, quantize=True, output_bitwidth=8), feature),
    "Shortcut": (lambda: ops.Shortcut(32, quantize=True, output_bitwidth=8), lambda: [feature(), feature(low=-1.0)]),
    "Mul": (lambda: ops.Mul(32, quantize=True, target_device="T40"), lambda: [feature(), feature()]),
    "Max": (lambda: ops.Max("X2500"), lambda: [feature(), feature()]),
    "Route": (lambda: ops.Route("T40"), lambda: [feature(), feature()]),
    "Hswish": (
        lambda: ops.Conv2D(32, 32, activation_fn=ops.Hswish(32, "T40"), target_device="T40", **Q8),
        feature,
    ),
}


def tensors(out):
    if isinstance(out, torch.Tensor):
        return [out]
    return [t for part in out for t in tensors(part)] if isinstance(out, (tuple, list)) else []


@pytest.fixture(params=BATTERY)
def pair(request):
    torch.manual_seed(1)
    build, data = BATTERY[request.param]
    return build(), data()


def test_trains(pair):
    layer, x = pair
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    out = tensors(layer(x))
    sum((t * torch.randn_like(t)).sum() for t in out).backward()
    for t in tensors(x):
        assert t.grad is not None and t.grad.isfinite().all() and t.grad.abs().sum() > 0
    if list(layer.parameters()):
        torch.optim.SGD(layer.parameters(), 0.1).step()
        assert any(not torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_evaluation_repeats_itself_and_keeps_its_state(pair):
    layer, x = pair
    layer.eval()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    first, second = tensors(layer(x)), tensors(layer(x))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_copies_pickles_and_loads(pair):
    layer, x = pair
    layer.eval()
    want = tensors(layer(x))
    loaded = pickle.loads(pickle.dumps(layer))
    fresh = copy.deepcopy(layer)
    for parameter in fresh.parameters():
        nn.init.constant_(parameter, 0.5)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for other in (loaded, fresh):
        assert all(torch.equal(a, b) for a, b in zip(tensors(other(x)), want, strict=True))


def test_inputs_at_twice_the_range(pair):
    layer, x = pair
    quantised = getattr(layer, "quantize", False) or getattr(getattr(layer, "convd", None), "quantize", False)

    def double(value):
        if isinstance(value, list):
            return [double(v) for v in value]
        return 2 * value[0].detach(), *value[1:]

    out = tensors(layer(double(x)))
    assert all(t.isfinite().all() for t in out)
    if quantised and not isinstance(layer, (ops.Unpool2D, ops.LSTM, ops.Shortcut)):  # these do not clip, or not alone
        assert out[0].abs().max() <= 1.0


def test_prints(pair):
    assert type(pair[0]).__name__ in repr(pair[0])


@pytest.mark.parametrize("target", ["T40", "Txx"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_conv_is_the_formula(target, mode):
    conv = ops.Conv2D(
        32, 64, 2, activation_fn=ops.Linear(), enable_batch_norm=True, padding=1, target_device=target, **Q8
    )
    bn = conv.BatchNorm2d.batch_norm
    nn.init.uniform_(bn.weight, -0.1, 1.0)  # some below 0.01
    nn.init.normal_(bn.running_mean)
    x, bits, low = feature(low=-1.0, size=7)
    weight = quantize_weight(conv.Conv2d.weight, 8, 3.0, target)[0]
    border = -1.0 if target == "T40" else 0.0
    y = F.conv2d(F.pad(x, same_pads(7, 7, (3, 3), (2, 2)), value=border), weight, conv.Conv2d.bias, 2)
    if mode == "train":
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    else:
        mean, var = bn.running_mean, bn.running_var
    gain = bn.weight.clamp(min=0.01) / (var + 1e-5).sqrt()
    y = (y - mean.view(-1, 1, 1)) * gain.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)
    want = quantize_feature(y, 8, -6.0, 6.0, target)
    out, out_bits, minimum = conv.train(mode == "train")((x, bits, low))
    assert (out_bits, minimum) == (8, -6.0)
    assert ((out - want).abs() > 1e-5).float().mean() < 1e-3


def test_gain_below_the_floor_gets_no_gradient():
    layer = ops.BatchNorm(32)
    with torch.no_grad():
        layer.BatchNorm2d.batch_norm.weight[:2] = torch.tensor([0.005, 0.02])
    layer(torch.randn(2, 32, 4, 4))[0].square().sum().backward()
    grad = layer.BatchNorm2d.batch_norm.weight.grad
    assert grad[0] == 0
    assert grad[1] != 0


def test_depthwise_weight_has_the_grid_of_txx():
    dw = ops.DepthwiseConv2D(32, activation_fn=None, enable_bias=False, target_device="T40", **Q8)
    x = torch.rand(1, 32, 4, 4)
    weight = quantize_weight(dw.Conv2d.weight, 8, 3.0, "Txx")[0]
    want = quantize_feature(F.conv2d(x, weight, groups=32), 8, 0.0, 6.0, "T40")
    assert torch.allclose(dw((x, 8, 0.0))[0], want, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [(8, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (8, 5, 1, (2, 2)), (8, 2, 1, (0, 1)), (8, 1, 2, (-1, 0))],
)
def test_same_padding(size, kernel, stride, pads):
    assert same_pads(size, size, (kernel, kernel), (stride, stride)) == pads * 2
    conv = ops.Conv2D(3, 8, stride, kernel, kernel, padding=1)
    assert conv(torch.rand(1, 3, size, size))[0].shape[2:] == (-(-size // stride),) * 2


def test_padding_is_a_switch_except_with_dilation_and_on_t02():
    x = torch.rand(1, 3, 8, 8)
    assert ops.Conv2D(3, 8, padding=5)(x)[0].shape[2:] == (8, 8)
    assert ops.Conv2D(3, 8, padding=True)(x)[0].shape[2:] == (8, 8)
    assert ops.Conv2D(3, 8, padding=1, dilation=3, target_device="T40")(x)[0].shape[2:] == (4, 4)
    t02 = ops.Conv2D(3, 8, stride=2, padding=1, activation_fn=None, target_device="T02")
    want = F.conv2d(x, t02.Conv2d.weight, t02.Conv2d.bias, stride=2, padding=1)
    assert torch.allclose(t02(x)[0], want, atol=1e-6)


def test_stride_in_two_directions():
    assert ops.Conv2D(3, 8, stride=(2, 1), padding=1)(torch.rand(1, 3, 8, 8))[0].shape[2:] == (4, 8)


@pytest.mark.parametrize(
    ("target", "low", "first", "value"),
    [("T40", -1.0, False, -1.0), ("T40", 0.0, False, 0.0), ("T40", -1.0, True, 0.0), ("Txx", -1.0, False, 0.0)],
)
def test_border_value(target, low, first, value):
    conv = ops.Conv2D(3, 8, padding=1, activation_fn=None, first_layer=first, target_device=target)
    x = torch.rand(1, 3, 4, 4)
    given = (x, 8, 0.0, 1.0, low) if first else (x, 8, low)
    want = F.conv2d(F.pad(x, (1, 1, 1, 1), value=value), conv.Conv2d.weight, conv.Conv2d.bias)
    assert torch.allclose(conv(given)[0], want, atol=1e-6)
    if not first:
        pooled = ops.Maxpool2D(3, 3, 1, 1, target_device=target)((x - 2, 8, low))[0]
        assert pooled[0, 0, 0, 0] == max(value, (x - 2)[0, 0, :2, :2].max())


def test_zero_unpooling_fills_with_the_lowest_code_on_the_t40_family():
    x = torch.full((1, 1, 1, 1), 0.5)
    for target, quantize, low, fill in [("T40", True, -1.0, -1.0), ("T40", False, -1.0, 0.0), ("Txx", True, -1.0, 0.0)]:
        y = ops.Unpool2D(2, 3, quantize=quantize, target_device=target)((x, 8, low))[0]
        assert y.flatten().tolist() == [0.5] + [fill] * 5


@pytest.mark.parametrize(
    ("activation", "signed"),
    [(None, False), (ops.ReLU(), False), (nn.ReLU(), False), (nn.ReLU6(), False), (ops.Linear(), True),
     (ops.PReLU(32), True), (ops.LeakyReLU(), True), (nn.LeakyReLU(0.2), True), (ops.Hswish(32), True)],
)  # fmt: skip
def test_sign_of_the_output(activation, signed):
    conv = ops.Conv2D(32, 32, activation_fn=activation, target_device="T40", **Q8)
    y, _, minimum = conv(feature())
    assert (minimum < 0) == signed
    assert (y.min() < 0) == signed


def test_activation_is_applied_where_nothing_is_quantised():
    x = torch.rand(1, 32, 4, 4)
    conv = ops.Conv2D(32, 32, activation_fn=nn.Sigmoid(), last_layer=True, target_device="T40", **Q8)
    assert conv((x, 8, 0.0)).min() > 0
    assert ops.Conv2D(32, 32)(x)[0].min() == 0


def test_focus_in_a_first_layer():
    conv = ops.Conv2D(12, 32, padding=1, first_layer=True, is_focus=True, target_device="T40", **Q8)
    y, bits, _ = conv(ops.Preprocess(0, 255.0, "T40")(torch.rand(1, 3, 16, 16)))
    assert y.shape == (1, 32, 8, 8)
    assert bits == 8


def test_bare_tensors_stand_for_unsigned_features():
    x = torch.rand(2, 32, 4, 4)
    for layer in (
        ops.Conv2D(32, 32, target_device="T40", **Q8),
        ops.DepthwiseConv2D(32, target_device="T40", **Q8),
        ops.BatchNorm(32, quantize=True, input_bitwidth=8, target_device="T40"),
        ops.Avgpool2D(32, quantize=True, input_bitwidth=8, target_device="T40"),
        ops.Se_Block(64, 2, target_device="T40", **Q8),
    ):
        given = torch.rand(2, 64, 4, 4) if isinstance(layer, ops.Se_Block) else x
        layer.eval()
        assert torch.equal(layer(given)[0], layer((given, 8, 0.0))[0])
    for mover in (ops.Maxpool2D(), ops.Unpool2D(), ops.Flatten([-1, 512]), ops.Focus()):
        assert torch.equal(mover(x), mover((x, 8, 0.0))[0])
    assert torch.equal(ops.Route()([x, x]), torch.cat([x, x], 1))
    assert torch.equal(ops.Max()([x, -x]), x)


def test_average_turns_signed_at_the_first_negative_number_and_stays_so():
    pool = ops.Avgpool2D(32, quantize=True, target_device="T40")
    ones = torch.ones(1, 32, 2, 2)
    assert pool((ones, 8, -1.0))[2] == 0
    assert pool((-ones, 8, -1.0))[2] == -1
    assert pool((ones, 8, 0.0))[2] == -1


@pytest.mark.parametrize(
    ("layer", "given"),
    [
        (ops.Conv2D(32, 32), torch.rand(1, 16, 4, 4)),
        (ops.Conv2D(32, 32), torch.rand(1, 32, 4)),
        (ops.FullConnected(32, 32), torch.rand(1, 32, 2, 2)),
        (ops.Flatten([-1, 7]), torch.rand(1, 32)),
        (ops.Channel_Split([16, 16]), torch.rand(1, 48, 2, 2)),
        (ops.Focus(), torch.rand(1, 3, 5, 4)),
        (ops.LSTM(16, 8), torch.rand(1, 8, 4)),
        (ops.LSTM(16, 8, use_squeeze=True), torch.rand(1, 16, 2, 4)),
        (ops.Route(), [torch.rand(1, 16, 4, 4), torch.rand(1, 16, 5, 4)]),
        (ops.Shortcut(16), [torch.rand(1, 16, 4, 4), torch.rand(1, 16, 5, 4)]),
        (ops.Embedding(4, 4), torch.zeros(2, 3)),
    ],
)
def test_wrong_shapes_are_refused(layer, given):
    with pytest.raises(ShapeError, match=type(layer).__name__):
        layer(given)


@pytest.mark.parametrize("argument", ["weight_bitwidth", "output_bitwidth", "input_bitwidth"])
@pytest.mark.parametrize("bits", [1, 0, 20, 8.0, True])
def test_widths_that_no_chip_has(argument, bits):
    with pytest.raises(ValueError, match=rf"Conv2D\.{argument}"):
        ops.Conv2D(32, 32, **{argument: bits})


@pytest.mark.parametrize("argument", ["clip_max_value", "weight_factor"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "6"])
def test_clips_that_make_no_sense(argument, value):
    with pytest.raises(ValueError, match=rf"FullConnected\.{argument}"):
        ops.FullConnected(32, 32, **{argument: value})


@pytest.mark.parametrize(("first", "length"), [(True, 3), (False, 5), (False, 2), (False, 4)])
def test_tuples_of_the_wrong_length(first, length):
    given = (torch.rand(1, 3, 4, 4), *range(length - 1))
    with pytest.raises(ValueError, match="Conv2D"):
        ops.Conv2D(3, 8, first_layer=first)(given)

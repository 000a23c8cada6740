"""What the file says, computed node by node from the conventions alone, is what the network computes.

Reading back cannot show that: it looks at names and sizes, and would not notice a wrong node between two right ones.
Sums are floats here and not codes, so a few values may lie on the neighbouring code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.chips.ingenic.quantizers import lstm_cell, quantize_feature, quantize_weight, shortcut
from chipfit.errors import UnsupportedError
from support.ingenic import networks as known
from support.ingenic import random_networks as drawn
from support.ingenic.magik import leaves
from support.ingenic.networks import Q8, InRow, filled, pixels

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
T40 = {"target_device": "T40"}


def feature(x: Tensor, a: dict[str, Any], bits: str = "output_bitwidth") -> Tensor:
    return quantize_feature(x, a[bits], a["clip_min_value"], a["clip_max_value"], a["target_device"])


def channels(x: Tensor, values: Tensor, last: bool) -> Tensor:
    return values if last else values.view(1, -1, *[1] * (x.dim() - 2))


def finished(y: Tensor, f: dict[str, Any], given: list[Tensor], last: bool = False) -> Tensor:
    """Normalisation, activation, quantiser; gamma, beta, mean, var and slopes are the last five inputs."""
    gamma, beta, mean, var, alpha = (channels(y, values, last) for values in given[-5:])
    y = (y - mean) / torch.sqrt(var + f["epsilon"]) * gamma.clamp(min=0.01) + beta
    if f["with_negtive_alpha"]:
        y = torch.where(y < 0, alpha * y, y)
    return feature(y + 3.0 if f["activate_name"] == "Hsigmoid" else y, f)


def convolved(f: dict[str, Any], x: Tensor, weight: Tensor, *given: Tensor) -> Tensor:
    p, flat = f["conv_param"], x.dim() == 3
    x = x.unsqueeze(2) if flat else x
    top, left, bottom, right = p["pads"]
    lowest = f["target_device"] in ("T40", "T41") and f["input_min_value"] < 0 and not f["is_input"]
    x = F.pad(x, (left, right, top, bottom), value=-1.0 if lowest else 0.0)
    weight, _ = quantize_weight(weight, f["weight_bitwidth"], f["weight_factor"], f["weight_target_device"])
    y = F.conv2d(x, weight, given[0], p["strides"], 0, p["dilations"], p["groups"])
    y = finished(y, f, list(given))
    return y.squeeze(2) if flat else y


def connected(f: dict[str, Any], x: Tensor, weight: Tensor, *given: Tensor) -> Tensor:
    weight, _ = quantize_weight(weight, f["weight_bitwidth"], f["weight_factor"], f["weight_target_device"])
    return finished(F.linear(x, weight, given[0]), f, list(given), last=True)


def summed(f: dict[str, Any], a: Tensor, b: Tensor) -> Tensor:
    return shortcut(a, b, f["output_bitwidth"], f["clip_max_value"], f["clip_min_value"] < 0, f["target_device"])


def recurrent(f: dict[str, Any], x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
    """One layer; h and c of each direction are the last inputs."""
    ways = 1 + f["bidirectional"]
    x = x.squeeze(2).transpose(1, 2) if f["use_squeeze"] else x
    outputs, states = [], []
    for way in range(ways):
        weight, bias = given[2 * way], given[2 * way + 1]
        weight, _ = quantize_weight(weight, f["weight_bitwidth"], f["weight_factor"], f["target_device"])
        h, c = (state.reshape(1, -1).expand(len(x), -1) for state in given[2 * (ways + way) : 2 * (ways + way) + 2])
        steps = []
        for t in reversed(range(x.shape[1])) if way else range(x.shape[1]):
            h, c = lstm_cell(x[:, t], h, c, weight, bias)
            h = feature(h, f)
            steps.append(h)
        outputs.append(torch.stack(steps[::-1] if way else steps, 1))
        states.append(h)
    return torch.cat(outputs, 2), torch.stack(states, 1)


def enlarged(a: dict[str, Any], x: Tensor, scales: Tensor) -> Tensor:
    height, width = (int(scale) for scale in scales[2:])
    if a["mode"] == "nearest":
        return x.repeat_interleave(height, 2).repeat_interleave(width, 3)
    y = torch.full((*x.shape[:2], x.shape[2] * height, x.shape[3] * width), a["fill_value"])
    y[:, :, ::height, ::width] = x
    return y


def padded(a: dict[str, Any], x: Tensor) -> Tensor:
    pads = a["pads"]
    return F.pad(x, (pads[3], pads[7], pads[2], pads[6]), value=a["value"])


def normalised(a: dict[str, Any], x: Tensor, *given: Tensor) -> Tensor:
    gain, shift, mean, var = given
    return F.batch_norm(x, mean, var, gain, shift, False, 0.0, a["epsilon"])


MEANING: dict[str, Callable[..., Any]] = {
    "NOp": lambda a, x: x,
    "QuantizeConv2DInference": convolved,
    "QuantizeConv1DInference": convolved,
    "QuantizeFullconnectedInference": connected,
    "QuantizeBatchNormInference": lambda f, x, *given: finished(x, f, list(given)),
    "QuantizeShortcutInference": summed,
    "QuantizeLSTMV2": recurrent,
    "QuantizeWeight": lambda a, w, _: quantize_weight(w, a["weight_bitwidth"], a["factor"], a["target_device"])[0],
    "QuantizeFeature": lambda a, x: feature(x, a),
    "aweight": lambda a, gamma: gamma.clamp(min=0.01),
    "BatchNormalization": normalised,
    "Upsample": enlarged,
    "Pad": padded,
    "Conv": lambda a, x, w, b=None: F.conv2d(x, w, b, a["strides"], 0, a["dilations"], a["group"]),
    "MatMul": lambda a, x, y: x @ y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Add": lambda a, x, y: x + y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Max": lambda a, x, y: torch.maximum(x, y),
    "MaxPool": lambda a, x: F.max_pool2d(x, a["kernel_shape"], a["strides"]),
    "AveragePool": lambda a, x: F.avg_pool2d(x, a["kernel_shape"], a["strides"]),
    "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
    "Relu": lambda a, x: x.relu(),
    "Clip": lambda a, x: x.clamp(a["min"], a["max"]),
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a["alpha"]),
    "PRelu": lambda a, x, slope: torch.where(x < 0, slope * x, x),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Tanh": lambda a, x: x.tanh(),
    "Softmax": lambda a, x: x.flatten(a["axis"]).softmax(-1).view(x.shape),  # opset 9: over all axes from there on
    "ReduceSum": lambda a, x: x.sum(a["axes"], keepdim=bool(a["keepdims"])),
    "Reshape": lambda a, x, sizes: x.reshape(sizes.tolist()),
    "Squeeze": lambda a, x: x.squeeze(tuple(a["axes"])),
    "Unsqueeze": lambda a, x: x.unsqueeze(a["axes"][0]),
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Split": lambda a, x: torch.split(x, a["split"], a["axis"]),
    "Cast": lambda a, x: x.long(),
    "Gather": lambda a, table, index: table[index],
}


def computed(model: onnx.ModelProto, *inputs: Tensor) -> list[Tensor]:
    values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in model.graph.initializer}
    values |= {value.name: x for value, x in zip(model.graph.input, inputs, strict=True)}
    for node in model.graph.node:
        a = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        a = {name: value.decode() if isinstance(value, bytes) else value for name, value in a.items()}
        given = json.loads(a["param_str"]) if "param_str" in a else a
        made = MEANING[node.op_type](given, *(values[name] for name in node.input))
        values |= zip(node.output, made if isinstance(made, tuple) else (made,), strict=True)
    return [values[value.name] for value in model.graph.output]


def assert_means(net: nn.Module, *inputs: Tensor, steps: float = 1.0) -> None:
    """Equal but for neighbouring codes (of 8 bits, over the range of 2 of signed ones) in a few places."""
    with torch.no_grad():
        wanted = leaves(net.eval()(*inputs))
        found = computed(magik_model(net, inputs), *inputs)
        for a, b in zip(wanted, found, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= steps * 2 / 255 + 1e-5
            assert ((a - b).abs() > 1e-4).float().mean() <= 0.02


@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_every_kind_of_layer_alone(target: str) -> None:
    t = {"target_device": target}
    layers: list[nn.Module] = [
        ops.Conv2D(64, 32, 2, activation_fn=ops.PReLU(32, target), enable_batch_norm=True, padding=1, **t, **Q8),
        ops.Conv2D(64, 32, activation_fn=ops.Hsigmoid(32, target_device=target), **t, **Q8),
        ops.Conv2D(64, 32, activation_fn=ops.Hswish(32, target), enable_batch_norm=True, padding=1, **t, **Q8),
        ops.Conv2D(256, 32, is_focus=True, **t, **Q8),
        ops.DepthwiseConv2D(64, padding=1, activation_fn=ops.LeakyReLU(0.2, target), **t, **Q8),
        ops.DepthwiseConv2D(64, padding=1, activation_fn=nn.PReLU(64), last_layer=True, **t, **Q8),
        ops.ConvTranspose2D(64, 32, **t, **Q8),
        ops.BatchNorm(64, ops.PReLU(64, target), True, **t),
        ops.BatchNorm(64, ops.Hswish(64, target), True, **t),
        ops.Maxpool2D(3, 3, 2, 1, target),
        ops.Avgpool2D(64, 3, 3, 2, 1, True, **t),
        ops.AdaptiveAvgpool2D(64, False, True, **t),
        ops.Unpool2D(2, 3, quantize=True, **t),
        ops.Se_Block(64, 2, **t, **Q8),
        ops.Focus(target),
        ops.Flatten([-1, 64 * 36], target),
    ]
    for layer in layers:
        net = filled(InRow(target, 64, layer, signed=True))
        assert_means(net, pixels(2, 3, 6, 6), steps=1.0 if not getattr(layer, "last_layer", False) else 4.0)


def test_what_stands_between_markers_or_in_sequences() -> None:
    class Sequence(InRow):
        def forward(self, image: Tensor) -> Any:
            (x, bit, low), h = self.layers[0](self.first(self.pre(image)))
            return self.layers[1]((x, bit, low)), self.layers[2]((x.transpose(1, 2), bit, low)), h

    lstm = ops.LSTM(32, 32, use_squeeze=True, bidirectional=True, **T40, **Q8)
    fc = ops.FullConnected(64, 5, nn.ReLU(), enable_batch_norm=True, last_layer=True, **T40, **Q8)
    conv = ops.Conv1D(64, 32, 3, activation_fn=ops.Hswish(32), enable_batch_norm=True, padding=1, **T40, **Q8)
    assert_means(filled(Sequence("T40", 32, lstm, fc, conv)), pixels(2, 3, 1, 6), steps=4.0)

    class Attention(InRow):
        def forward(self, image: Tensor) -> Any:
            x = self.first(self.pre(image))
            rows = (x[0].flatten(2).permute(0, 2, 1), x[1], x[2])
            return self.layers[0](rows), self.layers[1](x)

    layers = ops.SoftAttention(128, 8, 8, 2.5), ops.MILPoolAttention(128, True, 8, 3.0)
    assert_means(filled(Attention("T40", 128, *layers)), pixels(2, 3, 4, 4))
    assert_means(InRow("T40", 128, ops.Pixel_Shuffle(2)), pixels(2, 3, 4, 4))
    table = ops.Embedding(20, 32, quantize=True, output_bitwidth=8, **T40)
    assert_means(nn.Sequential(ops.NOp(), table), torch.arange(12.0).view(2, 6))


@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_a_network(target: str) -> None:
    net = known.trained(known.Digits(8, target), pixels(32, 1, 8, 8))
    assert_means(net, pixels(8, 1, 8, 8, seed=1), steps=3.0)


@pytest.mark.slow
def test_random_networks() -> None:
    """Ties that fall otherwise, above all in means of codes, move a few values; a wrong node moves most of them."""
    compared = 0
    for seed in range(40):
        net, example, _ = drawn.draw(seed)
        try:
            model = magik_model(net, example)
        except UnsupportedError:
            continue
        with torch.no_grad():
            wanted, found = leaves(net.eval()(example))[0], computed(model, example)[0]
        assert wanted.shape == found.shape
        assert ((wanted - found).abs() > 1e-4).float().mean() <= 0.2, seed
        compared += 1
    assert compared > 30

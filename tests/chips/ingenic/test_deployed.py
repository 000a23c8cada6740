"""The prediction of deployed integers on Txx: by hand from the network, channel by channel, and what they move."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.errors import CalibrationError, ChipfitWarning, UnsupportedError
from chipfit.export import deployed, deployed_difference, export
from chipfit.program import load_program, lower, run, save_program, trace
from support.ingenic import networks as known

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}
pytestmark = pytest.mark.filterwarnings("ignore:on Txx multipliers keep about two digits")


class Net(nn.Module):
    """Two layers that can be predicted, one signed one, one behind it, a last layer."""

    def __init__(self, bits: int = 8, target: str = "Txx", **options: Any) -> None:
        super().__init__()
        common = {**Q8, "weight_bitwidth": bits, "output_bitwidth": bits, "target_device": target, **options}
        common |= {"auto_bitwidth": False, "clip_max_value": 4.0}
        self.pre = ops.Preprocess(0, 255.0, target)
        self.first = ops.Conv2D(3, 32, 1, 3, 3, None, True, False, 1, first_layer=True, **common)
        self.second = ops.DepthwiseConv2D(32, 2, 3, 3, None, True, True, 1, **common)
        self.third = ops.Conv2D(32, 32, 1, 1, 1, ops.Linear(target), True, **common)
        self.fourth = ops.Conv2D(32, 32, 1, 1, 1, None, True, **common)
        self.mean = ops.AdaptiveAvgpool2D(32, keepdim=False, quantize=True, target_device=target)
        self.last = ops.FullConnected(32, 5, None, last_layer=True, **common)

    def forward(self, image: Tensor) -> Tensor:
        x = self.fourth(self.third(self.second(self.first(self.pre(image)))))
        logits: Tensor = self.last(self.mean(x))
        return logits


def made(**options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    image = known.pixels(8, 3, 8, 8)
    return known.trained(Net(**options), image).eval(), image


@pytest.mark.parametrize("bits", [8, 5])
def test_by_hand(bits: int) -> None:
    """The formulas on the network's own numbers, in exact fractions where they matter."""
    net, image = made(bits=bits)
    found = {layer.name: layer for layer in deployed(lower(net, image)).layers}
    assert found.keys() == {"first", "second"}
    for name, width in (("first", 8), ("second", bits)):
        layer, module = found[name], getattr(net, name)
        codes, scale = module.Conv2d.QuantizeWeight.codes(module.Conv2d.weight)
        assert torch.equal(layer.weight, codes.to(torch.int8))
        bn = module.BatchNorm2d.batch_norm
        for c in range(32):
            gain = max(bn.weight[c].item(), 0.01) / math.sqrt(bn.running_var[c].item() + bn.eps)
            bias = 0.0 if module.Conv2d.bias is None else module.Conv2d.bias[c].item()
            unit = (2**bits - 1) / 4.0
            a = scale[c].item() / (2**width - 1) * gain * unit
            b = (bn.bias[c].item() + (bias - bn.running_mean[c].item()) * gain) * unit
            shift = layer.shift[c]
            assert 16_000 <= layer.mul[c] <= 32_000 and layer.mul[c] % 1000 == 0
            assert 0 <= a * 2 ** (15 + shift) - layer.mul[c] < 1000 + 1e-2
            assert layer.errors[c] == pytest.approx(layer.mul[c] / 2 ** (15 + shift) / a - 1, abs=1e-6)
            offset = 2 ** (width - 1) * int(codes[c].sum())
            assert layer.offset == 2 ** (width - 1) and (layer.bias[c] - offset) % 10 == 0
            assert abs(layer.bias[c] - offset) <= abs(b / a) + 0.01 and abs(layer.bias[c] - offset - b / a) < 10.01
    worst = max(max(map(abs, layer.errors)) for layer in found.values())
    assert 0.02 < worst < 0.0625


def test_what_was_never_decoded_is_left_out() -> None:
    net, image = made()
    assert deployed(lower(net, image)).left_out == {
        "third": "its outputs are signed, or behind an activation other than ReLU",
        "fourth": "its inputs are signed",
        "last": "its outputs are real numbers",
    }


def test_the_simulation_computes_the_integers() -> None:
    """`(sum(weight * (x - offset)) + bias) * mul / 2^(15 + shift)`, rounded as in training: code for code."""
    net, image = made()
    program = lower(net, image)
    prediction = deployed(program)
    edges = trace(prediction.program, image)
    for layer in prediction.layers:
        node = program.node(layer.name)
        total = program.node(node.inputs[0])
        x = edges[total.inputs[0]] - layer.offset
        stride, groups = total.op.stride, total.op.groups
        sums = torch.nn.functional.conv2d(x.double(), layer.weight.double(), None, stride, 0, 1, groups).long()
        for c in range(32):
            exact = [
                Fraction((int(s) + layer.bias[c]) * layer.mul[c], 2 ** (15 + layer.shift[c]))
                for s in sums[:2, c].flatten()
            ]
            clipped = [min(max(value, Fraction(0)), Fraction(255)) for value in exact]
            for value, code in zip(clipped, edges[layer.name][:2, c].flatten().tolist(), strict=True):
                assert abs(value - code) <= Fraction(502, 1000)


def test_how_far_outputs_move() -> None:
    net, image = made()
    program = lower(net, image)
    found = deployed_difference(program, [image[:5], image[5:]])
    rows = {row.name: row for row in found.rows}
    assert list(rows) == ["first", "second", "third", "fourth", "mean", "output last"] and found.samples == 8
    trained, moved = run(program, image), run(deployed(program).program, image)
    assert rows["output last"].largest == float((trained - moved).abs().max()) > 0
    assert rows["first"].differing > 0 and rows["first"].codes == trace(program, image)["first"].numel()
    assert 0.02 < rows["first"].multiplier_error < 0.0625 and rows["fourth"].multiplier_error == 0.0
    assert "Predicted from decoded vendor files, not proven" in str(found) and found.table().row_count == 6


def test_multipliers_that_fit_move_nothing() -> None:
    """A multiplier that two digits hold, and a bias of whole tens: 0 codes differ."""
    conv = ops.Conv2D(1, 1, 1, 1, 1, None, enable_bias=False, first_layer=True, target_device="Txx", **Q8)
    with torch.no_grad():
        conv.Conv2d.weight.fill_(1.0)
    image = torch.arange(256.0).view(1, 1, 16, 16) / 255
    program = lower(nn.Sequential(ops.Preprocess(0, 255.0), conv), image)
    clip = 1 / (128 * 20_000 / 2**24)  # 255 / (128 * 255 * clip) is 20000 / 2^24
    node = program.node("1")
    fitting = replace(node, op=replace(node.op, requantise=replace(node.op.requantise, clip=clip)))
    program = replace(program, nodes=tuple(fitting if n is node else n for n in program.nodes))
    (layer,) = deployed(program).layers
    assert (layer.mul, layer.shift) == ((20_000,), (9,)) and abs(layer.errors[0]) < 1e-6
    assert next(row.differing for row in deployed_difference(program, [image]).rows) == 0


def test_a_learned_clip_counts() -> None:
    one, image = made()
    other, _ = made(auto_threshold=True)
    layers = [deployed(lower(net, image)).layers for net in (one, other)]
    assert [[x.mul, x.shift] for x in layers[0]] == [[x.mul, x.shift] for x in layers[1]]


def test_files(tmp_path: Path) -> None:
    net, image = made()
    program = lower(net, image)
    with pytest.warns(ChipfitWarning, match=r"those of \w+ are off by up to [2-5]\.\d%.*predicted, not proven"):
        files = export(program, tmp_path, ["txx_deployed"])
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "txx_deployed/layers.json", "txx_deployed/weights.safetensors",
    ]  # fmt: skip
    content, weights = json.loads(files[0].read_text()), load_file(files[1])
    assert "No proof" in content["about"] and content["left_out"].keys() == {"third", "fourth", "last"}
    for entry, layer in zip(content["layers"], deployed(program).layers, strict=True):
        assert entry["name"] == layer.name and torch.equal(weights[layer.name], layer.weight)
        assert [entry["mul"], entry["shift"], entry["bias"]] == [[*layer.mul], [*layer.shift], [*layer.bias]]


def test_of_a_program_from_disk(tmp_path: Path) -> None:
    net, image = made()
    program = lower(net, image)
    save_program(tmp_path, program)
    assert [x.mul for x in deployed(load_program(tmp_path)).layers] == [x.mul for x in deployed(program).layers]


def test_refusals() -> None:
    net, image = made(target="T40")
    with pytest.raises(UnsupportedError, match="of this chip's deployed integers nothing is decoded; got 't40'"):
        deployed(lower(net, image))
    last = ops.FullConnected(16, 5, None, last_layer=True, target_device="Txx", **Q8)
    flat = nn.Sequential(ops.Preprocess(0, 255.0), last)
    last.first_layer = True
    with pytest.raises(UnsupportedError, match="no layer's integers can be predicted"):
        deployed(lower(flat, torch.zeros(1, 16)))
    net, image = made()
    with pytest.raises(CalibrationError, match="the loader gave no sample"):
        deployed_difference(lower(net, image), [])


def test_no_warning_without_the_format(tmp_path: Path) -> None:
    net, image = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChipfitWarning)
        export(lower(net, image), tmp_path, ["onnx"])

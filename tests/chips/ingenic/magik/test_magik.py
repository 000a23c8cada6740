"""The `magik` export: what the file holds, and that reading it back gives equal numbers and the same program."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.errors import UnsupportedError
from chipfit.export import export_magik
from chipfit.program import lower
from ingenic_t40_network import Network
from support.ingenic import networks as known
from support.ingenic import random_networks as drawn
from support.ingenic.magik import attributes, fields, nodes, round_trip, same_state
from support.ingenic.networks import Q8

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


# --- what a file holds


def test_nodes_by_hand() -> None:
    """Every field of one fused convolution and of the last layer's parts, against the conventions."""
    common = {**Q8, "target_device": "T40"}
    conv = ops.Conv2D(
        3, 32, 2, activation_fn=ops.Linear("T40"), enable_batch_norm=True, enable_bias=False, padding=1,
        first_layer=True, clip_max_value=4.0, weight_factor=2.5, **common,
    )  # fmt: skip
    fc = ops.FullConnected(32 * 16, 10, None, last_layer=True, **common)
    net = nn.Sequential(ops.Preprocess(128, 64.0, "T40"), conv, ops.Flatten([-1, 512], "T40"), fc)
    model = magik_model(net, torch.zeros(2, 3, 8, 8))
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 9)] and model.ir_version == 4
    assert {node.domain for node in model.graph.node} == {""}
    found = {node.name: node for node in model.graph.node}
    marks = {
        name: (attributes(n)["op_target"], json.loads(attributes(n)["op_attr"]))
        for name, n in found.items()
        if n.op_type == "NOp"
    }
    assert marks["input/input"] == ("input", {"op_type": "input", "attr": "input_index_1"})
    assert marks["0"] == (
        "preprocess_end",
        {"op_type": "Preprocess", "attr": {"mean": 128.0, "var": 64.0, "output_bitwidth": 8, "clip_min_value": -1.0}},
    )
    assert marks["output_1"] == ("output", {"op_type": "output", "attr": "index_1"})
    assert marks["2/flatten_start"] == ("flatten_start", {"op_type": "flatten", "attr": {"shape_list": [-1, 512]}})
    assert {attributes(n)["version"] for n in found.values() if n.op_type == "NOp"} == {1002}
    assert fields(found["1"]) == {
        "input_bitwidth": 8,
        "output_bitwidth": 8,
        "weight_bitwidth": 8,
        "clip_min_value": -4.0,
        "clip_max_value": 4.0,
        "weight_factor": 2.5,
        "epsilon": 1e-5,
        "is_input": True,
        "is_output": False,
        "target_device": "T40",
        "weight_target_device": "T40",
        "feature_var": 64.0,
        "input_min_value": -1.0,
        "with_negtive_alpha": False,
        "pre_lstm_layer": False,
        "op_in_channels": 3,
        "data_format": "NCHW",
        "activate_name": "Linear",
        "is_dwconv": False,
        "conv_param": {
            "input_channels": 3,
            "output_channels": 32,
            "kernel_size": [3, 3],
            "strides": [2, 2],
            "dilations": [1, 1],
            "groups": 1,
            "padding": "SAME",
            "pads": [0, 0, 1, 1],
        },
        "input_tensor_name": "0",
        "output_tensor_name": "1",
        "weight_tensor_name": "1.Conv2d.weight",
    }
    norm = [f"1.BatchNorm2d.batch_norm.{key}" for key in ("weight", "bias", "running_mean", "running_var")]
    assert list(found["1"].input) == ["0", "1.Conv2d.weight", "zeros[32]", *norm, "ones[32]"]
    quantised = attributes(found["3/quantize_weight"])
    assert (quantised["weight_bitwidth"], quantised["factor"], quantised["target_device"]) == (8, 3.0, "T40")
    assert quantised["is_quantize_per_channel"] == quantised["need_scale_weight"] == 1
    assert [n.op_type for n in model.graph.node][-5:] == ["QuantizeWeight", "Transpose", "MatMul", "Add", "NOp"]


def test_weights_are_stored_as_trained(tmp_path: Path) -> None:
    net = known.Digits(4, "T40")
    model = onnx.load(export_magik(net, known.pixels(1, 1, 8, 8), tmp_path / "m.onnx"))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert state.keys() <= stored.keys()
    assert all(np.array_equal(stored[key], value.numpy()) for key, value in state.items())


def test_depthwise_names_the_grid_of_txx_on_t40() -> None:
    def named(target: str) -> tuple[str, bool]:
        conv = ops.DepthwiseConv2D(32, target_device=target, padding=1, **Q8)
        f = fields(nodes(known.InRow(target, 32, conv), known.pixels(1, 3, 8, 8))["layers.0"])
        return f["weight_target_device"], f["is_dwconv"]

    assert named("T40") == ("Txx", True)
    assert named("Xs1") == ("Xs1", True)


def test_border_of_a_signed_feature() -> None:
    """-1 on T40 and 0 on Txx, as an explicit node where a standard node follows."""
    for target, value in (("T40", -1.0), ("Txx", 0.0)):
        pool = ops.Maxpool2D(3, 3, 2, 1, target)
        found = nodes(known.InRow(target, 32, pool, signed=True), known.pixels(1, 3, 8, 8))
        pad = attributes(found["layers.0/pad"])
        assert (pad["value"], list(pad["pads"])) == (value, [0, 0, 0, 0, 0, 0, 1, 1])
        assert list(attributes(found["layers.0"])["pads"]) == [0, 0, 0, 0]


def test_no_markers_on_t02() -> None:
    common = {**Q8, "target_device": "T02"}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = ops.Conv2D(3, 16, activation_fn=nn.LeakyReLU(0.1), enable_batch_norm=True, **common)
            self.pool, self.flat = ops.Maxpool2D(target_device="T02"), ops.Flatten([-1, 256], "T02")
            self.fc = ops.FullConnected(256, 10, None, last_layer=True, **common)

        def forward(self, image: Tensor) -> Any:
            return self.fc(self.flat(self.pool(self.a((image, 8, 0.0)))))

    assert "NOp" not in {node.op_type for node in magik_model(Net(), known.pixels(1, 3, 8, 8)).graph.node}


# --- reading back


@pytest.mark.parametrize(("bits", "target"), [(8, "T40"), (4, "T40"), (8, "Txx"), (4, "Xs2")])
def test_digits(bits: int, target: str, tmp_path: Path) -> None:
    torch.manual_seed(bits)
    net = known.trained(known.Digits(bits, target), known.pixels(32, 1, 8, 8))
    again = round_trip(net, tmp_path, known.pixels(16, 1, 8, 8, seed=1), known.pixels(5, 1, 8, 8, seed=2))
    assert same_state(net, again)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_manual_s_network(bits: int, tmp_path: Path) -> None:
    """Its LSTM has no integer program, but the file has nodes for it."""
    net = Network(bits)
    known.trained(net, known.pixels(4, 3, 32, 32))
    again = round_trip(net, tmp_path, known.pixels(2, 3, 32, 32, seed=1), known.pixels(3, 3, 32, 32), lowers=False)
    assert same_state(net, again)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert kinds["QuantizeConv2DInference"] == 11 and kinds["QuantizeLSTMV2"] == 1
    with pytest.raises(UnsupportedError, match="never measured"):
        lower(again, known.pixels(1, 3, 32, 32))


def test_the_demo_s_network(tmp_path: Path) -> None:
    from chipfit.chips.ingenic.demo import DigitsNetwork
    from chipfit.fit.data import digits

    images = digits(0)[1].tensors[0]
    net = known.trained(DigitsNetwork(8), images[:64])
    assert same_state(net, round_trip(net, tmp_path, images[64:128], images[128:140], lowers=False))


SEEDS = st.integers(0, 2**40)


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_random_networks(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    check(seed, tmp_path_factory.getbasetemp() / "magik")


def check(seed: int, folder: Path) -> None:
    net, example, _ = drawn.draw(seed)
    try:
        lower(net, example)
        lowers = True
    except UnsupportedError:
        lowers = False  # for the reasons that the generator's own test allows
    try:
        round_trip(net, folder, example, example.flip(0, -1), lowers=lowers)
    except UnsupportedError as error:
        assert all("the example has no negative value here" in line for line in str(error).splitlines()[1:]), str(error)

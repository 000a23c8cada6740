"""Every rule of the Magik conventions: a good file, one thing changed, and the words that refuse it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.magik.check.check import check_magik, model_problems
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.errors import FileFormatError

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}
pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


class Net(nn.Module):
    """One node of every kind that has rules of its own."""

    def __init__(self, target: str) -> None:
        super().__init__()
        t = {"target_device": target}
        self.pre = ops.Preprocess(0, 255.0, target)
        self.first = ops.Conv2D(3, 32, 1, 3, 3, ops.Linear(target), True, False, 1, first_layer=True, **t, **Q8)
        self.depthwise = ops.DepthwiseConv2D(32, 1, 3, 3, ops.LeakyReLU(0.1, target), padding=1, **t, **Q8)
        self.add = ops.Shortcut(32, quantize=True, input_bitwidth=8, output_bitwidth=8, **t)
        self.norm = ops.BatchNorm(32, ops.PReLU(32, target), True, **t)
        self.pool = ops.Maxpool2D(3, 3, 2, 1, target)
        self.up = ops.Unpool2D(2, 2, quantize=True, **t)
        self.split, self.route = ops.Channel_Split([16, 16], target), ops.Route(target)
        self.mean = ops.AdaptiveAvgpool2D(32, quantize=True, **t)
        self.rnn = ops.LSTM(32, 32, use_squeeze=True, **t, **Q8)
        self.flat = ops.Flatten([-1, 32], target)
        self.fc = ops.FullConnected(32, 64, **t, **Q8)
        self.swish = ops.Conv1D(64, 32, activation_fn=ops.Hswish(32, target), enable_batch_norm=True, **t, **Q8)
        self.last = ops.FullConnected(32, 10, None, last_layer=True, **t, **Q8)

    def forward(self, image: Tensor) -> Any:
        x = self.first(self.pre(image))
        x = self.norm(self.add([x, self.depthwise(x)]))
        a, b = self.split(self.up(self.pool(x)))
        y, bit, low = self.fc(self.flat(self.rnn(self.mean(self.route([b, a])))[0]))
        y, bit, low = self.swish((torch.cat([y.unsqueeze(2)] * 3, 2), bit, low))
        return self.last((y.flatten(1), bit, low))


def made(target: str) -> onnx.ModelProto:
    torch.manual_seed(0)
    net = Net(target).eval()
    for block in net.modules():
        if isinstance(block, nn.BatchNorm2d):
            block.running_mean.uniform_(-0.1, 0.1)
    net.mean.signed = True  # as after training on images that gave it a negative value
    return magik_model(net, torch.randint(0, 256, (2, 3, 8, 8)) / 255)


class Bridged(nn.Module):
    """What a conversion adds: an input that is no image, borders, tensors and back, slices and functions of torch."""

    def __init__(self, target: str) -> None:
        super().__init__()
        t = {"target_device": target}
        self.enter, self.pad = ToFeature(8, True, 2.0, image=True, **t), PadFeature((1, 1, 1, 1), **t)
        self.first = ops.Conv2D(3, 32, 1, 3, 3, ops.Linear(target), first_layer=True, **t, **Q8)
        self.border, self.pool = PadFeature((1, 1, 1, 1), **t), ops.Maxpool2D(3, 3, 2, target_device=target)
        self.edge, self.conv = PadFeature((0, 1, 0, 1), **t), ops.Conv2D(32, 32, 1, 1, 1, **t, **Q8)
        self.leave, self.again = ToTensor(32, target), ToFeature(8, **t)

    def forward(self, x: Tensor) -> Any:
        y, bits, low = self.edge(self.pool(self.border(self.first(self.pad(self.enter(x))))))
        a, b = self.conv((y[:, :, 1:], bits, low))[0].chunk(2, 3)
        return self.again(torch.nn.functional.leaky_relu(self.leave((a, 8, 0.0)), 0.1)), b


MODELS = {target: made(target) for target in ("T40", "Txx")}
MODELS |= {f"{target}, converted": magik_model(Bridged(target), torch.randn(1, 3, 8, 8)) for target in ("T40", "Txx")}


def at(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def set_attributes(model: onnx.ModelProto, name: str, **values: Any) -> None:
    node = at(model, name)
    for key, value in values.items():
        kept = [entry for entry in node.attribute if entry.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, *([] if value is None else [helper.make_attribute(key, value)])])


def set_fields(model: onnx.ModelProto, name: str, **values: Any) -> None:
    """Change fields of the JSON text; those of `conv_param` by `conv_param__name`."""
    node = at(model, name)
    fields = json.loads(helper.get_node_attr_value(node, "param_str"))
    for key, value in values.items():
        outer, _, inner = key.partition("__")
        into, last = (fields[outer], inner) if inner else (fields, outer)
        if value is ...:
            del into[last]
        else:
            into[last] = value
    set_attributes(model, name, param_str=json.dumps(fields))


def set_constant(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))


def set_shape(model: onnx.ModelProto, name: str, *shape: int) -> None:
    value = next(v for v in (*model.graph.value_info, *model.graph.output) if v.name == name)
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def marker(model: onnx.ModelProto, name: str, **changes: Any) -> None:
    given = json.loads(helper.get_node_attr_value(at(model, name), "op_attr"))
    set_attributes(model, name, op_attr=json.dumps(given | changes))


def retarget(model: onnx.ModelProto, old: str, new: str) -> None:
    """Another target in every node."""
    for node in model.graph.node:
        for entry in node.attribute:
            if entry.type == onnx.AttributeProto.STRING:
                entry.s = entry.s.replace(old.encode(), new.encode())


def padded_convolution(model: onnx.ModelProto) -> None:
    """A border as an attribute, with the shape that follows."""
    set_attributes(model, "swish.convd", pads=[0, 1, 0, 1])
    set_shape(model, "swish.convd", 1, 32, 1, 3)


def move_output(model: onnx.ModelProto, name: str) -> None:
    """The file's output before its marker."""
    model.graph.value_info.append(copy.deepcopy(model.graph.output[0]))
    model.graph.output[0].name = name


Change = Callable[[onnx.ModelProto], object]


def fields(name: str, **values: Any) -> Change:
    return lambda model: set_fields(model, name, **values)


def attributes(name: str, **values: Any) -> Change:
    return lambda model: set_attributes(model, name, **values)


def constant(name: str, change: Callable[[Any], Any]) -> Change:
    return lambda model: set_constant(model, name, change)


BROKEN: list[tuple[str, Change, str]] = [
    # the file
    (
        "T40",
        lambda m: setattr(m.opset_import[0], "version", 11),
        "opsets are {'': 11}; allowed: the default domain at 9",
    ),
    ("T40", lambda m: m.opset_import.append(helper.make_opsetid("ai.x", 1)), "the default domain at 9 only"),
    ("T40", lambda m: setattr(m, "ir_version", 8), "ir_version is 8; allowed: 4"),
    ("T40", constant("fc.Linear.weight", lambda a: a.astype(np.float16)), "fc.Linear.weight: FLOAT16; allowed: FLOAT"),
    ("T40", constant("fc.Linear.weight", lambda a: np.round(a).astype(np.int8)), "weights are stored as trained"),
    ("T40", constant("fc.Linear.bias", lambda a: a * np.nan), "holds values that are no numbers"),
    ("T40", lambda m: set_shape(m, "first", 0, 32, 8, 8), "tensor first: its shape is not fixed"),
    ("T40", fields("fc", target_device="T41"), "the file's targets are T40, T41; allowed: one of"),
    ("T40", lambda m: retarget(m, "T40", "T33"), "the file's targets are T33"),
    ("T40", lambda m: retarget(m, "T40", "T02"), "node image/input (NOp): T02 has no such operator"),
    # nodes and edges
    ("T40", lambda m: setattr(at(m, "first"), "domain", "magik"), "domain 'magik'; all nodes"),
    ("T40", lambda m: setattr(at(m, "first"), "op_type", "QuantizeConv2D"), "no node of the conventions"),
    ("T40", lambda m: setattr(at(m, "fc"), "name", "first"), "node name 'first' is used 2 times"),
    ("T40", lambda m: at(m, "first").input.pop(), "(QuantizeConv2DInference): 7 inputs; allowed: 8"),
    ("T40", lambda m: at(m, "norm").input.append("zeros[32]"), "(QuantizeBatchNormInference): 7 inputs; allowed: 6"),
    ("T40", lambda m: at(m, "split").output.pop(), "is made by no node before it"),
    ("T40", lambda m: m.graph.node.insert(0, m.graph.node.pop()), "is made by no node before it"),
    ("T40", lambda m: m.graph.value_info.pop(0), "has no shape"),
    (
        "T40",
        lambda m: m.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "w")),
        "tensor w: no node reads it",
    ),
    ("T40", lambda m: at(m, "first").input.__setitem__(1, "pre"), "input 1 (pre) is no constant"),
    ("T40", attributes("first", group=1), "unknown attribute group; known: param_str"),
    ("T40", attributes("mean/quantize_feature", clip_max_value=None), "attribute clip_max_value is missing"),
    ("T40", attributes("mean/quantize_feature", output_bitwidth=8.0), "output_bitwidth is of kind float; allowed: int"),
    # JSON
    ("T40", attributes("first", param_str="{'a': 1}"), "param_str is no JSON object"),
    ("T40", fields("first", epsilon=...), "param_str: field epsilon is missing"),
    ("T40", fields("first", shift=1), "unknown field shift"),
    ("T40", fields("first", weight_bitwidth="8"), "field weight_bitwidth is '8'; allowed: a JSON value of type int"),
    ("T40", fields("first", is_input=1), "field is_input is 1; allowed: a JSON value of type bool"),
    ("T40", fields("first", conv_param__pads=[1, 1]), "conv_param: pads has 2 numbers; allowed: 4"),
    ("T40", fields("first", conv_param__groups=...), "conv_param: field groups is missing"),
    ("T40", fields("first", weight_tensor_name="w"), "weight_tensor_name is 'w'; allowed: 'first.Conv2d.weight'"),
    ("T40", fields("add", input_tensor_name="first"), "input_tensor_name is 'first'; allowed: 'first,depthwise'"),
    # widths, clips, signs
    ("T40", fields("first", weight_bitwidth=9), "weight_bitwidth is 9; allowed: 2 to 8"),
    ("T40", fields("fc", output_bitwidth=16), "output_bitwidth is 16; allowed: 2 to 12"),
    ("T40", fields("depthwise", input_bitwidth=4), "input_bitwidth is 4; allowed: 8, the width of first"),
    ("T40", fields("depthwise", input_min_value=0.0), "input_min_value is 0.0; allowed: below 0, as first is made"),
    ("T40", fields("depthwise", feature_var=255.0), "feature_var is 255.0; allowed: 127 for this input"),
    ("T40", fields("first", feature_var=1.0), "are not those of the preprocessing marker"),
    ("T40", fields("first", is_input=False), "is_input is False; allowed: true behind the preprocessing marker"),
    ("T40", fields("fc", is_input=True), "is_input is True; allowed: true behind the preprocessing marker"),
    ("T40", fields("fc", is_output=True), "is_output is True; allowed: false"),
    ("T40", fields("first", clip_max_value=-6.0), "clip_max_value is -6.0; allowed: above 0"),
    ("T40", fields("first", clip_min_value=-1.0), "clip_min_value is -1.0; allowed: 0 or -clip_max_value"),
    ("T40", fields("fc", clip_min_value=-6.0), "clip_min_value is -6.0; allowed: 0 with this activation"),
    ("T40", fields("first", weight_factor=0.0), "weight_factor is 0.0; allowed: above 0"),
    ("T40", fields("first", activate_name="Swish"), "activate_name is 'Swish'; allowed: ReluX"),
    ("T40", fields("norm", with_negtive_alpha=False), "with_negtive_alpha is False; allowed: true with PRelu"),
    (
        "T40",
        constant("depthwise/negative_alpha", lambda a: np.arange(32, dtype=np.float32)),
        "one slope for all channels",
    ),
    ("T40", fields("fc", epsilon=-1.0), "epsilon is -1.0; allowed: above 0"),
    ("T40", fields("first", epsilon=0.0), "epsilon is 0, but gamma, beta, mean and var are not"),
    ("T40", constant("first.BatchNorm2d.batch_norm.running_var", lambda a: -a), "var holds negative values"),
    (
        "T40",
        constant("first.BatchNorm2d.batch_norm.weight", lambda a: a[:16]),
        "gamma (first.BatchNorm2d.batch_norm.weight) has shape (16,)",
    ),
    ("T40", constant("fc.Linear.bias", lambda a: a[:5]), "the bias has shape (5,); allowed: (64,)"),
    ("T40", fields("fc", weight_target_device="Txx"), "weight_target_device is 'Txx'; allowed: 'T40'"),
    ("T40", fields("depthwise", weight_target_device="T40"), "weight_target_device is 'T40'; allowed: 'Txx'"),
    ("Txx", fields("depthwise", weight_target_device="T40"), "weight_target_device is 'T40'; allowed: 'Txx'"),
    ("T40", fields("first", op_in_channels=4), "op_in_channels is 4; allowed: 3"),
    # shapes, borders, channels
    (
        "T40",
        constant("first.Conv2d.weight", lambda a: a[:, :, :2]),
        "the weight has shape (32, 3, 2, 3); allowed: (32, 3, 3, 3)",
    ),
    (
        "T40",
        constant("fc.Linear.weight", lambda a: a[:, :16]),
        "the weight has shape (64, 16) for an input of shape (1, 32)",
    ),
    ("T40", fields("first", conv_param__padding="FULL"), "padding is 'FULL'; allowed: 'SAME', 'VALID'"),
    (
        "T40",
        fields("first", conv_param__pads=[0, 0, 1, 1]),
        "pads is [0, 0, 1, 1]; allowed: [1, 1, 1, 1] for SAME here",
    ),
    ("T40", fields("first", conv_param__padding="VALID"), "allowed: zeros for VALID"),
    (
        "T40",
        fields("first", conv_param__padding="VALID", conv_param__pads=[0] * 4),
        "has shape (1, 32, 8, 8); allowed: (1, 32, 6, 6)",
    ),
    ("Txx", fields("first", conv_param__dilations=[2, 2]), "dilations is [2, 2]; allowed: [1, 1] on Txx"),
    ("T40", fields("first", conv_param__dilations=[2, 2]), "padding is 'SAME'; allowed: 'VALID' with a dilation"),
    ("T40", fields("first", conv_param__groups=5), "groups is 5; allowed: a divisor of 3 and 32"),
    ("T40", fields("depthwise", is_dwconv=False), "32 groups; allowed: channels / groups a multiple of 32"),
    ("T40", fields("first", is_dwconv=True), "is_dwconv is true with 1 groups of 3 channels"),
    ("T40", fields("fc", data_format="HWC"), "data_format is 'HWC'; allowed: 'NHWC' for a sequence"),
    ("T40", lambda m: set_shape(m, "fc", 1, 65), "the output has shape (1, 65); allowed: (1, 64)"),
    ("Txx", fields("depthwise", weight_bitwidth=3), "a width below 4 bits; allowed: 4 or more on Txx"),
    # operators without weights
    ("T40", fields("add", sc_input_same_clip=False), "sc_input_same_clip is False; allowed: true where"),
    ("T40", fields("add", input_min_value=[0.0, -6.0]), "input_min_value is 0.0; allowed: below 0, as first is made"),
    ("T40", fields("add", clip_max_value=3.0, clip_min_value=-3.0), "clip_max_value is 3.0; allowed: at most 2"),
    ("Txx", fields("add", output_bitwidth=4), "output_bitwidth is 4; allowed: input_bitwidth on Txx"),
    ("T40", fields("norm", output_bitwidth=4), "output_bitwidth is 4; allowed: input_bitwidth, 8"),
    ("T40", attributes("pool/pad", value=0.0), "value is 0.0; allowed: -1 for this input on T40"),
    ("Txx", attributes("pool/pad", value=-1.0), "value is -1.0; allowed: 0 for this input on Txx"),
    ("T40", attributes("pool", pads=[0, 0, 1, 1]), "pads is [0, 0, 1, 1]; allowed: zeros, and a Pad node"),
    ("T40", attributes("up", mode="cubic"), "mode is 'cubic'; allowed: 'zero'"),
    ("T40", attributes("up", fill_value=1.0), "fill_value is 1.0; allowed: -1 for this input"),
    ("T40", attributes("up", mode="nearest"), "fill_value: allowed: with mode 'zero' and only there"),
    ("T40", constant("up/scales", lambda a: a + 1), "do not lead from (1, 32, 4, 4) to (1, 32, 8, 8)"),
    ("T40", attributes("split", split=[16, 8]), "node split (Split): its inputs do not fit"),
    ("T40", attributes("mean/quantize_feature", version=1001), "version is 1001; allowed: 1002"),
    (
        "T40",
        attributes("mean/quantize_feature", tensor_name="x"),
        "tensor_name is 'x'; allowed: 'mean/quantize_feature'",
    ),
    ("T40", fields("rnn", num_layers=2), "5 inputs; allowed: 7 for 2 layers in 1 directions"),
    ("T40", fields("rnn", batch_first=False), "batch_first is false; allowed: true"),
    ("T40", fields("rnn", weight_bitwidth=32), "weight_bitwidth is 32; allowed: 2 to 8"),
    ("T40", constant("rnn.weight_l0", lambda a: a[:, :40]), "weight and bias have shapes"),
    (
        "T40",
        lambda m: set_shape(m, "flat", 1, 33),
        "node flat (Reshape): the output flat has shape (1, 33); allowed: (1, 32)",
    ),
    (
        "T40",
        lambda m: setattr(m.metadata_props[0], "value", '{"layers": {}, "edges": {"first": [8]}}'),
        "the metadata 'chipfit' is not of the form",
    ),
    # layers in parts
    ("T40", attributes("last/quantize_weight", weight_bitwidth=1), "weight_bitwidth is 1; allowed: 2 to 8"),
    ("T40", attributes("last/quantize_weight", is_quantize_per_channel=0), "is_quantize_per_channel is 0; allowed: 1"),
    ("T40", attributes("last/quantize_weight", target_device="Txx"), "target_device is 'Txx'; allowed: 'T40'"),
    ("T40", attributes("last/quantize_weight", tensor_name="w"), "tensor_name is 'w'; allowed: 'last.Linear.weight'"),
    ("T40", constant("last/pre_max", lambda a: a * 2), "pre_max: allowed: the largest magnitude"),
    ("T40", padded_convolution, "pads is [0, 1, 0, 1]; allowed: zeros, and a Pad node"),
    (
        "T40",
        lambda m: at(m, "swish.convd").input.__setitem__(1, "swish.convd.Conv2d.weight"),
        "its weight does not come from QuantizeWeight",
    ),
    (
        "T40",
        lambda m: at(m, "swish.convd/batch_norm").input.__setitem__(1, "swish.convd.BatchNorm2d.batch_norm.weight"),
        "its gain does not come from aweight",
    ),
    (
        "T40",
        constant("swish.convd.BatchNorm2d.batch_norm.bias", lambda a: a[:16]),
        "one number a channel",
    ),
    # markers
    ("T40", attributes("pre", version=1001), "node pre (NOp): version is 1001; allowed: 1002"),
    ("T40", attributes("pre", op_target="preprocess"), "op_target is 'preprocess'; known: embedding_end"),
    ("T40", lambda m: marker(m, "pre", op_type="preprocess"), "op_type is 'preprocess'; allowed: 'Preprocess'"),
    ("T40", lambda m: marker(m, "pre", attr={"mean": 0.0}), "op_attr: field var is missing"),
    (
        "T40",
        lambda m: marker(m, "pre", attr={"mean": 1.0, "var": 255.0, "output_bitwidth": 8, "clip_min_value": 0.0}),
        "allowed: 0 if the mean is 0, else -1",
    ),
    (
        "T40",
        lambda m: marker(m, "image/input", attr="input_index_2"),
        "the input markers are ['input_index_2']; allowed: input_index_1",
    ),
    ("T40", attributes("flat/flatten_end", op_target="lstm_end"), "ends a region that was not begun"),
    (
        "T40",
        lambda m: move_output(m, "last/add"),
        "the output markers stand at ['output_1']; allowed: at the file's outputs, ['last/add']",
    ),
    # what a conversion adds
    *(
        ("T40, converted", change, words)
        for change, words in (
            (attributes("enter/quantize_feature", target_device="T40"), "target_device is 'T40'; allowed: 'Txx'"),
            (attributes("enter/quantize_feature", output_bitwidth=6), "the image is made of 6 bits, signed"),
            (attributes("enter/quantize_feature", clip_min_value=0.0), "the image is made of 8 bits, unsigned"),
            (fields("first", is_input=False), "is_input is False; allowed: true behind the preprocessing marker"),
            (attributes("pad", value=-1.0), "value is -1.0; allowed: 0 for this input on T40"),
            (attributes("border", value=0.0), "value is 0.0; allowed: -1 for this input on T40"),
            (attributes("edge", value=0.0), "value is 0.0; allowed: -1 for this input on T40"),
            (attributes("edge", pads=[0, 0, 0, 0, 0, 0, 2, 1]), "the output edge has shape (1, 32, 5, 5); allowed"),
            (attributes("torch.getitem_6", starts=[0]), "the output torch.getitem_6 has shape (1, 32, 4, 5); allowed"),
            (attributes("torch.getitem_6", steps=[1]), "unknown attribute steps; known: axes, starts, ends"),
            (attributes("torch.chunk", split=[3, 1]), "node torch.chunk (Split): its inputs do not fit"),
            (attributes("torch.leaky_relu", alpha=None), "attribute alpha is missing"),
            (constant("leave.scale", lambda a: a[:5]), "its inputs do not fit"),
            (attributes("again", clip_min_value=-1.0), "clip_min_value is -1.0; allowed: 0 or -clip_max_value"),
            (attributes("again", target_device="Txx"), "the file's targets are T40, Txx"),
        )
    ),
    ("Txx, converted", attributes("edge", value=-1.0), "value is -1.0; allowed: 0 for this input on Txx"),
]


@pytest.mark.parametrize(("target", "change", "words"), BROKEN, ids=[f"{i}-{b[2][:40]}" for i, b in enumerate(BROKEN)])
def test_a_broken_rule_is_named(target: str, change: Change, words: str) -> None:
    model = copy.deepcopy(MODELS[target])
    change(model)
    found = model_problems(model)
    assert any(words in problem for problem in found), found
    assert model_problems(MODELS[target]) == []


def test_channels_of_another_target() -> None:
    """A network of 16 channels is fine on Txx, and not on T40."""
    common = {"activation_fn": None, "enable_batch_norm": True, "target_device": "Txx", **Q8}
    layers = [ops.Conv2D(3, 16, first_layer=True, **common), ops.Conv2D(16, 16, **common)]
    fc = ops.FullConnected(16, 10, None, last_layer=True, target_device="Txx", **Q8)
    net = nn.Sequential(ops.Preprocess(0, 255.0, "Txx"), *layers, ops.Flatten([-1, 16], "Txx"), fc)
    model = magik_model(net, torch.zeros(1, 3, 5, 5))
    retarget(model, "Txx", "T40")
    assert model_problems(model) == [
        "node 2 (QuantizeConv2DInference): 16 input channels; allowed: multiples of 32 on T40",
        "node 4/quantize_weight (QuantizeWeight): 16 input channels; allowed: multiples of 32 on T40",
    ]


def test_all_broken_rules_are_listed(tmp_path: Path) -> None:
    model = copy.deepcopy(MODELS["T40"])
    onnx.save(model, tmp_path / "good.onnx")
    assert check_magik(tmp_path / "good.onnx")["QuantizeConv2DInference"] == 2
    set_fields(model, "first", weight_bitwidth=9)
    set_fields(model, "fc", output_bitwidth=16)
    onnx.save(model, tmp_path / "bad.onnx")
    with pytest.raises(FileFormatError, match=re.escape("2 rules of the Magik format are broken")) as raised:
        check_magik(tmp_path / "bad.onnx")
    assert "1. node first (QuantizeConv2DInference): weight_bitwidth is 9" in str(raised.value)
    assert "2. node fc (QuantizeFullconnectedInference): output_bitwidth is 16" in str(raised.value)

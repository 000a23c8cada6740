"""Every rule of the compiler's layout: a good file, one thing changed, and the words that refuse it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from chipfit.chips.witmem.mapper.check import calibration_problems, check_mapper, model_problems
from chipfit.chips.witmem.mapper.side import SideEntry, read_side_text, side_text
from chipfit.chips.witmem.mapper.writer import export_witin_mapper
from chipfit.errors import FileFormatError
from support.damage import resummed


def tensor(values: object, name: str, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def value(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def good() -> tuple[onnx.ModelProto, dict[str, SideEntry]]:
    """One node of every kind that has rules of its own, in one chain."""
    table = tensor(np.zeros((2, 1024)), "activate_table")
    gru = {
        "input_offset": 0,
        "hidden_shift_bit": 1,
        "scale_input": 512,
        "scale_hidden": 256,
        "scale_ones": 128,
        "activate_type": ["sigmoid", "tanh"],
        "activate_table": table,
        "shift_bits": [1, -7, 2, -7],
        "clean_ht": 0,
    }
    conv = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "cw", "cb"], ["c1"], name="conv", dilations=[1, 1], group=1, **conv),
        helper.make_node("Scale", ["c1"], ["c2"], scale=1 / 1024),
        helper.make_node("ConvTranspose", ["c2", "tw", "tb"], ["t1"], name="up", output_padding=[0, 0], **conv),
        helper.make_node("Scale", ["t1"], ["t2"], scale=1 / 256),
        helper.make_node("Flatten", ["t2"], ["f"], axis=1),
        helper.make_node("Gemm", ["f", "gw", "gb"], ["g1"], name="fc"),
        helper.make_node("Scale", ["g1"], ["g2"], scale=1 / 8192),
        helper.make_node("ActLut", ["g2"], ["a"], act_type="tanh", table_params=tensor(np.zeros((1, 256)), "t")),
        helper.make_node("Concat", ["a", "g2"], ["k"], axis=1),
        helper.make_node("Add", ["k", "k"], ["s"], shift_bit=-1),
        helper.make_node("Gru2Array", ["s", "wi", "wh", "bi", "bh"], ["h"], name="gru", **gru),
        helper.make_node(
            "Tdnn",
            ["h", "dw"],
            ["y"],
            name="tdnn",
            time_offsets=tensor([-1, 0], "o"),
            bias_params=tensor([128, -256], "b"),
            scale_params=1024,
        ),
    ]
    constants = [
        tensor(np.full((4, 2, 3, 3), 127), "cw"),
        tensor([0, 128, -128, 563200], "cb"),
        tensor(np.full((4, 3, 3, 3), -128), "tw"),
        tensor(np.zeros(3), "tb"),
        tensor(np.zeros((75, 5)), "gw"),
        tensor(np.zeros(5), "gb"),
        tensor(np.zeros((10, 6)), "wi"),
        tensor(np.zeros((2, 6)), "wh"),
        tensor(np.zeros(6), "bi"),
        tensor(np.zeros(6), "bh"),
        tensor(np.zeros((4, 2)), "dw"),
    ]
    graph = helper.make_graph(nodes, "net", [value("x", 1, 2, 5, 5)], [value("y", 1, 2)], constants)
    graph.value_info.extend([value("f", 1, 75), value("s", 1, 10)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    model.ir_version = 8
    return model, {name: SideEntry() for name in ("conv", "up", "fc", "gru", "tdnn")}


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == kind)


def change(kind: str, **attributes: object) -> Callable[..., None]:
    """Set attributes of the first node of a kind; None removes."""

    def apply(model: onnx.ModelProto, side: dict[str, SideEntry]) -> None:
        target = node(model, kind)
        for name, new in attributes.items():
            kept = [a for a in target.attribute if a.name != name]
            del target.attribute[:]
            target.attribute.extend(kept)
            if new is not None:
                target.attribute.append(helper.make_attribute(name, new))

    return apply


def put(name: str, values: object, dtype: type = np.float32) -> Callable[..., None]:
    def apply(model: onnx.ModelProto, side: dict[str, SideEntry]) -> None:
        target = next(t for t in model.graph.initializer if t.name == name)
        target.CopyFrom(tensor(values, name, dtype))

    return apply


def inputs(kind: str, *names: str) -> Callable[..., None]:
    def apply(model: onnx.ModelProto, side: dict[str, SideEntry]) -> None:
        target = node(model, kind)
        del target.input[:]
        target.input.extend(names)

    return apply


def edit(action: Callable[[onnx.ModelProto, dict[str, SideEntry]], object]) -> Callable[..., None]:
    def apply(model: onnx.ModelProto, side: dict[str, SideEntry]) -> None:
        action(model, side)

    return apply


def rename(kind: str, new: str) -> Callable[..., None]:
    return edit(lambda model, side: setattr(node(model, kind), "op_type", new))


BROKEN = {
    "opset": (edit(lambda m, s: setattr(m.opset_import[0], "version", 13)), "at one of 14, 15, 16, 17, 18, 21"),
    "ir_version": (edit(lambda m, s: setattr(m, "ir_version", 10)), "ir_version is 10; allowed: 8"),
    "domain": (edit(lambda m, s: setattr(node(m, "Scale"), "domain", "witin")), "default domain ''"),
    "Div": (rename("Add", "Div"), "silently reads Div as Mul"),
    "unknown kind": (rename("Flatten", "LeakyRelu"), "the compiler does not read this kind"),
    "tensor dtype": (put("gw", np.zeros((75, 5)), np.int8), "tensor gw: INT8; allowed: FLOAT"),
    "fractions": (put("gw", np.full((75, 5), 0.5)), "tensor gw: holds values that are no integers"),
    "nan": (put("gw", np.full((75, 5), np.nan)), "tensor gw: holds values that are no integers"),
    "input dtype": (
        edit(lambda m, s: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.UINT8)),
        "tensor x: not FLOAT",
    ),
    "batch": (
        edit(lambda m, s: m.graph.input[0].CopyFrom(value("x", 4, 2, 5, 5))),
        r"shape \[4, 2, 5, 5\]; allowed: fixed sizes, batch 1",
    ),
    "free size": (
        edit(lambda m, s: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_param", "height")),
        "fixed sizes",
    ),
    "order of nodes": (
        edit(lambda m, s: m.graph.node.insert(0, m.graph.node.pop(4))),
        "reads t2, which nothing made before it",
    ),
    "made twice": (
        edit(lambda m, s: m.graph.node[3].output.__setitem__(0, "c2")),
        "makes c2 a second time",
    ),
    "missing output": (edit(lambda m, s: setattr(m.graph.output[0], "name", "z")), "output z: nothing makes it"),
    "no name": (edit(lambda m, s: setattr(node(m, "Gemm"), "name", "")), "a Gemm node has no name"),
    "one name twice": (edit(lambda m, s: setattr(node(m, "Gemm"), "name", "conv")), "2 nodes have this name"),
    "no side entry": (edit(lambda m, s: s.pop("fc")), "no entry for array node fc"),
    "side entry too many": (edit(lambda m, s: s.update(other=SideEntry())), "other is no array node"),
    "signed_input": (edit(lambda m, s: s.update(fc=SideEntry(signed_input=2))), "signed_input is 2; allowed: 0, 1"),
    "multiple": (edit(lambda m, s: s.update(fc=SideEntry(multiple=3))), "multiple is 3; allowed: a power of two"),
    "two Gemm inputs": (inputs("Gemm", "f", "gw"), "2 inputs; allowed: 3.*a bias of zeros"),
    "left-out input": (inputs("Gemm", "f", "gw", ""), "none left out"),
    "weight not constant": (inputs("Gemm", "f", "f", "gb"), "inputs f must be initializers"),
    "transB": (change("Gemm", transB=0), "attribute transB is not allowed here; allowed: none"),
    "alpha": (change("Gemm", alpha=1.0), "attribute alpha is not allowed"),
    "weight range": (put("gw", np.full((75, 5), 128)), "weight codes from 128 to 128; allowed: -128 to 127"),
    "weight dimensions": (put("gw", np.zeros((75, 5, 1))), "allowed: 2 dimensions"),
    "bias shape": (put("gb", np.zeros(4)), r"bias of shape \(4,\); allowed: \(5,\)"),
    "bias multiple": (put("gb", [0, 0, 64, 0, 0]), "bias holds 64; allowed: multiples of 128"),
    "bias range": (put("gb", [0, 0, 563328, 0, 0]), "bias holds 563328; allowed: -563200 to 563200"),
    "rows": (put("gw", np.zeros((897, 5))), "needs 897 rows .* allowed: 896"),
    "rows doubled": (edit(lambda m, s: s.update(up=SideEntry(1, multiple=16))), "needs 1152 rows .* allowed: 896"),
    "channels": (put("gw", np.zeros((76, 5))), "the input has 75 channels, the weight takes 76"),
    "no Scale": (inputs("Flatten", "t1"), r"read by \['Scale', 'Flatten'\]; allowed: one Scale"),
    "stray Scale": (inputs("Scale", "x"), "does not follow directly after"),
    "G too small": (change("Scale", scale=1 / 128), "G 128; allowed G: powers of two from 256 to 8192"),
    "G too large": (change("Scale", scale=1 / 16384), "G 16384"),
    "G no power of two": (change("Scale", scale=1 / 1000), "G 1000"),
    "scale missing": (change("Scale", scale=None), "attribute scale is missing"),
    "scale kind": (change("Scale", scale=1), "attribute scale is of kind int; allowed: float"),
    "strides missing": (change("Conv", strides=None), "attribute strides is missing"),
    "auto_pad": (change("Conv", auto_pad="VALID"), "attribute auto_pad is not allowed"),
    "pads": (change("Conv", pads=[1, 1]), r"pads \[1, 1\]; allowed: 4 numbers"),
    "kernel_shape": (change("Conv", kernel_shape=[3, 2]), "kernel_shape"),
    "group": (change("Conv", group=3), "group 3 does not divide"),
    "output_padding": (change("ConvTranspose", output_padding=None), "attribute output_padding is missing"),
    "act_type": (change("ActLut", act_type="gelu"), "act_type is 'gelu'"),
    "table shape": (change("ActLut", table_params=tensor(np.zeros(256), "t")), r"allowed: float32, shape \(1, 256\)"),
    "table values": (change("ActLut", table_params=tensor(np.full((1, 256), 300), "t")), "no 8-bit integers"),
    "concat axis": (change("Concat", axis=2), "axis is 2; allowed: 1"),
    "shift_bit": (change("Add", shift_bit=0.5), "attribute shift_bit is of kind float; allowed: int"),
    "output_padding length": (change("ConvTranspose", output_padding=[0, 0, 0]), "allowed: 2 or 4 numbers"),
    "one gate": (change("Gru2Array", activate_type="table"), "activate_type is of kind string; allowed: strings"),
    "gates": (change("Gru2Array", activate_type=["tanh", "sigmoid"]), r"allowed: \['sigmoid', 'tanh'\]"),
    "clean_ht": (change("Gru2Array", clean_ht=2), "clean_ht is 2; allowed: 0, 1"),
    "GRU columns": (put("wi", np.zeros((10, 5))), "allowed: 6 columns"),
    "GRU G": (change("Gru2Array", scale_hidden=100), "scale_hidden is 100"),
    "GRU ones": (change("Gru2Array", scale_ones=127), "scale_ones is 127; allowed: 128"),
    "GRU shifts": (change("Gru2Array", shift_bits=[1, 2]), "shift_bits has 2 numbers; allowed: 4"),
    "GRU table": (change("Gru2Array", activate_table=tensor(np.zeros((2, 256)), "t")), r"shape \(2, 1024\)"),
    "GRU offset": (change("Gru2Array", input_offset=1), "input_offset is 1"),
    "TDNN rows": (put("dw", np.zeros((5, 2))), "a multiple of the 2 time_offsets"),
    "TDNN bias": (change("Tdnn", bias_params=tensor([1, 0], "b")), "bias_params holds 1; allowed: multiples of 128"),
    "TDNN G": (change("Tdnn", scale_params=3), "scale_params is 3"),
}


def test_the_good_file_is_good():
    assert model_problems(*good()) == []


@pytest.mark.parametrize("name", BROKEN)
def test_rule(name):
    breaks, words = BROKEN[name]
    model, side = good()
    breaks(model, side)
    found = model_problems(model, side)
    assert any(re.search(words, problem) for problem in found), found


FINE = tensor(np.full((2, 1024), 4095), "activate_table")
ACCEPTED = {
    **{
        f"opset {n}": edit(lambda m, s, n=n: setattr(m.opset_import[0], "version", n)) for n in (14, 15, 16, 17, 18, 21)
    },
    "clean_ht": change("Gru2Array", clean_ht=1),
    "fine ones": change("Gru2Array", scale_ones=4096, activate_table=FINE),
    "four paddings": change("ConvTranspose", output_padding=[0, 0, 1, 1]),
    "no shift": change("Add", shift_bit=None),
    "no shift of a product": edit(lambda m, s: (rename("Add", "Mul")(m, s), change("Mul", shift_bit=None)(m, s))),
}
"""What occurs in the vendor's own files (spec/wtm2101-silicon.md, section 3)."""


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_vendors_files_hold(name):
    model, side = good()
    ACCEPTED[name](model, side)
    assert model_problems(model, side) == []


def one_node(kind: str, inputs: dict[str, object], side: dict[str, SideEntry], **attributes: object) -> list[str]:
    """What is wrong with a file of a single node on an input of shape (1, 4, 6, 6); inputs of positions are int64."""
    axes = {name: np.int64 for name in inputs if name == "axes"}
    constants = [tensor(values, name, axes.get(name, np.float32)) for name, values in inputs.items()]
    made = helper.make_node(kind, ["x", *inputs], ["y"], name="it", **attributes)
    graph = helper.make_graph([made], "net", [value("x", 1, 4, 6, 6)], [value("y", 1, 4, 1, 1)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model_problems(model, side)


@pytest.mark.parametrize("scale", [2, 0.5])
@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool", "GlobalAveragePool"])
def test_scales_of_pools_are_integers_or_not(kind, scale):
    windows = {} if kind == "GlobalAveragePool" else {"kernel_shape": [6, 6]}
    assert one_node(kind, {}, {}, scale_in=scale, scale_out=scale, **windows) == []
    assert "scale_in is of kind string; allowed: number" in one_node(kind, {}, {}, scale_in="2", **windows)[0]


def test_axes_of_a_mean_are_an_attribute_or_an_input():
    assert one_node("ReduceMean", {"axes": [2, 3]}, {}, keepdims=1) == []
    assert one_node("ReduceMean", {}, {}, keepdims=1, axes=[2, 3]) == []
    assert "axes" in one_node("ReduceMean", {}, {}, keepdims=1)[0]
    assert "axes" in one_node("ReduceMean", {"axes": [2, 3]}, {}, keepdims=1, axes=[2, 3])[0]


def recurrent(kind: str, **changed: object) -> list[str]:
    """What is wrong with a Gru or Lstm of 3 states that is as the vendor's files have it, but for what is changed."""
    gates = 2 if kind == "Gru" else 3
    weights = {"wa": np.ones((7, 3 * gates)), "wc": np.ones((7, 3)), "ba": np.zeros(3 * gates), "bc": np.zeros(3)}
    table = tensor(np.zeros((gates, 1024)), "activate_table")
    shared = {"activate_table": table, "activate_type": ["sigmoid", "tanh", "tanh"][:gates], "shift_bits": [0, 0]}
    own = {
        "Gru": {"scale_zr": 256, "scale_ht": 512, "scale_in": 1, "scale_ones": 127, "clean_ht": 0},
        "Lstm": {"scale_ioft": 256, "scale_ct": 512, "clean_ctht": 0},
    }
    return one_node(kind, weights, {"it": SideEntry()}, **(shared | own[kind] | changed))


@pytest.mark.parametrize("kind", ["Gru", "Lstm"])
def test_recurrent_nodes_of_one_piece(kind):
    assert recurrent(kind) == []
    assert "of kind string; allowed: strings" in recurrent(kind, activate_type="table")[0]
    assert "allowed: ['sigmoid', 'tanh'" in recurrent(kind, activate_type=["tanh"])[0]


def test_gru_of_one_piece():
    assert recurrent("Gru", scale_ones=4096) == []
    assert "scale_ones is 100; allowed: 127, 4096" in recurrent("Gru", scale_ones=100)[0]
    assert "clean_ctht is 5" in recurrent("Lstm", clean_ctht=5)[0]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((100, 50), np.float64), "float64"),
        (np.zeros((100, 2, 25), np.float32), "shape"),
        (np.zeros((99, 50), np.float32), "99 samples; allowed: at least 100"),
        (np.zeros((100, 49), np.float32), "49 values a sample; allowed: 50"),
        (np.full((100, 50), 0.5, np.float32), "no integers"),
        (np.full((100, 50), -1, np.float32), "codes from -1 to -1; allowed: 0 to 255"),
        (np.full((100, 50), 256, np.float32), "allowed: 0 to 255"),
    ],
)
def test_calibration_rule(array, words):
    found = calibration_problems(*good(), array)
    assert any(words in problem for problem in found), found


def test_signed_calibration():
    model, side = good()
    side["conv"] = SideEntry(signed_input=1)
    assert calibration_problems(model, side, np.full((100, 50), -128, np.float32)) == []
    assert "allowed: -128 to 127" in calibration_problems(model, side, np.full((100, 50), 128, np.float32))[0]


@pytest.fixture
def exported(two_layers, tmp_path):
    return export_witin_mapper(two_layers(), torch.rand(100, 6) * 15, tmp_path / "net.onnx")


def test_all_broken_rules_are_listed(exported):
    model = onnx.load(exported[0])
    change("Gemm", transA=1)(model, {})
    model.ir_version = 9
    exported[0].write_bytes(model.SerializeToString())
    with pytest.raises(FileFormatError, match="the file was changed"):
        check_mapper(exported[0])
    resummed(exported[0].parent)
    with pytest.raises(FileFormatError, match=r"2 rules[\s\S]*ir_version[\s\S]*transA"):
        check_mapper(exported[0])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_and_damaged_files(exported, which):
    exported[which].write_text("no such thing {")
    with pytest.raises(FileFormatError):
        check_mapper(exported[0])
    exported[which].unlink()
    with pytest.raises(FileFormatError, match="no such file"):
        check_mapper(exported[0])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("weightOpti", "weightOption", "unknown group"),
        ("region: 0", "area: 0", "unknown field"),
        (" region: 0", "", "fields are missing.*weightOpti.region"),
        ("region: 0", "region: x", "more than fields"),
        ("multiple: 0", "multiple: 99", "doubleWeightOpti.multiple out of range.*99"),
        ("repeat: 0", "repeat: -1", "arrayOutputOpti.repeat out of range.*-1"),
        ("fc {", "fc fc {", "no entry"),
    ],
)
def test_side_file(old, new, words):
    text = side_text({"fc": SideEntry()}).replace(old, new)
    with pytest.raises(FileFormatError, match=words):
        read_side_text(text)


def test_side_file_holds_exponents():
    entry = SideEntry(multiple=4, magnify=2, repeat=8)
    assert "multiple: 2 }" in side_text({"fc": entry}) and "magnify: 1 repeat: 3" in side_text({"fc": entry})
    assert read_side_text(side_text({"fc": entry})) == {"fc": entry}
    assert "multiple: 0 }" in side_text({"fc": SideEntry()})


def test_side_file_with_a_name_twice():
    text = side_text({"fc": SideEntry()})
    with pytest.raises(FileFormatError, match="two entries"):
        read_side_text(text + text)

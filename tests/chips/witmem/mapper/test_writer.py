from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper

from chipfit.chips.witmem.mapper.check import check_mapper
from chipfit.chips.witmem.mapper.side import read_side_text
from chipfit.chips.witmem.mapper.writer import export_witin_mapper
from chipfit.chips.witmem.program import ops
from chipfit.errors import ChipfitWarning, InvalidValueError, UnsupportedError
from chipfit.program.reference import trace
from chipfit.program.types import Program, ValueType

CODES = ValueType((5,), 8, True, 16.0)


def silicon(model: onnx.ModelProto, codes: np.ndarray) -> np.ndarray:
    """What the chip computes with such a file, by spec/wtm2101-silicon.md, section 1, for many samples at once."""
    given = model.graph.input[0]
    shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:]
    edges = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()).double() for t in model.graph.initializer}
    edges[given.name] = torch.from_numpy(codes.copy()).double().reshape(-1, *shape)
    for node in model.graph.node:
        x, *operands = (edges[name] for name in node.input)
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Gemm":
            y = x @ operands[0] + operands[1]
        elif node.op_type == "Conv":
            top, left, bottom, right = values["pads"]
            padded = F.pad(x, (left, right, top, bottom))
            y = F.conv2d(padded, *operands, values["strides"], groups=values.get("group", 1))
        elif node.op_type == "ConvTranspose":
            y = F.conv_transpose2d(x, *operands, values["strides"], values["pads"][:2], values["output_padding"])
        elif node.op_type == "Scale":
            v = x * values["scale"]
            y = torch.where(v >= 0, torch.floor(v + 0.5), torch.trunc(v - 0.25)).clamp(-128, 127)
        elif node.op_type == "Relu":
            y = x.clamp(min=0)
        elif node.op_type == "MaxPool":
            y = F.max_pool2d(x, values["kernel_shape"], values["strides"], values["pads"][:2])
        elif node.op_type == "Flatten":
            y = x.flatten(1)
        elif node.op_type == "Reshape":
            y = x.reshape(-1, *operands[0].int().tolist()[1:])
        else:
            raise AssertionError(node.op_type)
        edges[node.output[0]] = y
    return edges[model.graph.output[0].name].numpy()


@pytest.fixture
def samples():
    return torch.rand(120, 6, generator=torch.Generator().manual_seed(2)) * 17


def test_file_computes_the_programs_codes(two_layers, samples, tmp_path):
    program = two_layers()
    files = export_witin_mapper(program, samples, tmp_path / "net.onnx")
    assert [path.name for path in files] == ["net.onnx", "net.txt", "net.npy"]
    assert check_mapper(files[0]) == {"Gemm": 2, "Scale": 2, "Relu": 1}
    model = onnx.load(files[0])
    calibration = np.load(files[2])
    assert calibration.dtype == np.float32
    assert calibration.shape == (120, 6)
    assert np.array_equal(silicon(model, calibration), trace(program, samples)["fc2"].numpy())
    assert [node.name for node in model.graph.node if node.op_type == "Gemm"] == ["fc1", "fc2"]
    weight = next(t for t in model.graph.initializer if t.name == "fc1.weight")
    assert list(weight.dims) == [6, 5]
    assert {a.name: a.f for a in model.graph.node[1].attribute} == {"scale": 2.0**-8}
    side = read_side_text(files[1].read_text())
    assert {name: entry.signed_input for name, entry in side.items()} == {"fc1": 0, "fc2": 0}


def refused(program: Program, samples: torch.Tensor, tmp_path, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        export_witin_mapper(program, samples, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def chain(maker, middle: ops.Op, kind: ValueType = CODES, **second: object) -> Program:
    made = maker(0)
    x = made.start((6,), 8, signed=False)
    linear = ops.Geometry("linear")
    options = {"log2_g": 8, "rounding": "wtm2101"}
    y = made.node("fc1", made.array_op("fc1", linear, made.weights(5, 6), **options), (x,), CODES)
    y = made.node("middle", middle, (y,), kind)
    op = made.array_op("fc2", linear, made.weights(3, 5), **(options | second))
    y = made.node("fc2", op, (y,), ValueType((3,), 8, True, 4.0))
    return made.finish(y)


def test_scales_that_do_not_chain(maker, samples, tmp_path):
    kind = ValueType((5,), 8, False, 32.0)
    program = chain(maker, ops.Rescale(1, 0, 0, 255), kind)
    refused(
        program,
        samples,
        tmp_path,
        r"fc2 takes 32 codes a unit, but fc1 gives 16.*Set scale_x=16 of fc2 \(G becomes 128; ",
    )


def test_a_clip_at_zero_is_a_relu(maker, samples, tmp_path):
    program = chain(maker, ops.Rescale(0, 0, 0, 255), ValueType((5,), 8, False, 16.0))
    path = export_witin_mapper(program, samples, tmp_path / "net.onnx")[0]
    assert check_mapper(path) == {"Gemm": 2, "Scale": 2, "Relu": 1}
    model = onnx.load(path)
    assert np.array_equal(silicon(model, np.load(tmp_path / "net.npy")), trace(program, samples)["fc2"].numpy())


def test_signed_input_takes_two_passes(maker, samples, tmp_path):
    same = ops.Rescale(0, 0, -255, 255)
    program = chain(maker, same, ValueType((5,), 9, True, 16.0), negative="pn")
    weight = program.tensors["fc2.weight"]
    program.tensors["fc2.minus"] = -weight
    path = export_witin_mapper(program, samples, tmp_path / "net.onnx")[0]
    assert check_mapper(path) == {"Gemm": 2, "Scale": 2}
    assert read_side_text((tmp_path / "net.txt").read_text())["fc2"].signed_input == 1
    model = onnx.load(path)
    assert np.array_equal(silicon(model, np.load(tmp_path / "net.npy")), trace(program, samples)["fc2"].numpy())


def test_second_pass_that_is_no_mirror(maker, samples, tmp_path):
    program = chain(maker, ops.Rescale(0, 0, -255, 255), ValueType((5,), 9, True, 16.0), negative="pn")
    program.tensors["fc2.weight"][0, 0] = -128
    program.tensors["fc2.minus"][0, 0] = 127
    refused(program, samples, tmp_path, "w_clip")


def test_negative_codes_without_pn(maker, samples, tmp_path):
    program = chain(maker, ops.Rescale(0, 0, -256, 255), ValueType((5,), 9), negative="signed", x_bits=9)
    refused(program, samples, tmp_path, r"fc2: its input has codes from -128 to 127; without PN")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"negative": "shift"}, "Shift"),
        ({"split": True, "x_bits": 10}, "10-bit input"),
        ({"lo": -8, "hi": 7}, "saturates at -8 and 7"),
        ({"log2_g": 4}, "G 16; allowed G: powers of two from 256 to 8192"),
    ],
)
def test_what_the_array_cannot_do(maker, samples, tmp_path, options, match):
    refused(chain(maker, ops.Relu(), **options), samples, tmp_path, match)


def test_other_functions_have_no_table(maker, samples, tmp_path):
    made = maker(0)
    made.tensor("gelu", np.arange(256)[None] // 2)
    x = made.start((6,), 8, signed=True)
    y = made.node("gelu", ops.LookUp("gelu", "gelu", -128), (x,), ValueType((6,), 8))
    program = made.finish(y)
    refused(program, samples, tmp_path, "ActLut knows sigmoid and tanh, not gelu")


def test_act_lut_is_in_order_of_the_byte(maker, tmp_path):
    made = maker(0)
    table = np.arange(256)[None] - 128
    made.tensor("tanh", table)
    x = made.start((6,), 8, signed=True)
    op = made.array_op("fc", ops.Geometry("linear"), made.weights(4, 6), negative="pn", log2_g=9, rounding="wtm2101")
    made.tensors["fc.minus"] = -made.tensors["fc.weight"]
    y = made.node("fc", op, (x,), ValueType((4,), 8))
    y = made.node("tanh", ops.LookUp("tanh", "tanh", -128), (y,), ValueType((4,), 8))
    path = export_witin_mapper(made.finish(y), made.data(100)[0].clamp(-8, 7.9), tmp_path / "net.onnx")[0]
    assert check_mapper(path)["ActLut"] == 1
    node = next(node for node in onnx.load(path).graph.node if node.op_type == "ActLut")
    params = numpy_helper.to_array(next(a.t for a in node.attribute if a.name == "table_params"))
    assert params.shape == (1, 256)
    assert params[0, [0, 127, 128, 255]].tolist() == [0, 127, -128, -1]


def test_convolutional_network(maker, tmp_path):
    made = maker(4)
    options = {"rounding": "wtm2101", "log2_g": 8}
    x = made.start((2, 8, 8), 8, signed=False)
    conv = ops.Geometry("conv", (1, 1), (1, 1), (1, 1), (), 1)
    y = made.node(
        "conv", made.array_op("conv", conv, made.weights(4, 2, 3, 3), **options), (x,), ValueType((4, 8, 8), 8)
    )
    y = made.node("relu", ops.Relu(), (y,), ValueType((4, 8, 8), 8))
    y = made.node("pool", ops.MaxPool((2, 2), (2, 2), (0, 0), (1, 1), False), (y,), ValueType((4, 4, 4), 8))
    up = ops.Geometry("conv_transpose", (2, 2), (1, 1), (1, 1), (1, 1), 1)
    y = made.node("up", made.array_op("up", up, made.weights(4, 3, 3, 3), **options), (y,), ValueType((3, 8, 8), 8))
    y = made.node("relu2", ops.Relu(), (y,), ValueType((3, 8, 8), 8))
    y = made.node("flat", ops.Reshape((-1, 192)), (y,), ValueType((192,), 8))
    op = made.array_op("fc", ops.Geometry("linear"), made.weights(10, 192), **options)
    y = made.node("fc", op, (y,), ValueType((10,), 8))
    program, samples = made.finish(y), torch.rand(100, 2, 8, 8) * 15
    path = export_witin_mapper(program, samples, tmp_path / "net.onnx")[0]
    computed = silicon(onnx.load(path), np.load(tmp_path / "net.npy"))
    assert np.array_equal(computed, trace(program, samples)["fc"].numpy())
    assert len(np.unique(computed)) > 50
    wanted = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "Scale": 3, "Relu": 2, "MaxPool": 1, "Flatten": 1}
    assert check_mapper(path) == wanted
    assert np.load(tmp_path / "net.npy").shape == (100, 128)


def test_convolution_over_time_is_one_of_height_one(maker, tmp_path):
    made = maker(4)
    x = made.start((3, 20), 8, signed=False)
    conv = ops.Geometry("conv", (2,), (0,), (1,), (), 1)
    y = made.node("pad", ops.Pad((2, 1), "constant", 0), (x,), ValueType((3, 23), 8, False))
    op = made.array_op("conv", conv, made.weights(4, 3, 5), rounding="wtm2101", log2_g=8)
    y = made.node("conv", op, (y,), ValueType((4, 10), 8))
    program, samples = made.finish(y), torch.rand(100, 3, 20) * 15
    path = export_witin_mapper(program, samples, tmp_path / "net.onnx")[0]
    computed = silicon(onnx.load(path), np.load(tmp_path / "net.npy"))
    assert np.array_equal(computed, trace(program, samples)["conv"].numpy())
    assert check_mapper(path) == {"Reshape": 2, "Conv": 1, "Scale": 1}
    model = onnx.load(path)
    values = {a.name: list(a.ints) for a in model.graph.node[1].attribute}
    assert values == {"kernel_shape": [1, 5], "strides": [1, 2], "pads": [0, 2, 0, 1]}
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    assert sizes == {"conv.image": [1, 3, 1, 20], "conv.sum": [1, 4, 1, 10], "conv.scaled": [1, 4, 1, 10]}


def test_padding_goes_into_the_convolution(maker, tmp_path):
    made = maker(4)
    x = made.start((2, 8, 8), 8, signed=False)
    y = made.node("pad", ops.Pad((1, 2, 3, 4), "constant", 0), (x,), ValueType((2, 15, 11), 8, False))
    conv = ops.Geometry("conv", (1, 1), (0, 0), (1, 1), (), 2)
    op = made.array_op("conv", conv, made.weights(4, 1, 3, 3), rounding="wtm2101", log2_g=8)
    y = made.node("conv", op, (y,), ValueType((4, 13, 9), 8))
    program, samples = made.finish(y), torch.rand(100, 2, 8, 8) * 15
    path = export_witin_mapper(program, samples, tmp_path / "net.onnx")[0]
    check_mapper(path)
    computed = silicon(onnx.load(path), np.load(tmp_path / "net.npy"))
    assert np.array_equal(computed, trace(program, samples)["conv"].numpy())
    node = onnx.load(path).graph.node[0]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (values["pads"], values["group"]) == ([3, 1, 4, 2], 2)


@pytest.mark.parametrize(("mode", "value"), [("reflect", 0), ("constant", 3)])
def test_other_padding(maker, tmp_path, mode, value):
    made = maker(4)
    x = made.start((2, 8, 8), 8, signed=False)
    y = made.node("pad", ops.Pad((1, 1, 0, 0), mode, value), (x,), ValueType((2, 8, 10), 8, False))
    conv = ops.Geometry("conv", (1, 1), (0, 0), (1, 1), (), 1)
    op = made.array_op("conv", conv, made.weights(4, 2, 3, 3), rounding="wtm2101", log2_g=8)
    y = made.node("conv", op, (y,), ValueType((4, 6, 8), 8))
    refused(made.finish(y), torch.rand(100, 2, 8, 8) * 15, tmp_path, "Conv pads with zeros")


def gru_program(maker, input_shift: int = 0) -> tuple[Program, torch.Tensor]:
    made = maker(8)
    x = made.start((6, 5), 8, signed=False)
    linear = ops.Geometry("linear")
    made.tensor("gates", made.rng.integers(0, 128, 1024))
    made.tensor("candidates", made.rng.integers(-128, 128, 1024))
    options = {"log2_g": 8, "rounding": "wtm2101"}
    first = made.array_op("in", linear, made.weights(12, 5), **options)
    second = made.array_op("hid", linear, made.weights(12, 4), negative="pn", **options)
    op = ops.Gru(first, second, input_shift, 1, 1, 2, "gates", "candidates", 1, False)
    y = made.node("gru", op, (x,), ValueType((6, 4), 8, True, 128.0))
    y = made.node("last", ops.Select(1, -1), (y,), ValueType((4,), 8, True, 128.0))
    return made.finish(y), torch.rand(100, 6, 5) * 15


def test_gru(maker, tmp_path):
    program, samples = gru_program(maker)
    path = export_witin_mapper(program, samples, tmp_path / "net.onnx")[0]
    assert check_mapper(path) == {"Gru2Array": 1, "Slice": 1, "Reshape": 1}
    node = onnx.load(path).graph.node[0]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (values["scale_input"], values["scale_hidden"], values["scale_ones"]) == (256, 256, 128)
    assert (values["hidden_shift_bit"], values["shift_bits"]) == (1, [1, -7, 2, -7])
    assert (values["activate_type"], values["clean_ht"]) == ([b"sigmoid", b"tanh"], 0)
    table = numpy_helper.to_array(values["activate_table"])
    gates = program.tensors["gates"].numpy()
    assert np.array_equal(table[0], np.concatenate([gates[512:], gates[:512]]))


def test_gru_whose_input_half_is_coarser(maker, tmp_path):
    refused(*gru_program(maker, input_shift=1), tmp_path, "coarser scale")


def test_too_few_samples(two_layers, tmp_path):
    with pytest.raises(InvalidValueError, match="at least 100"):
        export_witin_mapper(two_layers(), torch.rand(99, 6), tmp_path / "net.onnx")


def test_the_trainers_rounding_warns(maker, samples, tmp_path):
    program = chain(maker, ops.Relu(), rounding="witin_nn")
    with pytest.warns(ChipfitWarning, match=r"fc2.*wtm2101"):
        export_witin_mapper(program, samples, tmp_path / "net.onnx")

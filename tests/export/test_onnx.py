from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from chipfit.chips.witmem.program import ops
from chipfit.errors import UnknownOptionError, UnsupportedError
from chipfit.export.onnx.writer import export_onnx, onnx_model
from chipfit.program.reference import trace
from chipfit.program.types import Grid, Program, ValueType


@pytest.fixture
def assert_equal_codes(onnxruntime_levels):
    """Every edge, and the outputs alone (where more is fused), at every level; returns how many codes were compared."""

    def check(program: Program, data: list[torch.Tensor]) -> int:
        wanted = trace(program, *data)
        edges = [node.name for node in program.nodes if not node.output.real]
        feeds = {given.name: x.numpy() for given, x in zip(program.inputs, data, strict=True)}
        compared = 0
        for names in ((), edges):
            model = onnx_model(program, names)
            onnx.checker.check_model(model, full_check=True)
            for level, found in enumerate(onnxruntime_levels(model.SerializeToString(), feeds)):
                for name, value in zip([*program.outputs, *names], found, strict=True):
                    expected = wanted[name].numpy()
                    assert value.shape == expected.shape, name
                    assert np.array_equal(value, expected), (name, level, np.argwhere(value != expected)[:3])
                    compared += value.size
        return compared

    return check


NEGATIVES = {"unsigned": (8, False), "signed": (9, True), "pn": (9, True), "shift": (8, False)}


@pytest.mark.parametrize("negative", NEGATIVES)
@pytest.mark.parametrize("rounding", ["witin_nn", "wtm2101"])
@pytest.mark.parametrize("seed", range(3))
def test_random_array_chains(assert_equal_codes, maker, negative, rounding, seed):
    made = maker(seed)
    bits, signed = NEGATIVES[negative]
    zero = 33 if negative == "shift" else 0
    x_bits = 9 if negative == "signed" else 8
    options = {"negative": negative, "rounding": rounding, "x_bits": x_bits, "shift_code": zero}
    x = made.start((3, 9, 8), bits, signed, zero)
    y_bits = made.integer(4, 12)
    lo, hi = -(1 << (y_bits - 1)), (1 << (y_bits - 1)) - 1
    conv = ops.Geometry("conv", (2, 1), (1, 2), (1, 2), (), 1)
    y = made.node(
        "conv",
        made.array_op("conv", conv, made.weights(4, 3, 3, 2), lo=lo, hi=hi, **options),
        (x,),
        ValueType((4, 5, 10), y_bits, True, 8.0),
    )
    kind = ValueType((4, 5, 10), 8, False, Grid("plain", 4.0, zero))
    y = made.node("conv.out", ops.Rescale(-1, zero, 0, 255), (y,), kind)
    transposed = ops.Geometry("conv_transpose", (2, 2), (1, 1), (1, 1), (1, 0), 1)
    unsigned = {**options, "negative": "unsigned" if negative != "shift" else "shift", "x_bits": 8}
    y = made.node(
        "up",
        made.array_op("up", transposed, made.weights(4, 2, 3, 3), **unsigned),
        (y,),
        ValueType((2, 10, 19), 8, True, 8.0),
    )
    y = made.node("relu", ops.Relu(), (y,), ValueType((2, 10, 19), 8, True, 8.0))
    y = made.node("flat", ops.Reshape((-1, 380)), (y,), ValueType((380,), 8, True, 8.0))
    y = made.node(
        "fc",
        made.array_op("fc", ops.Geometry("linear"), made.weights(7, 380), rounding=rounding),
        (y,),
        ValueType((7,), 8, True, 8.0),
    )
    assert assert_equal_codes(made.finish(y), made.data(5)) > 5000


@pytest.mark.parametrize("bits", [4, 10, 12])
@pytest.mark.parametrize("negative", ["unsigned", "pn", "signed"])
def test_other_widths_and_split_inputs(assert_equal_codes, maker, bits, negative):
    made = maker(bits)
    signed = negative != "unsigned"
    x = made.start((20,), bits + (negative == "pn"), signed)
    split = bits > 8 and negative != "signed"
    op = made.array_op(
        "fc",
        ops.Geometry("linear"),
        made.weights(30, 20),
        negative=negative,
        split=split,
        x_bits=bits,
        lo=-(1 << (bits - 1)),
        hi=(1 << (bits - 1)) - 1,
    )
    y = made.node("fc", op, (x,), ValueType((30,), bits, True, 2.0))
    assert_equal_codes(made.finish(y), made.data(50))


@pytest.mark.parametrize("kind", ["linear", "conv", "conv_transpose"])
@pytest.mark.parametrize("rounding", ["witin_nn", "wtm2101"])
def test_accumulators_beyond_float32_are_exact(assert_equal_codes, maker, kind, rounding):
    """4,095 x 128 x 400 needs 28 bits; a float32 sum would lose the last ones, which decide the ties here."""
    made = maker(1)
    shape = {"linear": (5, 400), "conv": (5, 100, 2, 2), "conv_transpose": (100, 5, 2, 2)}[kind]
    given = {"linear": (400,), "conv": (100, 3, 3), "conv_transpose": (100, 3, 3)}[kind]
    made_shape = {"linear": (5,), "conv": (5, 2, 2), "conv_transpose": (5, 4, 4)}[kind]
    geometry = ops.Geometry(kind) if kind == "linear" else ops.Geometry(kind, (1, 1), (0, 0), (1, 1), (0, 0), 1)
    x = made.start(given, 12, False)
    op = made.array_op(
        "layer",
        geometry,
        made.weights(*shape) // 4 + 90,
        x_bits=12,
        log2_g=1,
        lo=-(1 << 30),
        hi=(1 << 30) - 1,
        rounding=rounding,
    )
    y = made.node("layer", op, (x,), ValueType(made_shape, 31, True, 1.0))
    program = made.finish(y)
    assert int(trace(program, *made.data(3))["layer"].abs().max()) > 1 << 24
    assert_equal_codes(program, made.data(3))


@pytest.mark.parametrize("seed", range(6))
def test_digital_operations(assert_equal_codes, maker, seed):
    made = maker(seed)
    shape = (3, 4, 5)
    a, c = made.start(shape, made.integer(8, 12)), made.start(shape, made.integer(8, 12))
    codes = ValueType(shape, 10, True, 16.0)

    def node(name: str, op: ops.Op, *inputs: str, kind: ValueType = codes) -> str:
        return made.node(name, op, inputs, kind)

    shift = made.integer(-6, 1)
    node("add", ops.Add(shift, -512, 511), a, c)
    node("mul", ops.Mul(shift - 6, -512, 511), a, c)
    node("divide", ops.Divide(made.integer(-2, 3), -512, 511), a, c)
    node("divide_self", ops.Divide(3, -512, 511), c, "mul")
    node("hypot", ops.Hypot(8, -5, 0, 1023), a, c, kind=ValueType(shape, 10, False, 16.0))
    made.tensor("bn.w", made.weights(3))
    made.tensor("bn.b", 100 * made.weights(3))
    node("bn", ops.MultiplyAdd("bn.w", "bn.b", -8, -512, 511), a)
    node("small", ops.Rescale(-4, 0, -128, 127), a, kind=ValueType(shape, 8))
    made.tensor("table", made.rng.integers(0, 256, (1, 256)))
    made.tensor("rows", made.rng.integers(-128, 128, (3, 256)))
    node("lut", ops.LookUp("sigmoid", "table", -128), "small", kind=ValueType(shape, 8, False))
    node("prelu", ops.LookUp("prelu", "rows", -128), "small", kind=ValueType(shape, 8))
    node("mean", ops.Mean((2,), True, -(1 << 54), (1 << 54) - 1), a, kind=ValueType((3, 1, 5), 12))
    node("mean_clipped", ops.Mean((1, 3), False, -300, 299), a, kind=ValueType((4,), 12))
    norm = {"sum_lo": -(1 << 54), "sum_hi": (1 << 54) - 1, "lo": -128, "hi": 127}
    node("norm", ops.LayerNorm(False, 8, 4, **norm), a, kind=ValueType(shape, 8))
    node("norm_simple", ops.LayerNorm(True, 4, -3, **norm), "small", kind=ValueType(shape, 8))
    node("turned", ops.Permute((0, 1, 3, 2)), "small", kind=ValueType((3, 5, 4), 8))
    node("product", ops.MatMul(-3, -2048, 2047), "small", "turned", kind=ValueType((3, 4, 4), 12))
    made.tensor("two", made.weights(1, 4, 1))
    node("fixed", ops.Constant("two"), kind=ValueType(None, 8))
    node("with_fixed", ops.Mul(-2, -512, 511), "small", "fixed")
    node("sum", ops.Sum((3,), False), a, kind=ValueType((3, 4), 16))
    outputs = [n.name for n in made.nodes if n.name not in ("x0.q", "x1.q", "fixed")]
    assert_equal_codes(made.finish(*outputs), made.data(6))


def test_moves_and_pools(assert_equal_codes, maker):
    made = maker(3)
    shape = (3, 7, 9)
    x = made.start(shape, 8)

    def node(name: str, op: ops.Op, *inputs: str, shape: tuple[int, ...], bits: int = 8) -> str:
        return made.node(name, op, inputs or (x,), ValueType(shape, bits))

    node("max", ops.MaxPool((3, 2), (2, 2), (1, 1), (1, 1), False), shape=(3, 4, 5))
    node("max_up", ops.MaxPool((3, 2), (2, 2), (1, 0), (1, 1), True), shape=(3, 4, 5))
    node("max_drop", ops.MaxPool((2, 2), (3, 3), (1, 1), (1, 1), True), shape=(3, 3, 4))
    node("sums", ops.SumPool((2, 4), (1, 2)), shape=(3, 6, 3), bits=12)
    node("pad", ops.Pad((1, 2, 0, 1), "constant", 5), shape=(3, 8, 12))
    node("reflect", ops.Pad((1, 2, 3, 1), "reflect", 0), shape=(3, 11, 12))
    node("replicate", ops.Pad((1, 2, 3, 1), "replicate", 0), shape=(3, 11, 12))
    node("circular", ops.Pad((1, 2, 3, 1), "circular", 0), shape=(3, 11, 12))
    node("reshape", ops.Reshape((-1, 21, 9)), shape=(21, 9))
    node("slice", ops.Slice(3, 1, None, 3), shape=(3, 7, 3))
    node("slice_back", ops.Slice(2, -5, -1, 2), shape=(3, 2, 9))
    node("select", ops.Select(2, -2), shape=(3, 9))
    node("flip", ops.Flip((1, 3)), shape=shape)
    node("cat", ops.Cat(1), x, "flip", shape=(6, 7, 9))
    node("clamp", ops.Clamp(0, 96), shape=shape)
    names = [n.name for n in made.nodes if n.name != x]
    assert_equal_codes(made.finish(*names), made.data(4))


@pytest.mark.parametrize("time_dim", [0, 1])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_gru(assert_equal_codes, maker, time_dim, reverse, first):
    made = maker(8)
    shape = (6, 5) if time_dim else None
    x = made.start((6, 5), 8, False)
    if not time_dim:
        x = made.node("turned", ops.Permute((1, 0, 2)), (x,), ValueType(None, 8, False))
    linear = ops.Geometry("linear")
    gates = made.tensor("gates", made.rng.integers(0, 128, 1024))
    candidates = made.tensor("candidates", made.rng.integers(-128, 128, 1024))
    op = ops.Gru(
        made.array_op("gru.in", linear, made.weights(12, 5), log2_g=8),
        made.array_op("gru.hid", linear, made.weights(12, 4), log2_g=8, negative="pn"),
        1,
        0,
        1,
        2,
        gates,
        candidates,
        time_dim,
        reverse,
    )
    inputs = (x, made.start((4,), 8, scale=128.0)) if first else (x,)
    y = made.node("gru", op, inputs, ValueType((6, 4) if shape else None, 8, True, 128.0))
    assert_equal_codes(made.finish(y), made.data(3))


def test_rounding_before_the_zero_point(assert_equal_codes, maker):
    """Ties go by the sum with an odd zero: 0.5 + 1 = 1.5 becomes 2, where QuantizeLinear would give 0 + 1."""
    made = maker(0)
    x = made.start((2,), 8, False, zero=1, scale=1.0)
    program = made.finish(x)
    data = [torch.tensor([[0.5, 1.5]])]
    assert trace(program, *data)[x].tolist() == [[2, 2]]
    assert_equal_codes(program, data)


def test_round_trip_and_what_it_uses(onnxruntime_levels, two_layers, tmp_path):
    program = two_layers()
    path = export_onnx(program, tmp_path / "net.onnx", edges=["fc1"])
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import] == [21]
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "MatMul", "Floor", "Ceil", "Where"} <= kinds
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert stored["codes/fc1.weight"] == onnx.TensorProto.INT8
    data = torch.rand(9, 6) * 32
    wanted = trace(program, data)
    for found in onnxruntime_levels(path.read_bytes(), {"x0": data.numpy()}):
        assert np.array_equal(found[0], wanted[program.outputs[0]].numpy())
        assert found[1].dtype == np.int64
        assert np.array_equal(found[1], wanted["fc1"].numpy())


def test_onnxruntime_puts_no_integer_kernel_in_its_place(onnxruntime_levels, maker, tmp_path):
    """Its fused kernels requantise in their own way, and on some processors saturate sums of 8-bit products."""
    made = maker(5)
    x = made.start((2, 6, 6), 8, signed=False)
    conv = ops.Geometry("conv", (1, 1), (0, 0), (1, 1), (), 1)
    options = {"rounding": "witin_nn", "log2_g": 9}
    kind = ValueType((4, 4, 4), 8)
    y = made.node("conv", made.array_op("conv", conv, made.weights(4, 2, 3, 3), **options), (x,), kind)
    y = made.node("relu", ops.Relu(), (y,), kind)
    y = made.node("flat", ops.Reshape((-1, 64)), (y,), ValueType((64,), 8))
    op = made.array_op("fc", ops.Geometry("linear"), made.weights(32, 64), **options)
    y = made.node("fc", op, (y,), ValueType((32,), 8))
    content = onnx_model(made.finish(y)).SerializeToString()
    onnxruntime_levels(content, {"x0": made.data(2)[0].numpy()}, optimised=str(tmp_path / "optimised.onnx"))
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert not [kind for kind in kinds if "Integer" in kind or "NBits" in kind or kind.startswith(("QLinear", "QGemm"))]


def test_unknown_edge(two_layers, tmp_path):
    with pytest.raises(UnknownOptionError, match="fc1"):
        export_onnx(two_layers(), tmp_path / "net.onnx", edges=["fc11"])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exact_is_refused(maker, tmp_path):
    made = maker(0)
    x = made.start((4,), 40, scale=1.0)
    y = made.node("mul", ops.Mul(0, -(1 << 62), (1 << 62) - 1), (x, x), ValueType((4,), 63))
    with pytest.raises(UnsupportedError, match="float64"):
        export_onnx(made.finish(y), tmp_path / "net.onnx")

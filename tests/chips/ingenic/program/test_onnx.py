"""Ingenic programs in onnxruntime: every code and every bit of every real output equal, at every optimisation level."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.program import onnx as onnx_ingenic
from chipfit.chips.ingenic.program import ops as ops_ingenic
from chipfit.chips.ingenic.program.ops import Finish, Requantise
from chipfit.errors import UnsupportedError
from chipfit.export import export
from chipfit.export.onnx import core as onnx_core
from chipfit.export.onnx.writer import onnx_model
from chipfit.program import load_program, lower, ops, save_program
from chipfit.program.reference import run, trace
from chipfit.program.types import VERSION, Grid, Input, Node, Program, ValueType
from ingenic_t40_network import Network as ManualNetwork
from support.ingenic import networks as known
from support.ingenic import random_networks as drawn

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
REAL = ValueType(None, None)


@pytest.fixture(scope="session")
def assert_equal_bits(onnxruntime_levels):
    """Every edge, and the outputs alone (where more is merged), at every level; returns how many were compared."""

    def check(program: Program, *data: torch.Tensor) -> int:
        wanted = trace(program, *data)
        feeds = {given.name: x.numpy() for given, x in zip(program.inputs, data, strict=True)}
        compared = 0
        for names in ([], [node.name for node in program.nodes if not node.output.real]):
            model = onnx_model(program, names)
            onnx.checker.check_model(model, full_check=True)
            for level, found in enumerate(onnxruntime_levels(model.SerializeToString(), feeds)):
                for name, value in zip([*program.outputs, *names], found, strict=True):
                    expected = wanted[name].numpy()
                    assert (value.dtype, value.shape) == (expected.dtype, expected.shape), name
                    assert np.array_equal(value, expected), (name, level, np.argwhere(value != expected)[:3])
                    assert value.tobytes() == expected.tobytes(), f"{name}: the sign of a zero"
                    compared += value.size
        return compared

    return check


def program_of(*nodes: Node, inputs: tuple[Input, ...], outputs: tuple[str, ...], **tensors: Any) -> Program:
    held = {name: torch.as_tensor(values) for name, values in tensors.items()}
    return Program(VERSION, "t40", nodes, inputs, outputs, held)


def typed(lo: int, hi: int, *shape: int) -> ValueType:
    bits = max(hi.bit_length(), (-lo - 1).bit_length()) + (lo < 0)
    return ValueType(shape, bits, lo < 0)


# --- rounding


def requantised(op: Requantise, values: np.ndarray, n: float = 1.0) -> tuple[Program, torch.Tensor]:
    """Numbers to codes, and codes to numbers of 1/n."""
    x = torch.from_numpy(values.astype(np.float32)).view(1, -1)
    lo = 0 if op.kind == "unsigned" else -op.n
    node = Node("q", Finish(requantise=op), ("x",), typed(lo, op.n, x.shape[1]))
    real = Node("y", Finish(Grid("plain", n)), ("q",), ValueType((x.shape[1],), None))
    shape = ValueType((x.shape[1],), None)
    return program_of(node, real, inputs=(Input("x", shape),), outputs=("y",)), x


def test_tie_band_by_hand(assert_equal_bits, onnxruntime_levels):
    """From k + 0.5 to before float32(k + 0.501) to the even neighbour, by magnitude; below 0 likewise."""
    values = np.array([2.5009, 0.5005, 1.4999, 2.502, 3.5009, 2.5, 3.5, -2.5009, -0.5005, -2.502, -0.3])
    values = np.append(values, [116.50099, 116.50099945, -116.50099945])
    wanted = [2, 0, 1, 3, 4, 2, 4, -2, 0, -3, 0, 116, 117, -117]
    program, x = requantised(Requantise("signed", 128, 128.0), values)
    assert trace(program, x)["q"].flatten().tolist() == wanted
    assert_equal_bits(program, x)
    for found in onnxruntime_levels(onnx_model(program).SerializeToString(), {"x": x.numpy()}):
        assert found[0].flatten().tolist() == wanted


@pytest.mark.parametrize("kind", ["unsigned", "signed"])
def test_code_zero_has_no_sign(assert_equal_bits, kind):
    """What rounds to 0 from below is +0.0 as a number; 3 is no power of two, so that a division makes it."""
    program, x = requantised(Requantise(kind, 8, 8.0), np.array([-0.0, -0.3, -0.5, 0.0, 2.0]), 3.0)
    assert not np.signbit(run(program, x).numpy()).any()
    assert_equal_bits(program, x)


KINDS = st.sampled_from(
    [
        Requantise("unsigned", 4096, 4096.0),
        Requantise("unsigned", 255, 6.0),
        Requantise("signed", 512, 512.0),
        Requantise("signed", 8, 2.5, 1.7),
        Requantise("odd", 1024, 512.0),
        Requantise("odd", 15, 4.0),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(op=KINDS, seed=st.integers(0, 2**32 - 1))
def test_rounding_around_both_ends_of_the_band(assert_equal_bits, op, seed):
    """Values whose codes lie within a few float32 steps of k + 0.5 and of k + 0.501, and beyond the clip."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-op.n - 2, op.n + 3, 2000) + rng.choice([0.5, 0.501], 2000)
    lift, width = (op.clip, 2 * op.clip) if op.kind == "odd" else (0.0, op.clip)
    values = ((codes / op.n * width - lift) * (op.divisor or 1.0)).astype(np.float32)
    steps = rng.integers(-3, 4, 2000) * np.spacing(np.abs(values))
    assert_equal_bits(*requantised(op, values + steps))


# --- single operations


def test_no_negative_zero(assert_equal_bits):
    """Codes have none: the mean of -1 and 0 is code 0, whose number is +0.0."""
    half, shape = Grid("plain", 128.0), ValueType((3,), None)
    codes = typed(-128, 127, 3)
    quantised = [Node(f"{x}.q", Finish(requantise=Requantise("signed", 128, 1.0)), (x,), codes) for x in ("a", "b")]
    mean = Node("mean", ops_ingenic.AverageCodes(half, half, 127), ("a.q", "b.q"), typed(-127, 127, 3))
    real = [Node("y", Finish(Grid("plain", 127.0)), ("mean",), shape), Node("z", Finish(half), ("a.q",), shape)]
    program = program_of(*quantised, mean, *real, inputs=(Input("a", shape), Input("b", shape)), outputs=("y", "z"))
    a, b = torch.tensor([[-1.0, -0.001, 1.0]]) / 128, torch.tensor([[0.0, -0.0, 3.0]]) / 128
    assert trace(program, a, b)["mean"].tolist() == [[0, 0, 2]]
    assert_equal_bits(program, a, b)


@pytest.mark.parametrize("mode", ["nearest", "zero"])
@pytest.mark.parametrize("kernel", [(1, 2), (2, 3), (3, 1), (7, 5)])
def test_enlarge(assert_equal_bits, mode, kernel):
    shape = (3, 5, 11)
    pixels = Node("x.q", ops_ingenic.PixelCodes(255.0, 0, 255), ("x",), typed(0, 255, *shape))
    larger = (3, 5 * kernel[0], 11 * kernel[1])
    fill = 0 if mode == "nearest" else -7
    codes = Node("codes", ops_ingenic.Enlarge(kernel, mode, fill), ("x.q",), typed(-8, 255, *larger))
    numbers = Node("numbers", ops_ingenic.Enlarge(kernel, mode, fill), ("x",), ValueType(larger, None))
    inputs = (Input("x", ValueType(shape, None)),)
    program = program_of(pixels, codes, numbers, inputs=inputs, outputs=("numbers",))
    assert_equal_bits(program, known.pixels(4, *shape))


@pytest.mark.parametrize("kernel", [(3, 1), (2, 3), (3, 3), (2, 2), (5, 7)])
def test_sums_over_windows_of_any_size(assert_equal_bits, kernel):
    shape = (4, 9, 12)
    pixels = Node("x.q", ops_ingenic.PixelCodes(57.375, -104, 151), ("x",), typed(-104, 151, *shape))
    made = (4, (9 - kernel[0]) // 2 + 1, 12 - kernel[1] + 1)
    total = Node("sum", ops.SumPool(kernel, (2, 1)), ("x.q",), typed(-104 * 64, 151 * 64, *made))
    mean = Finish(Grid("plain", kernel[0] * kernel[1] * 57.375), requantise=Requantise("odd", 255, 2.0))
    out = Node("mean", mean, ("sum",), typed(-255, 255, *made))
    real = Node("y", Finish(Grid("odd", 255.0)), ("mean",), ValueType(made, None))
    inputs = (Input("x", ValueType(shape, None)),)
    program = program_of(pixels, total, out, real, inputs=inputs, outputs=("y",))
    assert_equal_bits(program, (known.pixels(3, *shape) * 255 - 104) / 57.375)


@pytest.mark.parametrize("grid", [Grid("odd", 15.0), Grid("plain", 7.0), None])
@pytest.mark.parametrize(("kernel", "stride"), [((2, 2), (2, 2)), ((3, 1), (1, 2)), ((5, 7), (2, 3))])
def test_float_means_over_windows(assert_equal_bits, grid, kernel, stride):
    assert_mean(assert_equal_bits, ops_ingenic.FloatMean(grid, kernel, stride), (4, 9, 12))


@pytest.mark.parametrize("grid", [Grid("odd", 15.0), Grid("plain", 7.0), None])
@pytest.mark.parametrize(("size", "keepdim"), [((1, 1), True), ((2, 3), False), ((7, 7), True), ((28, 40), False)])
def test_float_means_of_all_positions(assert_equal_bits, grid, size, keepdim):
    """Below 8 numbers, with some left over, and enough for partial sums."""
    assert_mean(assert_equal_bits, ops_ingenic.FloatMean(grid, keepdim=keepdim), (4, *size))


def assert_mean(assert_equal_bits, op, shape):
    """The mean itself, and codes of it that are read once more as numbers; of codes, or of real numbers."""
    x = torch.randint(-7, 8, (3, *shape), generator=torch.Generator().manual_seed(0)).float()
    inputs = (Input("x", ValueType(shape, None)),)
    codes = [Node("x.q", ops_ingenic.PixelCodes(1.0, -7, 7), ("x",), typed(-7, 7, *shape))]
    if op.grid is None:
        codes, x = [], x / 3
    mean = Node("mean", op, ("x.q" if codes else "x",), ValueType((), None))
    made = run(program_of(*codes, mean, inputs=inputs, outputs=("mean",)), x).shape[1:]
    real = ValueType(tuple(made), None)
    out = Node("code", Finish(requantise=Requantise("odd", 15, 1.0)), ("mean",), typed(-15, 15, *made))
    again = Node("y", Finish(Grid("odd", 15.0)), ("code",), real)
    nodes = (*codes, replace(mean, output=real), out, again)
    assert_equal_bits(program_of(*nodes, inputs=inputs, outputs=("mean", "y")), x)


@pytest.mark.parametrize("lo", [0, -(1 << 17)])
def test_pixels_of_any_width(assert_equal_bits, lo):
    """QuantizeLinear has no type for 18 bits."""
    kind = ValueType((50,), None)
    codes = Node("q", ops_ingenic.PixelCodes(1000.0, lo, lo + 250000), ("x",), typed(lo, lo + 250000, 50))
    real = Node("y", Finish(Grid("plain", 1000.0)), ("q",), kind)
    x = torch.arange(lo, lo + 250000, 5000).float() / 1000
    assert_equal_bits(program_of(codes, real, inputs=(Input("x", kind),), outputs=("y",)), x.view(1, 50))


@pytest.mark.parametrize("kind", ["none", "relu", "relu6", "leaky", "shift", "hsigmoid", "hswish"])
@pytest.mark.parametrize("combine", ["add", "mul"])
def test_activations_of_real_numbers(assert_equal_bits, kind, combine):
    """Also with a slope a channel, some below 0, and zeros of both signs."""
    op = ops_ingenic.Activation(kind, "slope" if kind == "leaky" else None, 3.0, 6.0)
    shape, slope = ValueType((4, 5, 6), None), torch.tensor([0.1, -0.3, 0.0, 1.7])
    both = Node("both", ops_ingenic.Combine(combine, None, None, op), ("a", "b"), shape)
    alone = Node("alone", Finish(activation=op), ("both",), shape)
    inputs = (Input("a", shape), Input("b", shape))
    program = program_of(both, alone, inputs=inputs, outputs=("both", "alone"), slope=slope)
    a, b = torch.randn(7, 4, 5, 6) * 4, torch.randn(7, 4, 5, 6) * 2
    a[:, :, 0], b[:, :, :, 0] = 0.0, -0.0
    assert_equal_bits(program, a, b)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_adding_nothing_takes_the_sign_of_a_zero(assert_equal_bits, shift):
    """0 times a factor below 0 is -0.0, and -0.0 + 0.0 is +0.0, an addition that onnxruntime would leave out."""
    shape = ValueType((4,), None)
    norm = ops_ingenic.Norm("zero", "factor", "shift")
    nodes = (
        Node("y", Finish(norm=norm), ("x",), shape),
        Node("leaky", Finish(activation=ops_ingenic.Activation("leaky", "factor")), ("x",), shape),
        Node("z", Finish(activation=ops_ingenic.Activation("shift", None, 0.0)), ("leaky",), shape),
    )
    constants = {"zero": [0.0], "factor": [-1.0], "shift": [shift]}
    program = program_of(*nodes, inputs=(Input("x", shape),), outputs=("y", "z"), **constants)
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0]])
    assert np.signbit(run(program, x)[0].numpy()).tolist() == [[False, False, True, False]]
    assert_equal_bits(program, x)


def test_embedding_conv1d_and_sequences(assert_equal_bits):
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            target = {"target_device": "T40"}
            self.embed = chips.Embedding(20, 32, multi_inputs=True, quantize=True, output_bitwidth=8, **target)
            self.fc = chips.FullConnected(64, 32, chips.PReLU(1, "T40"), enable_batch_norm=True, **target, **known.Q8)
            self.conv = chips.Conv1D(32, 32, 3, stride=2, padding=1, **target, **known.Q8)

        def forward(self, index: torch.Tensor) -> Any:
            x = self.fc((self.embed(index), 8, 0.0))
            return self.conv((x[0].transpose(1, 2), x[1], x[2]))

    index = torch.randint(0, 20, (4, 14)).float()
    assert assert_equal_bits(lower(Net(), index), index + 0.4) > 5000


# --- networks


@pytest.mark.parametrize("target", ["T40", "T02"])
def test_two_heads_and_a_feature(assert_equal_bits, target):
    """Plain torch behind last layers moves real numbers; a feature that is returned becomes numbers at the end."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            common = {**known.Q8, "target_device": target}
            self.first = chips.Conv2D(3, 32, padding=1, first_layer=target == "T40", **common)
            self.shared = chips.Conv2D(32, 32, stride=2, padding=1, enable_batch_norm=True, **common)
            self.head = chips.Conv2D(32, 12, 1, 3, 3, None, padding=1, last_layer=True, **common)

        def forward(self, image: torch.Tensor) -> Any:
            a = self.shared(self.first((image, 8, 0, 255.0, 0.0) if target == "T40" else (image, 8, 0.0)))
            b = self.shared(a)
            rows = [self.head(x).permute(0, 2, 3, 1).reshape(image.size(0), -1, 6) for x in (a, b)]
            return {"boxes": torch.cat(rows, 1), "feature": torch.cat([a[0], a[0]], 1)}

    program = lower(Net(), known.pixels(2, 3, 8, 8))
    assert program.chip == target.lower() and len(program.outputs) == 2
    assert assert_equal_bits(program, known.pixels(5, 3, 8, 8, seed=1)) > 10_000


def random_network(seed: int) -> tuple[Program, torch.Tensor] | None:
    """A network as `test_random` draws it, its program and a batch; None where it cannot be lowered."""
    net, example, more = drawn.draw(seed)
    try:
        return lower(net, example), more
    except UnsupportedError:
        return None


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=drawn.SEEDS)
def test_random_networks(assert_equal_bits, seed):
    made = random_network(seed)
    if made is not None:
        assert assert_equal_bits(*made) > 0


@pytest.fixture(scope="module", params=[(8, "T40"), (4, "T40"), (8, "Txx")], ids=str)
def digits(request) -> Program:
    """The network of the demo, with running statistics of data."""
    bits, target = request.param
    torch.manual_seed(bits)
    net = known.trained(known.Digits(bits, target), known.pixels(32, 1, 8, 8))
    return lower(net, known.pixels(2, 1, 8, 8))


def test_digits_to_disk_and_back(assert_equal_bits, onnxruntime_levels, digits, tmp_path):
    save_program(tmp_path / "program", digits)
    program = load_program(tmp_path / "program")
    (path,) = export(program, tmp_path / "out", ["onnx"])
    assert path.name == "model.onnx"
    x = known.pixels(60, 1, 8, 8, seed=2)
    for found in onnxruntime_levels(path.read_bytes(), {program.inputs[0].name: x.numpy()}):
        assert found[0].tobytes() == run(program, x).numpy().tobytes()
    assert_equal_bits(program, x)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["QuantizeLinear"] == 1 and kinds["MatMul"] == 2
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    narrow = {tensor.data_type for tensor in model.graph.initializer if tensor.name.startswith("codes/")}
    assert narrow <= {onnx.TensorProto.INT8, onnx.TensorProto.INT16}


@pytest.mark.parametrize("bits", [8, 4])
def test_network_of_the_manual(assert_equal_bits, bits):
    """All of it but the LSTM, which has no integer form; 8 bits need sums beyond 2^24."""

    class Network(ManualNetwork):
        def __init__(self) -> None:
            super().__init__(bits)
            common = {"quantize": True, "input_bitwidth": bits, "output_bitwidth": bits, "weight_bitwidth": bits}
            options = {"activation_fn": None, "enable_batch_norm": True, "target_device": "T40", **common}
            self.rnn, self.flatten = None, chips.Flatten([-1, 256], target_device="T40")
            self.fc1 = chips.FullConnected(256, 128, clip_max_value=3.0 if bits == 4 else 6.0, **options)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.maxpool(self.conv0(self.bn(self.preprocess(image))))
            x = self.unpool(self.conv3(self.conv2(self.route([x, self.conv1(x)]))))
            x = self.maxpool(self.conv4(x))
            x = self.conv6(self.bn1(self.shortcut([x, self.conv5(x)])))
            x = self.conv10(self.conv9(self.conv8(self.conv7(x))))
            return self.fc2(self.fc1(self.flatten(x)))

    net = known.trained(Network(), known.pixels(4, 3, 32, 32))
    program = lower(net, known.pixels(1, 3, 32, 32))
    wide = [node for node in program.nodes if not node.exact_in_float32]
    assert bool(wide) is (bits == 8)
    assert assert_equal_bits(program, known.pixels(2, 3, 32, 32, seed=1)) > 1_000_000


# --- what onnxruntime does to the graph


def kinds_of(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("barrier", [True, False])
def test_onnxruntime_merges_no_scale_into_a_sum(onnxruntime_levels, digits, tmp_path, monkeypatch, barrier):
    """It would multiply a scale into the weights of a Conv and into a MatMul; without the Casts behind sums it does."""
    if not barrier:
        for room in (onnx_core, onnx_ingenic):
            monkeypatch.setattr(room, "integral", lambda b, v, wide=False: v)
    model = onnx_model(digits)
    feeds = {digits.inputs[0].name: known.pixels(2, 1, 8, 8).numpy()}
    onnxruntime_levels(model.SerializeToString(), feeds, optimised=str(tmp_path / "optimised.onnx"))
    before, after = kinds_of(model), kinds_of(onnx.load(tmp_path / "optimised.onnx"))
    kept = all(before[kind] == after[kind] for kind in ("Mul", "Add", "Sub", "Div", "Round", "MatMul", "Clip"))
    assert kept is barrier
    assert ("FusedMatMul" in after) is not barrier
    merged = [kind for kind in after if "Integer" in kind or "Fused" in kind or kind.startswith(("QLinear", "QGemm"))]
    assert bool(merged) is not barrier


def test_metadata(digits):
    model = onnx_model(digits)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert props["chipfit.target"] == digits.chip
    tensors = json.loads(props["chipfit.tensors"])
    edges = {name for node in model.graph.node for name in node.output} | {i.name for i in model.graph.input}
    assert set(tensors) <= edges | {tensor.name for tensor in model.graph.initializer}
    assert tensors[digits.inputs[0].name] == {"mean": 0, "var": 255.0}
    bits = digits.node("conv1").output.bits
    entry = tensors["conv1/out"]
    assert (entry["layer"], entry["operation"], entry["bits"], entry["signed"]) == ("conv1", "Finish", bits, False)
    assert (entry["scale"], entry["zero"], entry["grid"]) == (2**bits - 1, 0, "plain")
    clip = 4.0 if bits == 4 else 6.0
    assert entry["parameters"]["requantise"] == {"kind": "unsigned", "n": 2**bits - 1, "clip": clip, "divisor": None}
    scale = entry["parameters"]["affine"]["scale_tensor"]
    assert f"float32/{scale}" in {tensor.name for tensor in model.graph.initializer}
    grid = "plain" if digits.chip == "txx" else "odd"
    assert tensors["bn1/out"]["grid"] == grid or not tensors["bn1/out"]["signed"]
    assert "grid" not in tensors["conv1.sum/out"]
    assert tensors["codes/conv1.weight"]["hi"] == int(digits.tensors["conv1.weight"].max())
    assert tensors["conv1.pad/out"]["parameters"] == {"pads": [1, 1, 1, 1], "mode": "constant", "value": 0}


def test_one_edge_returned_twice(assert_equal_bits):
    shape = ValueType((3,), None)
    node = Node("y", Finish(activation=ops_ingenic.Activation("relu")), ("x",), shape)
    program = program_of(node, inputs=(Input("x", shape),), outputs=("y", "x", "y"))
    assert_equal_bits(program, torch.randn(4, 3))
    names = [value.name for value in onnx_model(program).graph.output]
    assert len(set(names)) == 3 and names[0] == "y" and "x" not in names


def test_every_node_that_cannot_be_exported_is_listed(tmp_path):
    """Weights of one output that alone pass 2^24, and a channel axis that nobody knows."""
    inputs = (Input("x", ValueType((2, 3, 3), None)),)
    codes = Node("q", ops_ingenic.PixelCodes(255.0, 0, 255), ("x",), typed(0, 255, 2, 3, 3))
    conv = ops.Accumulate("conv", "w", 255, (1, 1), (1, 1), 1)
    total = Node("sum", conv, ("q",), ValueType(None, 40))
    scaled = Node("y", Finish(None, ops_ingenic.Affine("s", None)), ("sum",), REAL)
    weights = {"w": torch.full((2, 2, 3, 3), 1 << 23), "s": torch.ones(2)}
    program = program_of(codes, total, scaled, inputs=inputs, outputs=("y",), **weights)
    with pytest.raises(UnsupportedError) as raised:
        export(program, tmp_path, ["onnx"])
    text = str(raised.value)
    assert "2 node(s) cannot be exported" in text
    assert "sum (Accumulate): " in text and "2^24" in text and "y (Finish): " in text
    assert list(tmp_path.iterdir()) == []

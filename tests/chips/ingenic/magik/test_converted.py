"""The `magik` export of converted networks: borders, features and tensors between the operators, functions, moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import chipfit
from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic import devices
from chipfit.chips.ingenic.magik.functions import RECIPES, function
from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.errors import ChipfitError, FileFormatError, UnsupportedError
from chipfit.export import export_magik, read_magik
from chipfit.program import lower, verify
from support import networks
from support.ingenic.magik import attributes, fields, nodes, round_trip, same_state
from support.ingenic.networks import Q8, InRow, pixels
from support.random_networks import PlainNetwork

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


class Residual(nn.Module):
    """A block of ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.b(self.a(x)))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 7, 2, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks, self.fc = nn.Sequential(Residual(32, 32, 1), Residual(32, 64, 2)), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Inverted(nn.Module):
    """A block of MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.layers = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.adds else self.layers(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU6())
        self.blocks, self.fc = nn.Sequential(Inverted(32, 32, 1), Inverted(32, 64, 2)), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate by torch's own sigmoid and SiLU, so that values leave the chip and come back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 32, 3, 1, 1), nn.SiLU()
        self.down, self.up = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.last, self.fc = nn.Conv2d(32, 32, 3, 2, 1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        gate = torch.sigmoid(self.up(self.act(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc(F.relu(self.last(x * gate)).mean((2, 3)))


class Moved(nn.Module):
    """Codes that the CPU core moves: a transpose, slices, a single position, parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc, self.out = nn.Conv1d(32, 64, 3, padding=1), nn.Linear(64, 64), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.fc(F.relu(self.conv(x)).transpose(1, 2)[:, 1:-1]))
        a, b = y.chunk(2, 2)
        return self.out((a + b)[:, -1]), y.select(1, 0)


def converted(net: nn.Module, target: str, x: Tensor, **options: Any) -> nn.Module:
    made = chipfit.convert(net.eval(), chipfit.chip(target), x, **options)
    chipfit.calibrate(made, [x])
    return chipfit.set_mode(made, "quant")


def images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape) / 255


NETWORKS: list[tuple[Any, tuple[int, ...], dict[str, Any]]] = [
    (ResNet, (3, 24, 24), {}),
    (MobileNet, (3, 16, 16), {}),
    (MobileNet, (3, 16, 16), {"bits": 4, "weight_bits": 8}),
    (SqueezeExcite, (3, 8, 8), {}),
    (lambda: networks.UNet(32), (1, 16, 16), {}),
    (Moved, (32, 9), {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["t40", "txx"])
@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize(("kind", "shape", "options"), NETWORKS)
def test_networks(
    kind: Any, shape: tuple[int, ...], options: dict[str, Any], image: bool, target: str, tmp_path: Path
) -> None:
    """Outputs bit for bit, parameters and the program with its names: from pixels, and from any numbers."""
    x = images(2, *shape) if image else torch.randn(2, *shape)
    net = converted(networks.lively(kind()), target, x, **options)
    again = round_trip(net, tmp_path, x, x.flip(0)[:1], names=kind is not Moved)
    assert same_state(net, again)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["t40", "txx"])
def test_random_networks(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any number of channels, as `convert` makes them; on the device they are multiples of 32 or 16."""
    name = target.capitalize()
    monkeypatch.setitem(devices.DEVICES, name, replace(devices.DEVICES[name], channel_multiple=1))
    written = 0
    for seed in range(100, 106):
        plain = PlainNetwork(seed)
        try:
            net = converted(plain, target, plain.example[:2])
            program = lower(net, plain.example[:2])
        except ChipfitError:
            continue  # torch layers on the CPU core, or a shuffle, which has its own multiple
        try:
            again = round_trip(net, tmp_path, plain.example[:2], plain.example, lowers=False)
        except UnsupportedError as error:  # depthwise and of one channel, or of one group a channel, is on no T40
            assert "target_device is" in str(error).splitlines()[1] and len(str(error).splitlines()) == 2
            continue
        found = lower(again, plain.example[:2])
        assert [type(node.op) for node in program.nodes] == [type(node.op) for node in found.nodes]
        assert all(torch.equal(a, b) for a, b in zip(program.tensors.values(), found.tensors.values(), strict=True))
        written += 1
    assert written >= 2


# --- what a file holds


def test_nodes_between_operators_by_hand() -> None:
    """An input that is no image, a border behind it, a function, and tensors at the end."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = {"target_device": "T40"}
            self.enter = ToFeature(8, True, 2.5, image=True, **self.t)
            self.pad = PadFeature((1, 0, 0, 2), **self.t)
            q = Q8 | self.t
            self.conv = ops.Conv2D(3, 32, 1, 3, 3, ops.Linear("T40"), first_layer=True, **q)
            self.border = PadFeature((0, 1), **self.t)
            self.leave, self.again = ToTensor(32, "T40"), ToFeature(4, gate=True, **self.t)
            self.leave.scale.copy_(torch.arange(32) + 1)
            self.end = ToTensor(32, "T40")

        def forward(self, x: Tensor) -> Tensor:
            x = self.leave(self.border(self.conv(self.pad(self.enter(x)))))
            return self.end(self.again(torch.sigmoid(x)))

    net, x = Net(), torch.randn(2, 3, 4, 5)
    found = nodes(net, x)
    entered, marker = attributes(found["enter/quantize_feature"]), attributes(found["enter"])
    assert (entered["clip_min_value"], entered["clip_max_value"], entered["target_device"]) == (-2.5, 2.5, "Txx")
    assert marker["op_target"] == "preprocess_end"
    assert '"mean": 128.0, "var": 128.0, "output_bitwidth": 8, "clip_min_value": -1.0' in marker["op_attr"]
    assert list(found["pad"].input) == ["enter"] and found["pad"].op_type == "Pad"
    assert (attributes(found["pad"])["pads"], attributes(found["pad"])["value"]) == ([0, 0, 0, 1, 0, 0, 2, 0], 0.0)
    assert fields(found["conv"])["feature_var"] == 128.0 and fields(found["conv"])["is_input"]
    assert (attributes(found["border"])["pads"], attributes(found["border"])["value"]) == ([0] * 7 + [1], -1.0)
    assert (found["leave"].op_type, list(found["leave"].input)) == ("Mul", ["border", "leave.scale"])
    assert (found["torch.sigmoid"].op_type, list(found["torch.sigmoid"].input)) == ("Sigmoid", ["leave"])
    again = attributes(found["again"])
    assert (found["again"].op_type, again["output_bitwidth"], again["clip_max_value"]) == ("QuantizeFeature", 4, 1.0)
    assert (again["clip_min_value"], again["target_device"]) == (0.0, "T40")
    assert list(found["output_1"].input) == ["end"]


def test_a_sum_is_clipped_at_2_at_most(tmp_path: Path) -> None:
    """Calibration may choose more for a sum; the operator computes with 2, and so says the file."""
    net = InRow("T40", 32)
    net.add = ops.Shortcut(32, target_device="T40", **{k: v for k, v in Q8.items() if k[0] != "w"})
    net.add.clip_max_value = 2.5

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            y = self.net(x)
            return self.net.add([y, y])

    x = pixels(2, 3, 8, 8)
    assert fields(nodes(Twice(), x)["net.add"])["clip_max_value"] == 2.0
    round_trip(Twice(), tmp_path, x)
    assert verify(Twice(), lower(Twice(), x), [x]).equal


def test_the_grid_of_pixels_is_named_on_every_target(tmp_path: Path) -> None:
    for target in ("T41", "Xs1", "Txx"):
        conv = ops.Conv2D(3, 32, first_layer=True, target_device=target, **Q8)
        net = nn.Sequential(ToFeature(8, clip_max_value=3.0, image=True, target_device=target), conv)
        assert attributes(nodes(net, torch.rand(1, 3, 4, 4))["0/quantize_feature"])["target_device"] == "Txx"
        again = round_trip(net, tmp_path, torch.rand(1, 3, 4, 4))
        assert again.get_submodule("1").device.name == target


def test_a_border_that_loses_against_all(tmp_path: Path) -> None:
    """-1 before a maximum, also where a convolution's border would be 0; nowhere else."""
    for target in ("T40", "Txx"):
        pad, pool = PadFeature((1, 1, 1, 1), "lowest", target), ops.Maxpool2D(3, 3, 2, target_device=target)
        net = InRow(target, 32, pad, pool, signed=True)
        x = pixels(2, 3, 8, 8)
        assert attributes(nodes(net, x)["layers.0"])["value"] == -1.0
        assert round_trip(net, tmp_path, x).layers.get_submodule("0").fill == "lowest"
    alone = InRow("Txx", 32, pad, signed=True)
    with pytest.raises(UnsupportedError, match=r"value is -1.0; allowed: 0 for this input on Txx"):
        magik_model(alone, x)


# --- functions


class Through(nn.Module):
    """Out of the chip, through a function, and back."""

    def __init__(self, called: Any, positive: bool) -> None:
        super().__init__()
        self.called, t = called, {"target_device": "T40"}
        activation = None if positive else ops.Linear("T40")
        self.conv = ops.Conv2D(32, 32, 1, 1, 1, activation, clip_max_value=3.0, **(Q8 | t))
        self.leave, self.enter = ToTensor(32, "T40"), ToFeature(8, True, **t)
        self.leave.scale.copy_(torch.linspace(0.5, 4, 32))

    def forward(self, x: Tensor) -> Any:
        return self.enter(self.called(self.leave(self.conv((x, 8, 0.0)))))


OTHERS: list[Any] = [
    *(lambda x: x + 0.3, lambda x: 1 - x, lambda x: x.sub(2), lambda x: -0.7 * x, lambda x: x / 3, lambda x: 2 / x),
    *(lambda x: x**3, lambda x: 2**x, lambda x: torch.rsub(x, 1.5), lambda x: x.square(), lambda x: x * torch.tanh(x)),
    *(lambda x: x.clamp(-0.5), lambda x: torch.clip(x, max=1), lambda x: F.leaky_relu(x, 0.3), lambda x: F.elu(x, 0.7)),
    *(lambda x: F.hardtanh(x, -0.4, 0.9), lambda x: x.clamp(min=-1, max=1.5), lambda x: F.silu(x) - x.sigmoid()),
]
POSITIVE = {"log", "sqrt", "rsqrt", "reciprocal"}
GIVEN = [pytest.param(lambda x, r=r: r.function(x + 1), label in POSITIVE, id=label) for label, r in RECIPES.items()
         if label != "clamp"]  # fmt: skip
MODULES = [pytest.param(r.module(), False, id=f"nn.{r.module.__name__}") for r in RECIPES.values() if r.module]


@pytest.mark.parametrize(
    ("called", "positive"), [*GIVEN, *MODULES, *((f, False) for f in OTHERS), (nn.LeakyReLU(0.3), False)]
)
def test_functions(called: Any, positive: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Nodes of opset 9, read back as the same function: no output differs, and the tables are equal."""
    net = Through(called, positive)
    codes = torch.randint(0, 256, (2, 32, 4, 4)) / 255
    lowers = request.node.callspec.id != "logsigmoid"  # the lowering knows the module only
    round_trip(net, tmp_path, codes, names=False, lowers=lowers)


def test_functions_are_what_torch_computes(tmp_path: Path) -> None:
    """The nodes themselves, in onnxruntime, against torch."""
    import onnxruntime as ort

    x = torch.linspace(0.01, 4, 401).view(1, 1, 1, 401).repeat(1, 2, 1, 1)
    x[:, 1] -= 4
    for label, recipe in RECIPES.items():
        sample, options = x[:, :1] if label in POSITIVE else x, {"min": -0.3, "max": 0.4} if label == "clamp" else {}
        graph = MagikGraph(devices.DEVICES["T40"])
        edge = Edge("x", sample)
        made = function(graph, "torch.f", label, (edge,), options, sample)
        value = onnx.helper.make_tensor_value_info
        ends = [[value(name, onnx.TensorProto.FLOAT, sample.shape)] for name in ("x", made.name)]
        model = graph.builder.model("f", *ends, opset=9, ir_version=4)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"x": sample.numpy()})[0])
        torch.testing.assert_close(found, recipe.function(sample, **options), rtol=2e-6, atol=1e-6, msg=label)


REFUSED: list[tuple[Any, str]] = [
    (lambda x: F.gelu(x, approximate="tanh"), "gelu with another approximate has no nodes in the file"),
    (lambda x: F.softplus(x, 2.0), "softplus with another beta"),
    (lambda x: F.celu(x), "celu has no nodes in the file"),
    (lambda x: torch.add(x, x, alpha=2), "add with these arguments"),
    (lambda x: torch.div(x, 2, rounding_mode="floor"), "div with these arguments"),
    (lambda x: x.amax(1, True), "amax has no nodes in the file"),
    (lambda x: x[:, :, ::2], "opset 9 cannot slice with a step"),
    (lambda x: x.flip(3), "flip has no nodes in the file"),
    (lambda x: x[0:1], "a choice from the batch"),
    (lambda x: x.chunk(2)[0], "a split of the batch"),
    (lambda x: x.unbind(2)[0], "unbind has no nodes in the file"),
    (lambda x: x.max(1)[0], "max has no nodes in the file"),
]


@pytest.mark.parametrize(("called", "reason"), REFUSED)
def test_refused_functions(called: Any, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        magik_model(Through(called, False), torch.rand(2, 32, 4, 4))


class OfCodes(Through):
    def forward(self, x: Tensor) -> Any:
        return self.called(self.conv((x, 8, 0.0))[0])


@pytest.mark.parametrize(("called", "name"), [(nn.SiLU(), "SiLU stands on quantised codes"), (torch.exp, "exp has no")])
def test_functions_of_codes_are_refused(called: Any, name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        magik_model(OfCodes(called, False), torch.rand(1, 32, 4, 4))


def test_nodes_of_a_function_have_to_fit(tmp_path: Path) -> None:
    """A GELU with another constant is no function that is known."""
    path = export_magik(Through(F.gelu, False), torch.rand(2, 32, 4, 4), tmp_path / "m.onnx")
    model = onnx.load(path)
    number = next(t for t in model.graph.initializer if t.name == "torch.gelu/number4")
    number.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(number) * 2, number.name))
    onnx.save(model, path)
    with pytest.raises(FileFormatError, match="no function of torch that is written so"):
        read_magik(path)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["Erf"], kinds["Mul"]) == (1, 3)

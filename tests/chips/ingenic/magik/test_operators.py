"""The `magik` export operator by operator: those that the random networks do not draw, options, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic import use_vendor_statistics
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.errors import FileFormatError, InvalidValueError, UnsupportedError
from chipfit.export import export, export_magik, read_magik
from chipfit.program import lower
from support.ingenic import magik
from support.ingenic.networks import Q8, InRow, filled, pixels

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
T40 = {"target_device": "T40"}


def round_trip(net: nn.Module, folder: Path, *batches: Any, lowers: bool = True) -> nn.Module:
    """With equal parameters; plain torch may stand between, so that programs may differ in names."""
    again: nn.Module = magik.round_trip(net, folder, *batches, names=False, lowers=lowers)
    assert magik.same_state(net, again)
    return again


# --- recurrent layers, embedding, attention, regions


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("T40", {"bidirectional": True, **Q8}),
        ("T40", {"return_output_states": True, "clip_max_value": 1.0, **Q8}),
        ("Txx", {"num_layers": 2, "bidirectional": True, "return_output_states": True, **Q8}),
        ("Txx", {"bias": False, "initial_state_fw": (torch.full((1, 32), 0.25), torch.full((32,), -0.5)), **Q8}),
        ("T41", {}),
    ],
)
def test_lstm(target: str, options: dict[str, Any], tmp_path: Path) -> None:
    lstm = ops.LSTM(32, 32, use_squeeze=True, target_device=target, **options)
    net = filled(InRow(target, 32, lstm))
    round_trip(net, tmp_path, pixels(2, 3, 1, 6), pixels(5, 3, 1, 6, seed=1), lowers=False)
    kind = "QuantizeLSTMV2" if "quantize" in options else "LSTMUntilFunction"
    assert [n.op_type for n in magik_model(net, pixels(1, 3, 1, 6)).graph.node].count(kind) == 1


def test_sequence_behind_an_lstm(tmp_path: Path) -> None:
    """Fully connected layers on (N, T, I): fused, and in parts with batch normalisation of the last axis."""

    class Net(InRow):
        def forward(self, image: Tensor) -> Any:
            (sequence, bit, low), _ = self.layers[0](self.first(self.pre(image)))
            return self.layers[2](self.layers[1]((sequence, bit, low)))

    lstm = ops.LSTM(32, 32, use_squeeze=True, **T40, **Q8)
    fc = ops.FullConnected(32, 64, enable_batch_norm=True, data_format="NHWC", **T40, **Q8)
    last = ops.FullConnected(64, 5, nn.ReLU(), enable_batch_norm=True, last_layer=True, **T40, **Q8)
    net = filled(Net("T40", 32, lstm, fc, last))
    again = round_trip(net, tmp_path, pixels(2, 3, 1, 6), pixels(3, 3, 1, 6, seed=1), lowers=False)
    assert again.get_submodule("layers.1").data_format == "NHWC"


@pytest.mark.parametrize("multi_inputs", [True, False])
def test_embedding_and_conv1d(multi_inputs: bool, tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            options = {"multi_inputs": multi_inputs, "quantize": True, "output_bitwidth": 8, "padding_idx": 3}
            self.embed = ops.Embedding(20, 32, pre_lstm_layer=True, **options, **T40)
            self.fc = ops.FullConnected(64 if multi_inputs else 32, 32, enable_batch_norm=True, **T40, **Q8)
            self.conv = ops.Conv1D(32, 32, 3, stride=2, padding=1, groups=1, **T40, **Q8)
            self.dilated = ops.Conv1D(32, 32, 3, padding=2, dilation=2, activation_fn=ops.Hswish(32), **T40, **Q8)
            self.last = ops.Conv1D(32, 7, 1, last_layer=True, activation_fn=None, **T40, **Q8)

        def forward(self, index: Tensor) -> Any:
            x = self.fc((self.embed(index), 8, 0.0))
            x = self.dilated(self.conv((x[0].transpose(1, 2), x[1], x[2])))
            return self.last(x)

    index = torch.randint(0, 20, (4, 14), generator=torch.Generator().manual_seed(0)).float()
    round_trip(filled(Net()), tmp_path, index, index[:3])


def test_attention(tmp_path: Path) -> None:
    class Net(InRow):
        def forward(self, image: Tensor) -> Any:
            x = self.first(self.pre(image))
            rows = (x[0].flatten(2).permute(0, 2, 1), x[1], x[2])
            return self.layers[0](rows), self.layers[1](x)

    soft = ops.SoftAttention(32, 8, 8, 2.5)
    mil = ops.MILPoolAttention(32, True, 8, 3.0)
    net = filled(Net("T40", 32, soft, mil))
    round_trip(net, tmp_path, pixels(2, 3, 4, 4), pixels(3, 3, 4, 4, seed=1), lowers=False)


@pytest.mark.parametrize("per_image", [True, False])
def test_regions_of_interest(per_image: bool, tmp_path: Path) -> None:
    class Net(InRow):
        def forward(self, image: Tensor, rois: Tensor) -> Any:
            return self.layers[0](self.first(self.pre(image)), rois)

    net = Net("T40", 32, ops.RoIPooling((2, 3), 0.3, "T40", per_image))
    rois = torch.tensor([[0.0, 1.0, 0.0, 6.0, 5.0], [1.0, 2.0, 2.0, 7.0, 7.0]])
    example = pixels(2, 3, 8, 8), torch.cat([rois[:1], rois[:1]])
    round_trip(net, tmp_path, example, (pixels(2, 3, 8, 8, seed=1), rois), lowers=False)


# --- options


@pytest.mark.parametrize("target", ["T40", "Txx"])
@pytest.mark.parametrize("kind", ["conv", "depthwise", "norm", "fc"])
def test_hswish_is_written_in_parts(kind: str, target: str, tmp_path: Path) -> None:
    options = {"target_device": target, "clip_max_value": 2.718281828459045, **Q8}
    swish = ops.Hswish(32, target)
    layers = {
        "conv": [ops.Conv2D(32, 32, 3, activation_fn=swish, enable_batch_norm=True, padding=1, **options)],
        "depthwise": [ops.DepthwiseConv2D(32, padding=1, activation_fn=swish, weight_factor=2.3, **options)],
        "norm": [ops.BatchNorm(32, swish, True, clip_max_value=0.3, target_device=target)],
        "fc": [ops.Flatten([-1, 128], target), ops.FullConnected(128, 32, swish, enable_batch_norm=True, **options)],
    }[kind]
    net = filled(InRow(target, 32, *layers, stride=2, signed=True))
    round_trip(net, tmp_path, pixels(2, 3, 4, 4), pixels(3, 3, 4, 4, seed=1))


class Pair(InRow):
    """A layer, and another one on its input and output."""

    def forward(self, image: Tensor) -> Any:
        x = self.first(self.pre(image))
        return self.layers[1]([x, self.layers[0](x)])


@pytest.mark.parametrize("target", ["T40", "Txx"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Mul", {"quantize": True, "last_layer": True}),
        ("Mul", {"quantize": True, "last_layer": True, "quantize_last_feature": True}),
        ("Shortcut", {"activation_fn": ops.ReLU6()}),
        ("Shortcut", {"activation_fn": nn.LeakyReLU(0.2), "quantize": True, "last_layer": True}),
        ("Shortcut", {"quantize": True, "last_layer": True, "quantize_last_feature": True, "output_bitwidth": 8}),
        ("Shortcut", {"quantize": True, "output_bitwidth": 8}),  # of a signed and an unsigned feature
    ],
)
def test_two_features(kind: str, options: dict[str, Any], target: str, tmp_path: Path) -> None:
    conv = ops.Conv2D(32, 32, padding=1, target_device=target, **Q8)
    both = getattr(ops, kind)(32, target_device=target, **options)
    round_trip(filled(Pair(target, 32, conv, both, signed=True)), tmp_path, pixels(2, 3, 4, 4))


@pytest.mark.parametrize("target", ["X2500", "Xs1"])
@pytest.mark.parametrize(
    ("kind", "args", "options"),
    [
        ("AdaptiveAvgpool2D", (32,), {"quantize": True, "last_layer": True}),
        ("Unpool2D", (2, 3), {"quantize": False}),
        ("Unpool2D", (2, 3), {"quantize": True, "last_layer": True}),
        ("Conv2D", (32, 10, 3, 1, 1, None), {"padding": 1, "last_layer": True, **Q8}),  # a border that crops
        ("Conv2D", (32, 32, 1, 3, 3, nn.PReLU(32)), {"last_layer": True, "quantize_last_feature": True, **Q8}),
        ("Conv2D", (32, 10), {"activation_fn": nn.Tanh(), "last_layer": True, **Q8}),
        (
            "Conv2D",
            (32, 32),
            {"activation_fn": ops.Hswish(32), "last_layer": True, "quantize_last_feature": True, **Q8},
        ),
        ("Conv2D", (128, 32), {"is_focus": True, **Q8}),
        ("ConvTranspose2D", (32, 10), {"activation_fn": ops.Hsigmoid(2, 1.5, 4.0), "last_layer": True, **Q8}),
        ("Se_Block", (32, 1), {"last_layer": True, **Q8}),
        ("Se_Block", (32, 1), {"last_layer": True, "quantize_last_feature": True, "enable_batch_norm": True, **Q8}),
    ],
)
def test_options(kind: str, args: tuple[Any, ...], options: dict[str, Any], target: str, tmp_path: Path) -> None:
    layer = getattr(ops, kind)(*args, target_device=target, **options)
    net = filled(InRow(target, 32, layer, signed=True))
    batches = pixels(2, 3, 8, 8), pixels(3, 3, 8, 8, seed=1)
    round_trip(net, tmp_path, *batches, lowers=not isinstance(options.get("activation_fn"), nn.Tanh))


@pytest.mark.parametrize("last", [True, False])
def test_dilated_borders(last: bool, tmp_path: Path) -> None:
    conv = ops.Conv2D(32, 32, dilation=3, padding=(3, 1), last_layer=last, **T40, **Q8)
    spread = ops.DepthwiseConv2D(32, dilation=2, padding=2, activation_fn=nn.ReLU6(), last_layer=last, **T40, **Q8)
    for layer in (conv, spread):
        round_trip(filled(InRow("T40", 32, layer, signed=True)), tmp_path, pixels(2, 3, 9, 9))


def test_first_layer_that_is_the_last(tmp_path: Path) -> None:
    """Its border is 0 also where the image is signed."""
    conv = ops.Conv2D(3, 10, 2, activation_fn=None, first_layer=True, last_layer=True, padding=1, **T40, **Q8)
    net = nn.Sequential(ops.Preprocess(104, 57.0, "T40"), conv)
    round_trip(filled(net), tmp_path, (pixels(2, 3, 6, 6) * 255).round().sub(104).div(57))


def test_numbers_that_float32_attributes_do_not_hold(tmp_path: Path) -> None:
    leaky, options = nn.LeakyReLU(0.123456789012), {"last_layer": True, "weight_factor": 2.3456789012}
    fc = ops.FullConnected(512, 10, leaky, **options, **T40, **Q8)
    net = InRow("T40", 32, ops.Flatten([-1, 512], "T40"), fc)
    again = round_trip(net, tmp_path, pixels(2, 3, 4, 4))
    assert again.get_submodule("layers.1").weight_factor == 2.3456789012
    assert again.get_submodule("layers.1").activation_fn.negative_slope == 0.123456789012


@pytest.mark.parametrize("signed", [True, False])
def test_learned_clips_and_vendor_statistics(signed: bool, tmp_path: Path) -> None:
    conv = ops.Conv2D(32, 32, padding=1, enable_batch_norm=True, auto_threshold=True, **T40, **Q8)
    norm = ops.BatchNorm(32, quantize=True, auto_threshold=True, **T40)
    net = filled(InRow("T40", 32, conv, norm, signed=signed, auto_threshold=True))
    with torch.no_grad():
        net.first.QuantizeFeature.clip_max_value.fill_(1.2345678)
    use_vendor_statistics(net, not signed)
    again = round_trip(net, tmp_path, pixels(2, 3, 4, 4), pixels(3, 3, 4, 4, seed=1))
    assert again.get_submodule("first").QuantizeFeature.clip_max_value.item() == torch.tensor(1.2345678).item()
    assert again.get_submodule("first").Conv2d.QuantizeWeight.sequential is not signed


def test_detector_with_a_shared_layer_and_plain_torch_behind_it(tmp_path: Path) -> None:
    class Net(InRow):
        def __init__(self) -> None:
            super().__init__("T40", 32)
            self.shared = ops.Conv2D(32, 32, stride=2, padding=1, enable_batch_norm=True, **T40, **Q8)
            self.head = ops.Conv2D(32, 12, 1, 1, 1, None, last_layer=True, **T40, **Q8)

        def forward(self, image: Tensor) -> Any:
            a = self.shared(self.first(self.pre(image)))
            b = self.shared(a)
            rows = [self.head(x).permute(0, 2, 3, 1).reshape(image.size(0), -1, 6) for x in (a, b)]
            boxes = torch.cat(rows, 1)
            return {"boxes": boxes, "scores": torch.sigmoid(boxes).transpose(1, 2)}

    again = round_trip(filled(Net()), tmp_path, pixels(2, 3, 8, 8), pixels(5, 3, 8, 8, seed=1), lowers=False)
    assert "reshape(" in again.code and again.code.count("self.shared(") == 2


def test_last_activation_of_torch(tmp_path: Path) -> None:
    """As the manual has it: a Sigmoid behind the last layer."""
    fc = ops.FullConnected(512, 10, None, last_layer=True, **T40, **Q8)
    net = InRow("T40", 32, ops.Flatten([-1, 512], "T40"), fc, nn.Sigmoid())
    round_trip(net, tmp_path, pixels(2, 3, 4, 4), pixels(3, 3, 4, 4, seed=1), lowers=False)


@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_moving_operators(target: str, tmp_path: Path) -> None:
    class Net(InRow):
        def __init__(self) -> None:
            super().__init__(target, 128, signed=True)
            self.split = ops.Channel_Split([32, 96], target)
            self.route = ops.Route(target)
            self.shuffle = ops.Pixel_Shuffle(2, target) if target == "T40" else nn.Identity()
            self.focus, self.flatten = ops.Focus(target), ops.Flatten([-1, 128 * 16], target)
            self.unpool = ops.Unpool2D(2, 2, "bilinear", last_layer=True, target_device=target)

        def forward(self, image: Tensor) -> Any:
            a, b = self.split(self.first(self.pre(image)))
            x = self.focus(self.shuffle(self.route([b, a])))
            return self.flatten(x)[0], self.unpool(a)

    round_trip(Net(), tmp_path, pixels(2, 3, 4, 4), pixels(3, 3, 4, 4, seed=1), lowers=False)


def test_t02(tmp_path: Path) -> None:
    common = {**Q8, "target_device": "T02"}

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = ops.Conv2D(3, 16, activation_fn=nn.LeakyReLU(0.1), enable_batch_norm=True, **common)
            self.b = ops.Conv2D(16, 16, activation_fn=nn.PReLU(16), **common)
            self.pool = ops.Maxpool2D(target_device="T02")
            self.up = ops.Unpool2D(2, 2, quantize=True, target_device="T02")
            self.route, self.mean = ops.Route("T02"), ops.AdaptiveAvgpool2D(32, False, True, target_device="T02")
            self.flat = ops.Flatten([-1, 32], "T02")
            self.fc = ops.FullConnected(32, 10, None, last_layer=True, **common)

        def forward(self, image: Tensor) -> Any:
            x = self.up(self.b(self.pool(self.a((image, 8, 0.0)))))
            return self.fc(self.flat(self.mean(self.route([x, x]))))

    round_trip(filled(Net()), tmp_path, pixels(2, 3, 8, 8), pixels(3, 3, 8, 8, seed=1))


# --- refusals


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (ops.Conv2D(32, 32, **T40), "not quantised"),
        (ops.Conv2D(32, 32, quantize=True, output_bitwidth=8, **T40), "weight is not quantised"),
        (ops.BatchNorm(32, **T40), "not quantised"),
        (ops.Conv2D(32, 32, activation_fn=ops.Hsigmoid(32, 2.0), **T40, **Q8), "no field for the offset"),
        (ops.Conv2D(32, 32, activation_fn=nn.Hardswish(), **T40, **Q8), "no name in the file"),
        (ops.Conv2D(32, 32, activation_fn=nn.GELU(), last_layer=True, **T40, **Q8), "no nodes in the file"),
        (nn.ReLU(), "stands on quantised codes"),
        (ops.AdaptiveAvgpool2D(32, **T40), "not quantised"),
    ],
)
def test_refusals_name_the_layer(layer: nn.Module, reason: str) -> None:
    class Net(InRow):
        def forward(self, image: Tensor) -> Any:
            x = self.first(self.pre(image))
            return self.layers[0](x[0] if isinstance(self.layers[0], nn.ReLU) else x)

    with pytest.raises(UnsupportedError, match=reason) as raised:
        magik_model(Net("T40", 32, layer), pixels(1, 3, 4, 4))
    assert "(layer layers.0)" in str(raised.value)


def test_a_feature_that_lost_its_description() -> None:
    class Net(InRow):
        def forward(self, image: Tensor) -> Any:
            return self.layers[0](self.first(self.pre(image))[0])

    net = Net("T40", 32, ops.Conv2D(32, 32, **T40, **Q8), signed=True)
    with pytest.raises(UnsupportedError, match="Hand on the whole tuple"):
        magik_model(net, pixels(1, 3, 4, 4))


def test_plain_arithmetic_is_refused() -> None:
    class Net(InRow):
        def forward(self, image: Tensor) -> Any:
            x = self.first(self.pre(image))
            return x[0] + x[0]

    with pytest.raises(UnsupportedError, match="add has no nodes"):
        magik_model(Net("T40", 32), pixels(1, 3, 4, 4))


def test_a_rule_of_the_format_broken_by_the_network() -> None:
    """chipfit lets another channel multiple through where a device is described so; the file's target does not."""
    net = InRow("T40", 32, ops.Maxpool2D(target_device="T41"))
    with pytest.raises(UnsupportedError, match="one target"):
        magik_model(net, pixels(1, 3, 4, 4))


def test_other_floats_and_odd_names() -> None:
    with pytest.raises(UnsupportedError, match="the file holds float32"):
        magik_model(InRow("T40", 32).half(), pixels(1, 3, 4, 4))
    net = nn.Sequential()
    net.add_module("a/b", ops.Preprocess(0, 255.0, "T40"))
    net.add_module("conv", ops.Conv2D(3, 32, first_layer=True, **T40, **Q8))
    with pytest.raises(UnsupportedError, match="no / and no @"):
        magik_model(net, pixels(1, 3, 4, 4))


def test_mode_float_is_refused() -> None:
    net = InRow("T40", 32)
    chipfit.set_mode(net, "float")
    with pytest.raises(UnsupportedError, match="mode 'float'"):
        magik_model(net, pixels(1, 3, 4, 4))


def test_nothing_is_changed_and_nothing_half_written(tmp_path: Path) -> None:
    net = InRow("T40", 32, ops.AdaptiveAvgpool2D(32, quantize=True, **T40), signed=True).train()
    export_magik(net, pixels(1, 3, 4, 4), tmp_path / "a" / "m.onnx")
    assert net.training and not net.layers[0].signed
    with pytest.raises(UnsupportedError):
        export_magik(InRow("T40", 32, nn.GELU()), pixels(1, 3, 4, 4), tmp_path / "b" / "m.onnx")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "m.onnx"]


# --- as a format of export()


def test_as_a_format(tmp_path: Path) -> None:
    net = InRow("T40", 32, ops.Conv2D(32, 32, **T40, **Q8)).eval()
    program = lower(net, pixels(2, 3, 4, 4))
    assert export(program, tmp_path, "magik", model=net) == [tmp_path / "magik" / "model.onnx"]
    assert export(program, tmp_path, ["magik"], model=net, samples=pixels(2, 3, 4, 4))
    assert torch.equal(read_magik(tmp_path / "magik" / "model.onnx")(pixels(2, 3, 4, 4)), net(pixels(2, 3, 4, 4))[0])
    with pytest.raises(InvalidValueError, match="needs the network"):
        export(program, tmp_path, "magik")
    with torch.no_grad():
        net.layers[0].Conv2d.bias[3] += 1.0
    with pytest.raises(UnsupportedError, match="not that of the network"):
        export(program, tmp_path, "magik", model=net)


def test_reading_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no such file"):
        read_magik(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(FileFormatError):
        read_magik(tmp_path / "text.onnx")

"""Idioms of user code: what networks of the kit's users do besides calling the operators of their constructor."""

from __future__ import annotations

import math
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.copying import copied
from chipfit.errors import ChipfitWarning, InvalidValueError, UnsupportedError
from chipfit.export import export_magik, read_magik
from chipfit.fit.equalise import equalise
from chipfit.program import FastProgram, Program, certify, lower, verify
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops

Q8: dict[str, Any] = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255.0


def proven(net: nn.Module, folder: Path, channels: int = 3, size: int = 8) -> Program:
    """Trace, lower, verify and export; what the file says computes the same."""
    example = pixels(4, channels, size, size)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modules = [name for name, _ in net.named_modules()]
    program = lower(net, example)
    assert verify(net, program, [pixels(6, channels, size, size, seed=1)]).equal
    path = export_magik(net, example, folder / "net.onnx")
    again = read_magik(path)
    image = pixels(3, channels, size, size, seed=2)
    assert torch.equal(FastProgram(lower(again, example))(image), FastProgram(program)(image))
    assert [name for name, _ in net.named_modules()] == modules
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return program


class Net(nn.Module):
    """First and last layer, with a forward to be written."""

    def __init__(self, target: str = "T40", channels: int = 32, **options: Any) -> None:
        super().__init__()
        common: dict[str, Any] = {**Q8, "target_device": target, **options}
        self.first = ops.Conv2D(3, channels, padding=1, enable_batch_norm=True, first_layer=True, **common)
        self.second = ops.Conv2D(channels, channels, padding=1, activation_fn=None, **common)
        self.wide = ops.Conv2D(2 * channels, channels, 1, 1, 1, **common)
        self.pre = ops.Preprocess(0, 255.0, target)

    def forward(self, image: Tensor) -> Any:
        return self.second(self.first(self.pre(image)))


class Built(Net):
    """Operators built inside forward, at their default target."""

    def forward(self, image: Tensor) -> Any:
        a = self.first(ops.Preprocess(0, 255.0)(image))
        b = self.second(a)
        return self.wide(ops.Route()([a, b]))


@pytest.mark.parametrize("target", ["T40", "T41", "Txx", "Xs1"])
def test_operators_built_inside_forward(target: str, tmp_path: Path) -> None:
    program = proven(Built(target), tmp_path)
    assert program.chip == target.lower()
    assert {node.layer for node in program.nodes if node.layer} == {"first", "second", "wide"}


def test_several_of_a_kind_and_torch_s_own_are_built_inside_forward(tmp_path: Path) -> None:
    class Several(Net):
        def forward(self, image: Tensor) -> Any:
            a = self.first(ops.Preprocess(0, 255.0)(image))
            left, right = ops.Channel_Split([16, 16])(nn.Identity()(a))
            b = self.second(ops.Route()([left, right]))
            pooled = ops.Maxpool2D(2, 2, 2)(self.wide(ops.Route()([a, b])))
            return ops.Flatten([-1, 32 * 16])(pooled)

    assert proven(Several(), tmp_path).chip == "t40"


class Summed(Net):
    def forward(self, image: Tensor) -> Any:
        a = self.first(self.pre(image))
        common: dict[str, Any] = {"quantize": True, "input_bitwidth": 8, "output_bitwidth": 8, "target_device": "T40"}
        total = ops.Shortcut(32, **common)([a, self.second(a)])
        return ops.AdaptiveAvgpool2D(32, keepdim=False, **common)(total)


def test_sums_and_means_built_inside_forward_are_proven(tmp_path: Path) -> None:
    proven(Summed(), tmp_path)


def test_layers_with_weights_built_inside_forward_are_refused() -> None:
    class Anew(Net):
        def forward(self, image: Tensor) -> Any:
            return ops.Conv2D(32, 32, target_device="T40", **Q8)(self.first(self.pre(image)))

    with pytest.raises(UnsupportedError, match=r"Conv2D.*Build it in __init__"):
        lower(Anew(), pixels(2, 3, 8, 8))


def test_layers_in_a_plain_list_are_refused() -> None:
    class Listed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.more = [ops.Conv2D(32, 32, target_device="T40", **Q8)]

        def forward(self, image: Tensor) -> Any:
            return self.more[0](self.first(self.pre(image)))

    with pytest.raises(UnsupportedError, match="ModuleList"):
        lower(Listed(), pixels(2, 3, 8, 8))


def test_calibration_names_a_sum_that_it_cannot_reach() -> None:
    with pytest.raises(UnsupportedError, match=r"Shortcut.*__init__"):
        chipfit.calibrate(Summed(), [pixels(4, 3, 8, 8)])


def test_equalisation_of_a_network_that_builds_inside_forward() -> None:
    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.first, self.second = math, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Any:
            return self.second(nn.ReLU()(self.first(x)))

    net, x = Row(), torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        net.first.weight[0] *= 100
    want = net(x)
    assert [(pair.first, pair.second) for pair in equalise(net)] == [("first", "second")]
    assert torch.allclose(net(x), want, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in net.named_children()] == ["first", "second"]


# --- what is kept as an attribute


class Config:
    """A user's options, with a Python module and a lock among them."""

    def __init__(self) -> None:
        self.math, self.lock, self.sizes = math, threading.Lock(), {"width": [32, 64]}


class Configured(Net):
    def __init__(self, config: Any) -> None:
        super().__init__()
        del self.wide
        self.config, self.np = config, np
        self.seen: Any = None

    def forward(self, image: Tensor) -> Any:
        a = self.first(self.pre(image))
        self.seen = a[0]  # hangs on its gradient, which copy.deepcopy refuses
        return self.second(a)


@pytest.mark.parametrize("config", [math, Config(), types.SimpleNamespace(width=32), {"module": math}])
def test_modules_and_options_kept_as_attributes(config: Any, tmp_path: Path) -> None:
    net = Configured(config)
    net.train()
    net(pixels(2, 3, 8, 8))[0].sum().backward()
    proven(net, tmp_path)
    chipfit.calibrate(net, [pixels(4, 3, 8, 8)])
    for mode in ("float", "quant"):
        chipfit.set_mode(net, mode)
        net(pixels(2, 3, 8, 8))
    assert net.config is config


def test_a_copy_shares_what_cannot_be_copied_and_nothing_else() -> None:
    net = Configured(Config())
    net.seen = net.first.Conv2d.weight * 2
    twin = copied(net)
    assert twin.config is not net.config
    assert twin.config.lock is net.config.lock
    assert twin.config.math is math
    assert twin.config.sizes == net.config.sizes
    assert twin.config.sizes is not net.config.sizes
    assert torch.equal(twin.seen, net.seen)
    assert twin.seen.grad_fn is None
    assert twin.first.Conv2d.weight is not net.first.Conv2d.weight


def test_copies_of_what_refers_to_the_network() -> None:
    """Bound methods and helpers of the copy are the copy's, also where a lock lies beside them."""

    class Helper:
        def __init__(self, net: nn.Module) -> None:
            self.net, self.lock = net, threading.Lock()

    net = nn.Linear(2, 2)
    net.helper, net.method, net.module = Helper(net), net.forward, math
    twin = copied(net)
    assert twin.helper.net is twin
    assert twin.helper.lock is net.helper.lock
    assert twin.method.__self__ is twin
    assert twin.module is math

    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("not me")

    with pytest.raises(UnsupportedError, match=r"Sequential: the network cannot be copied; got 'not me'"):
        copied(nn.Sequential(Stubborn(2, 2)))


def test_a_plain_network_with_a_python_module_is_converted() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.conv = math, nn.Conv2d(32, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.ReLU()(self.conv(x))

    net = Plain()
    x = torch.rand(2, 32, 5, 5)
    converted = chipfit.convert(net, chipfit.chip("t40"), x)
    assert not converted.meta["on_cpu"]
    assert torch.allclose(converted.eval()(x), net.eval()(x), atol=1e-5)


# --- targets


def test_operators_at_the_default_target_take_the_network_s(tmp_path: Path) -> None:
    class Default(Net):
        def __init__(self) -> None:
            super().__init__("A1")
            self.pre, self.route, self.pool = ops.Preprocess(), ops.Route(), ops.Maxpool2D(3, 3, 1, 1)
            self.up, self.flat = ops.Unpool2D(quantize=True), ops.Flatten([-1, 32])
            self.mean = ops.AdaptiveAvgpool2D(32, quantize=True, input_bitwidth=8, output_bitwidth=8)
            self.most = ops.Max()

        def forward(self, image: Tensor) -> Any:
            a = self.first(self.pre(image))
            b = self.most([self.pool(self.second(a)), a])
            return self.flat(self.mean(self.up(self.wide(self.route([a, b])))))

    with warnings.catch_warnings():
        warnings.simplefilter("error", ChipfitWarning)
        assert proven(Default(), tmp_path).chip == "a1"


class DefaultSum(Net):
    def __init__(self, target: str = "T40") -> None:
        super().__init__(target)
        self.add = ops.Shortcut(32, quantize=True, input_bitwidth=8, output_bitwidth=8)

    def forward(self, image: Tensor) -> Any:
        a = self.first(self.pre(image))
        return self.wide(ops.Route()([a, self.add([a, self.second(a)])]))


def test_a_sum_at_the_default_target_is_what_was_trained_and_said(tmp_path: Path) -> None:
    net, example = DefaultSum(), pixels(4, 3, 8, 8)
    with pytest.warns(ChipfitWarning, match=r"add: left at the default target Txx.*T40.*lowered as they were trained"):
        program = lower(net, example)
    assert verify(net, program, [example]).equal
    with pytest.warns(ChipfitWarning, match=r"add.*the converter computes that"):
        path = export_magik(net, example, tmp_path / "net.onnx")
    assert read_magik(path).get_submodule("add").target_device == "T40"


def test_two_targets_that_somebody_chose_are_an_error() -> None:
    net = Net("T40")
    net.pre = ops.Preprocess(0, 255.0, "T41")
    for make in (lambda: lower(net, pixels(2, 3, 8, 8)), lambda: export_magik(net, pixels(2, 3, 8, 8), "x.onnx")):
        with pytest.raises(UnsupportedError, match=r"T40.*T41.*one target"):
            make()


def test_t02_takes_in_nothing_that_was_not_built_for_it() -> None:
    net = nn.Sequential(ops.Conv2D(32, 32, target_device="T02", **Q8), ops.Maxpool2D())
    with pytest.raises(UnsupportedError, match=r"T02.*Txx.*one target"):
        lower(net, pixels(2, 32, 8, 8))


def test_the_certificate_of_a_network_that_builds_inside_forward() -> None:
    net = Built()
    rows = certify(lower(net, pixels(2, 3, 8, 8)), [pixels(2, 3, 8, 8)]).rows
    assert [row.name for row in rows] == ["first", "second", "wide"]


# --- arguments and shapes


@pytest.mark.parametrize("true", [1, np.bool_(True), np.int64(1)])
def test_flags_are_whatever_is_true(true: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    flagged = Net(quantize=true)
    torch.manual_seed(0)
    plain = Net()
    image = pixels(2, 3, 8, 8)
    assert torch.equal(flagged.eval()(image)[0], plain.eval()(image)[0])
    proven(flagged, tmp_path)


FLAGGED = {
    "Conv2D": (32, 32), "DepthwiseConv2D": (32,), "ConvTranspose2D": (32, 32), "Conv1D": (32, 32),
    "FullConnected": (32, 32), "BatchNorm": (32,), "Shortcut": (32,), "Avgpool2D": (32,), "AdaptiveAvgpool2D": (32,),
    "Unpool2D": (), "Se_Block": (64, 2), "Mul": (32,), "LSTM": (32, 32), "Embedding": (8, 32),
}  # fmt: skip


@pytest.mark.parametrize("operator", FLAGGED)
def test_every_operator_takes_one_for_true(operator: str) -> None:
    layer = getattr(ops, operator)(*FLAGGED[operator], quantize=1, target_device="T40")
    parts = [part for part in layer.modules() if hasattr(part, "quantize")]
    assert parts
    assert all(part.quantize is True for part in parts)


class Shapes(Net):
    """Branches and loops on shapes, widths and signs, and on arguments that keep their defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([ops.Maxpool2D(target_device="T40"), ops.Maxpool2D(target_device="T40")])

    def forward(self, image: Tensor, targets: Tensor | None = None, features: bool = False) -> Any:
        if image.dim() != 4 or image.shape[1] != 3 or image.size(2) < 8:
            raise ValueError("images of 8 x 8 and more")
        y = self.first(self.pre(image))
        if not isinstance(y, tuple) or len(y) != 3:
            raise ValueError("no feature")
        x, bits, low = y
        while x.shape[2] > 4:
            y = self.steps[0](y)
            x = y[0]
        if bits == 8 and low == 0 and x.shape[-1] == x.shape[-2] and x.shape[2:].numel() == 16:
            y = self.second(y)
        n, c, h, w = y[0].shape
        if targets is not None or features:
            return y
        return y[0].view(n, c * h * w), y[0].size()[1:], image.shape[0]


def test_control_flow_on_shapes() -> None:
    class Head(Shapes):
        def forward(self, image: Tensor, targets: Tensor | None = None, features: bool = False) -> Any:
            return super().forward(image, targets, features)[0]

    net, image = Head(), pixels(5, 3, 16, 16)
    program = lower(net, image)
    assert verify(net, program, [pixels(2, 3, 16, 16, seed=3)]).equal  # of another batch
    assert tuple(FastProgram(program)(image).shape) == (5, 512)


def test_control_flow_on_values_is_still_refused() -> None:
    class Values(Net):
        def forward(self, image: Tensor) -> Any:
            a = self.first(self.pre(image))
            return self.second(a) if a[0].max() > 0.5 else a

    with pytest.raises(UnsupportedError, match="must not branch or loop on the values"):
        lower(Values(), pixels(2, 3, 8, 8))


def test_a_network_inside_data_parallel(tmp_path: Path) -> None:
    proven(nn.DataParallel(Built()), tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        ops.Conv2D(3, 32, first_layer=True, target_device="T40"),
        ops.Conv2D(3, 32, first_layer=True, quantize=True, weight_bitwidth=8, output_bitwidth=8),
        ops.BatchNorm(3, first_layer=True, target_device="T40"),
    ],
)
def test_a_first_layer_needs_preprocess(layer: nn.Module) -> None:
    with pytest.raises(InvalidValueError, match=r"bare tensor.*Preprocess"):
        layer(torch.rand(1, 3, 8, 8))

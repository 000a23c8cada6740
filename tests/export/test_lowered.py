"""From networks of chip layers to onnxruntime: equal to the training forward and to the interpreter in every code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from chipfit.chips.witmem.demo import cnn
from chipfit.chips.witmem.gru.layers import WitinGru
from chipfit.chips.witmem.mapper.check import check_mapper
from chipfit.chips.witmem.mapper.writer import export_witin_mapper
from chipfit.export.onnx.writer import onnx_model
from chipfit.fit.calibrate import calibrate
from chipfit.modes import set_mode
from chipfit.program.lowering.engine import lower
from chipfit.program.reference import run, trace
from witin_nn import (
    HandleNegInType,
    WitinConv2d,
    WitinConvTranspose2d,
    WitinElementAdd,
    WitinElementMul,
    WitinGELU,
    WitinLayerConfig,
    WitinLinear,
    WitinPReLU,
    WitinSigmoid,
    WitinTanh,
)


@pytest.fixture(scope="module")
def assert_equal(onnxruntime_levels):
    """Training forward (in its own rounding), interpreter and onnxruntime at every level."""

    def check(net: nn.Module, x: Tensor, rounding: str | None = None) -> None:
        program = lower(net, x[:2], rounding=rounding)
        wanted = run(program, x)
        if rounding is None and all(node.exact_in_float32 for node in program.nodes):
            with torch.no_grad():
                assert torch.equal(net.eval()(x), wanted)
        content = onnx_model(program).SerializeToString()
        for found in onnxruntime_levels(content, {program.inputs[0].name: x.numpy()}):
            assert np.array_equal(found[0], wanted.numpy())

    return check


def config(**options: object) -> WitinLayerConfig:
    return WitinLayerConfig(1, use_quantization=True, **options)


@pytest.mark.parametrize("rounding", [None, "wtm2101"])
def test_digits_cnn(assert_equal, rounding):
    torch.manual_seed(0)
    net = set_mode(cnn(8), "quant")
    x = torch.rand(300, 1, 8, 8)
    calibrate(net, [(x,)])
    assert_equal(net, 2 * x, rounding=rounding)


def test_gru_keyword_net(assert_equal):
    torch.manual_seed(1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = WitinGru(10, 16, batch_first=True, layer_config=config(handle_neg_in=HandleNegInType.PN))
            self.fc = WitinLinear(16, 4, layer_config=config(handle_neg_in=HandleNegInType.PN))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.gru(x)[0][:, -1])

    net, x = Net(), torch.randn(40, 12, 10)
    calibrate(net, [(x,)])
    assert_equal(net, x)
    assert_equal(net, x, rounding="wtm2101")


def test_digital_layers(assert_equal):
    torch.manual_seed(2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = WitinConv2d(2, 4, 3, padding=1, layer_config=config(handle_neg_in=HandleNegInType.PN))
            self.gelu = WitinGELU(layer_config=config())
            self.prelu = WitinPReLU(4, layer_config=config())
            self.add = WitinElementAdd(layer_config=config())
            self.mul = WitinElementMul(layer_config=config(y_quant_bits=10))
            self.sigmoid = WitinSigmoid(layer_config=config())
            self.tanh = WitinTanh(layer_config=config())
            self.up = WitinConvTranspose2d(4, 3, 2, stride=2, layer_config=config(handle_neg_in=HandleNegInType.PN))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.up(self.mul(self.sigmoid(self.add(self.gelu(y), self.prelu(y))), self.tanh(y)))

    net, x = Net(), torch.randn(20, 2, 6, 6)
    calibrate(net, [(x,)])
    assert_equal(net, x)


MODES = st.sampled_from([HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift])
POWERS = st.integers(3, 8).map(lambda k: 2**k)


@st.composite
def configurations(draw: st.DrawFn) -> WitinLayerConfig:
    """Random widths, scales and ways to take negative inputs."""
    return config(
        use_auto_scale=False,
        handle_neg_in=draw(MODES),
        x_quant_bits=draw(st.integers(4, 12)),
        y_quant_bits=draw(st.integers(4, 12)),
        scale_x=draw(POWERS),
        scale_weight=draw(st.sampled_from([32, 128, 512])),
        scale_y=draw(POWERS),
        to_linear=draw(st.booleans()),
    )


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Up to two convolutions and a linear layer."""
    torch.manual_seed(draw(st.integers(0, 10_000)))
    layers: list[nn.Module] = []
    channels, side = 2, 5
    for _ in range(draw(st.integers(0, 2))):
        out, kernel = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        layers.append(WitinConv2d(channels, out, kernel, padding=1, layer_config=draw(configurations())))
        layers += [nn.ReLU()] if draw(st.booleans()) else []
        channels, side = out, side + 3 - kernel
    layers += [nn.Flatten(), WitinLinear(channels * side * side, 3, layer_config=draw(configurations()))]
    return nn.Sequential(*layers)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(net=networks(), rounding=st.sampled_from([None, "wtm2101"]))
@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
def test_random_networks(assert_equal, net, rounding):
    x = torch.randn(6, 2, 5, 5) * 4
    assert_equal(net, torch.round(x * 64) / 64, rounding=rounding)


def test_a_network_whose_scales_chain_goes_to_the_compiler(tmp_path):
    torch.manual_seed(3)

    def scaled(x: float, weight: float, y: float) -> WitinLayerConfig:
        return config(use_auto_scale=False, scale_x=x, scale_weight=weight, scale_y=y)

    net = nn.Sequential(
        nn.Flatten(),
        WitinLinear(20, 30, layer_config=scaled(256, 256, 128)),
        nn.ReLU(),
        WitinLinear(30, 5, layer_config=scaled(128, 256, 64)),
    )
    x = torch.rand(150, 4, 5)
    program = lower(net, x[:2])
    path = export_witin_mapper(program, x, tmp_path / "net.onnx")[0]
    assert check_mapper(path) == {"Gemm": 2, "Scale": 2, "Relu": 1}
    assert np.array_equal(np.load(tmp_path / "net.npy"), trace(program, x)["1.input"].numpy())

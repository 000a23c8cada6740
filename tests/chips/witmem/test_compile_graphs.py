"""A quantised network in eval() compiles as one graph, and computes what it computes uncompiled."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import witin_nn as wnn
from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid
from chipfit.fit.calibrate import calibrate
from witin_nn import HandleNegInType, WitinLayerConfig

pytestmark = pytest.mark.slow

BACKENDS = [("aot_eager", False), ("aot_eager", True)] + ([("inductor", True)] if shutil.which("g++") else [])


def config(negative: HandleNegInType = HandleNegInType.FALSE, **options: Any) -> WitinLayerConfig:
    scales = {"scale_x": 16, "scale_weight": 32, "scale_y": 16, "scale_x_left": 16, "scale_x_right": 16}
    return WitinLayerConfig(1, **{"use_quantization": True, "handle_neg_in": negative, **scales, **options})


class Net(nn.Module):
    """Array and digital layers, without those that need a graph break."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)

        def c(*args: Any, **more: Any) -> WitinLayerConfig:
            return config(*args, **options, **more)

        self.conv = wnn.WitinConv2d(2, 4, 3, padding=1, layer_config=c())
        self.norm = wnn.WitinBatchNorm2d(4, layer_config=c())
        self.prelu = wnn.WitinPReLU(4, layer_config=c())
        self.cln = wnn.WitinClnBn2d(layer_config=c())
        self.mean = wnn.WitinMean(dim=3, layer_config=c())
        self.conv1d = wnn.WitinConv1d(4, 4, 3, layer_config=c(HandleNegInType.Shift, shift_num=4.0))
        self.linear = wnn.WitinLinear(4, 8, layer_config=c(HandleNegInType.PN))
        self.wide = wnn.WitinLinear(8, 8, layer_config=c(HandleNegInType.PN, x_quant_bits=10))
        self.gelu = wnn.WitinGELU(layer_config=c(gelu_shift_num=0.25))
        self.sigmoid = wnn.WitinSigmoid(layer_config=c(x_clip=2.0))
        self.tanh = wnn.WitinTanh(layer_config=c())
        self.add = wnn.WitinElementAdd(layer_config=c())
        self.mul = wnn.WitinElementMul(layer_config=c())
        self.divide = wnn.WitinElementDivide(layer_config=c(x_left_quant_bits=12))
        self.hypot = wnn.WitinHypot(layer_config=c())
        self.sqrt = wnn.WitinSqrt(layer_config=c())
        self.inv_sqrt = wnn.WitinInvSqrt(layer_config=c())
        self.cat = wnn.WitinCat(dim=-1, layer_config=c())
        self.cell = wnn.WitinGruCell(16, 4, layer_config=c())
        self.matmul = wnn.WitinMatMul(layer_config=c())

    def forward(self, x: Tensor) -> Tensor:
        first = self.prelu(self.norm(self.conv(x)))
        x = self.mean(self.cln(first))
        x = self.gelu(self.wide(self.linear(self.conv1d(x))))
        a, b = self.sigmoid(x), self.tanh(x)
        length = self.hypot(a, b)
        x = self.cat(self.divide(self.add(a, b), self.add(length, 0.5)), self.mul(length, 0.75))
        h = self.cell(x[:, 0])
        root = self.inv_sqrt(self.sqrt(self.add(length, 1.0)))
        y = self.matmul(h.unsqueeze(1), root[:, :4])
        return torch.cat([v.flatten(1) for v in (first, a, length, x, h, root, y)], dim=1)


def data(scale: float = 2.0) -> Tensor:
    return torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1)) * scale


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("backend", "auto"), BACKENDS)
def test_evaluation_is_one_graph_with_the_numbers_of_eager(backend: str, auto: bool) -> None:
    net = Net(use_auto_scale=auto).eval()
    if auto:
        calibrate(net, [data()])
    x = data()
    with torch.no_grad():
        want = net(x)
        compiled = torch.compile(net, backend=backend, fullgraph=True)
        assert torch.equal(compiled(x), want)
        assert want.unique().numel() > 50
        assert torch.equal(compiled(x * 0.5), net(x * 0.5))


def test_gradients_of_a_compiled_graph() -> None:
    net = Net(use_auto_scale=False).eval()
    other = copy.deepcopy(net)
    torch.compile(net, backend="aot_eager", fullgraph=True)(data()).square().sum().backward()
    other(data()).square().sum().backward()
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5, msg=name)
    assert net.conv.weight.grad.abs().max() > 0


def test_a_scale_that_changes_is_never_a_stale_constant() -> None:
    """Scales are constants of the compiled code: whatever changes one must be seen by the next forward."""
    net = nn.Sequential(
        wnn.WitinLinear(4, 6, layer_config=config()),
        wnn.WitinTanh(layer_config=config(auto_scale_updata_step=1)),
    ).eval()
    compiled = torch.compile(net, backend="aot_eager")
    x = torch.randn(5, 4)
    tanh = net[1]
    seen = []
    with torch.no_grad():
        for factor in (1.0, 16.0, 0.25):
            net.train()
            tanh(x * factor)
            net.eval()
            assert torch.equal(compiled(x), net(x)), factor
            seen.append(tanh.autoscale_x_obj.scale)
        state = net.state_dict()
        state["1.autoscale_y_obj.io_max"].fill_(100.0)
        net.load_state_dict(state)
        assert torch.equal(compiled(x), net(x))
        assert tanh.autoscale_y_obj.scale == 1.0
        calibrate(net, [x], "max")
        assert torch.equal(compiled(x), net(x))
        tanh.autoscale_y_obj.io_max.fill_(50.0)
        tanh.autoscale_y_obj.settled = False
        coarse = compiled(x)
        assert tanh.autoscale_y_obj.scale == 2.0
        assert torch.equal(coarse, net(x))
    assert len(set(seen)) == 3


def test_an_unsettled_scale_costs_one_graph_break_and_is_settled() -> None:
    layer = wnn.WitinTanh(layer_config=config()).eval()
    x = torch.randn(9)
    compiled = torch.compile(layer, backend="aot_eager")
    assert not layer.autoscale_x_obj.settled
    assert torch.equal(compiled(x), layer(x))
    assert layer.autoscale_x_obj.settled
    torch.compiler.reset()
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_sequence_layer_breaks_the_graph_but_not_the_numbers() -> None:
    """Torch's compiler does not trace into subclasses of nn.GRU."""
    layer = wnn.WitinGru(4, 3, layer_config=config(HandleNegInType.PN)).eval()
    x = torch.randn(5, 2, 4)
    compiled = torch.compile(nn.Sequential(layer), backend="aot_eager")
    for got, want in zip(compiled(x), layer(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("round_first", [False, True])
def test_fake_quantise_is_one_graph_at_any_scale(round_first: bool) -> None:
    def quantised(x: Tensor, grid: Grid) -> Tensor:
        return fake_quantise(x, grid, round_first=round_first)

    x = (torch.randn(1000) * 8).requires_grad_()
    for scale in (16.0, 3.3, 0.5):
        torch.compiler.reset()
        compiled = torch.compile(quantised, backend="aot_eager", fullgraph=True)
        grid = Grid(8, True, scale)
        got, want = compiled(x, grid), quantised(x, grid)
        assert torch.equal(got, want)
        for a, b in zip(torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x), strict=True):
            assert torch.equal(a, b)

"""Cross-layer equalisation: ranges meet, the float output stays, and quantisation gains."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import witin_nn as wnn
from chipfit.chips import ingenic as ops
from chipfit.errors import UnsupportedError
from chipfit.fit.calibrate import calibrate
from chipfit.fit.equalise import equalise
from chipfit.modes import set_mode
from witin_nn import WitinLayerConfig


def config() -> WitinLayerConfig:
    return WitinLayerConfig(1, use_quantization=True, handle_neg_in=wnn.HandleNegInType.PN)


def uneven(net: Any) -> Any:
    """Channels of very different size, and batch norms with statistics."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight *= torch.logspace(-1, 1, module.weight.shape[0]).view(
                    -1, *[1] * (module.weight.dim() - 1)
                )
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
    return net.eval()


class Torch(nn.Module):
    """Batch norm, depthwise convolution, pool, flattening, functional activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.c, self.act = nn.Conv2d(8, 16, 1, groups=2), nn.PReLU(16)
        self.pool, self.d = nn.MaxPool2d(2), nn.Linear(16 * 9, 12)
        self.e = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))
        return self.e(F.leaky_relu(self.d(torch.flatten(self.pool(self.act(x)), 1)), 0.1))


@torch.no_grad()
def test_torch_layers() -> None:
    net, x = uneven(Torch()), torch.randn(4, 3, 6, 6)
    clean = net(x)
    found = equalise(net)
    assert [(pair.first, pair.second) for pair in found] == [("a", "b"), ("b", "c"), ("c", "d"), ("d", "e")]
    torch.testing.assert_close(net(x), clean, rtol=1e-5, atol=1e-5)
    rows, columns = net.d.weight.abs().amax(1), net.e.weight.abs().amax(0)
    torch.testing.assert_close(rows, columns, rtol=0.01, atol=0)
    assert found[-1].spread > 30 > 3 * found[-1].spread_after


@torch.no_grad()
def test_witmem_gains_what_uneven_channels_cost() -> None:
    def build() -> Any:
        torch.manual_seed(0)
        net = nn.Sequential(
            wnn.WitinConv2d(3, 8, 3, layer_config=config()),
            nn.ReLU(),
            nn.Flatten(),
            wnn.WitinLinear(128, 5, layer_config=config()),
        )
        for module in (net[0], net[3]):
            module.weight.normal_(std=0.1)
        sizes = torch.logspace(-1.5, 1.5, 8)  # large rows meet small columns, so that every channel matters alike
        net[0].weight *= sizes.view(-1, 1, 1, 1)
        net[0].bias *= sizes
        net[3].weight /= sizes.repeat_interleave(16)
        return net.eval()

    torch.manual_seed(1)
    x, errors, outputs = torch.randn(64, 3, 6, 6), [], []
    for even in (False, True):
        net = build()
        if even:
            assert [(pair.first, pair.second) for pair in equalise(net)] == [("0", "3")]
        set_mode(net, "float")
        clean = net(x)
        set_mode(net, "quant")
        calibrate(net, [x])
        errors.append(((net(x) - clean).square().mean() / clean.square().mean()).item())
        outputs.append(clean)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    assert errors[1] < 0.1 * errors[0]


def ingenic(first: Any, target: str = "T40") -> Any:
    def conv(activation: Any) -> Any:
        return ops.Conv2D(32, 32, activation_fn=activation, enable_batch_norm=True, padding=1, target_device=target)

    net = uneven(
        nn.Sequential(
            conv(first), ops.Maxpool2D(target_device=target), conv(ops.ReLU(target)), ops.Flatten([-1, 128], target)
        )
    )
    net.append(ops.FullConnected(128, 4, None, last_layer=True, target_device=target))
    return net.eval()


@torch.no_grad()
def test_ingenic_layers_keep_the_smallest_gain() -> None:
    net, x = ingenic(ops.ReLU("T40")), torch.rand(2, 32, 4, 4)
    net[0].BatchNorm2d.batch_norm.weight[0] = -1.0  # the chip takes 0.01
    clean = net(x)
    assert [(pair.first, pair.second) for pair in equalise(net)] == [("0", "2"), ("2", "4")]
    torch.testing.assert_close(net(x), clean, rtol=1e-5, atol=1e-5)
    assert net[0].BatchNorm2d.batch_norm.weight.min() >= 0.01 - 1e-7


@torch.no_grad()
def test_what_is_left_alone() -> None:
    assert [p.first for p in equalise(ingenic(ops.ReLU6("T40")))] == ["2"]
    assert [p.first for p in equalise(ingenic(ops.LeakyReLU(0.1, "T40")))] == ["2"]  # border of -1
    assert [p.first for p in equalise(ingenic(ops.LeakyReLU(0.1, "Txx"), "Txx"))] == ["0", "2"]
    assert equalise(nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))) == []
    assert equalise(nn.Sequential(nn.Linear(2, 4), nn.MaxPool1d(2), nn.Linear(2, 1))) == []

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y) + y

    assert equalise(Twice()) == []
    shared = nn.Linear(2, 2)
    assert equalise(nn.Sequential(shared, nn.ReLU(), shared)) == []


def test_a_dead_channel_and_a_forward_that_cannot_be_traced() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight[0] = 0.0
    equalise(net)
    assert all(bool(p.isfinite().all()) for p in net.parameters())

    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match=r"torch\.fx"):
        equalise(Branching())

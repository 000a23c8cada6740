"""The forward of training computes the very codes of the int64 reference, where batch normalisation is settled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chipfit.chips import ingenic as chips
from chipfit.program import lower, run


class Network(nn.Module):
    """Every layer with weights, and a residual connection; real logits."""

    def __init__(self, target: str, bits: int, signed: bool, norm: bool, channels: int = 64) -> None:
        super().__init__()
        q = {"quantize": True, "input_bitwidth": bits, "output_bitwidth": bits, "target_device": target}
        wq = {**q, "weight_bitwidth": bits, "auto_bitwidth": False}
        options: dict[str, Any] = {**wq, "enable_batch_norm": norm, "enable_bias": not norm}

        def activation() -> nn.Module | None:
            return chips.PReLU(channels, target) if signed else None

        conv: dict[str, Any] = {**options, "padding": 1, "clip_max_value": 2.0 if norm else 0.25}
        self.start = chips.Preprocess(0, 255.0, target)
        self.first = chips.Conv2D(3, channels, activation_fn=activation(), first_layer=True, **conv)
        self.inner = chips.Conv2D(channels, channels, activation_fn=activation(), **conv)
        self.shortcut = chips.Shortcut(channels, **q)
        self.wise = chips.DepthwiseConv2D(channels, activation_fn=activation(), **conv)
        self.pool = chips.Maxpool2D(target_device=target)
        self.down = chips.Conv2D(channels, channels, 2, activation_fn=activation(), **conv)
        transpose = {k: v for k, v in conv.items() if k != "padding"}
        self.up = chips.ConvTranspose2D(channels, channels, activation_fn=activation(), **transpose)
        self.flatten = chips.Flatten([-1, 4 * channels], target_device=target)
        self.hidden = chips.FullConnected(4 * channels, 64, activation_fn=None, clip_max_value=0.5, **options)
        last = {**options, "enable_batch_norm": False, "enable_bias": True}
        self.last = chips.FullConnected(64, 10, activation_fn=None, last_layer=True, **last)

    def forward(self, image: Tensor) -> Any:
        x = self.first(self.start(image))
        x = self.wise(self.shortcut([x, self.inner(x)]))
        x = self.up(self.down(self.pool(x)))
        return self.last(self.hidden(self.flatten(self.pool(x))))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("target", ["T40", "Txx"])
def test_training_computes_the_codes_of_the_reference(target: str, bits: int, signed: bool, norm: bool) -> None:
    torch.manual_seed(0)
    net = Network(target, bits, signed, norm)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("Conv2d.weight"):
                parameter.mul_(2.0)
    images = torch.randint(0, 256, (4, 3, 8, 8)) / 255
    for _ in range(3):
        net(images)
    expected = run(lower(net.eval(), images), images)
    assert isinstance(expected, Tensor)
    net.train()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eval()
    found = net(images)
    assert found.requires_grad
    assert torch.equal(found, expected)
    assert len(expected.unique()) >= 20
    F.cross_entropy(found, torch.arange(4)).backward()
    assert all(bool(p.grad.abs().sum() > 0) for n, p in net.named_parameters() if n.endswith("weight") and p.dim() > 1)


@pytest.mark.parametrize("signed", [False, True])
def test_gradients_are_those_of_the_quantised_values(signed: bool) -> None:
    """Weight: identity through its quantiser; input: from the dequantised weight, sums of one piece and of several."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "target_device": "T40"}
    layer = chips.Conv2D(96, 32, activation_fn=None, padding=1, last_layer=True, **options)
    with torch.no_grad():
        layer.Conv2d.weight.abs_()
    x = torch.randint(0, 256, (2, 96, 5, 5)) / 255
    x = (2 * x - 1 if signed else x).requires_grad_()
    y = layer((x, 8, -1.0 if signed else 0.0))
    upstream = torch.randn_like(y)
    y.backward(upstream)
    conv = layer.Conv2d
    value, weight = x.detach().requires_grad_(), conv.QuantizeWeight(conv.weight).detach().requires_grad_()
    F.conv2d(F.pad(value, (1,) * 4, value=-1.0 if signed else 0.0), weight, conv.bias.detach()).backward(upstream)
    torch.testing.assert_close(x.grad, value.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(conv.weight.grad, weight.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(conv.bias.grad, upstream.sum((0, 2, 3)), rtol=1e-5, atol=1e-4)


def test_an_input_off_its_grid_trains_as_it_is() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "target_device": "T40"}
    layer = chips.FullConnected(64, 32, activation_fn=None, last_layer=True, **options)
    x = torch.rand(4, 64)
    expected = F.linear(x, layer.Linear.QuantizeWeight(layer.Linear.weight), layer.Linear.bias)
    assert torch.equal(layer((x, 8, 0.0)), expected)

"""Small networks of Ingenic operators, and data for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips import ingenic as ops

Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


class Digits(nn.Module):
    """The network of the Ingenic demo for any target, with a global mean in place of the LSTM."""

    def __init__(self, bits: int, target: str) -> None:
        super().__init__()
        t = {"target_device": target}
        common: dict[str, Any] = {"quantize": True, "input_bitwidth": bits, "output_bitwidth": bits, **t}

        def conv(inputs: int, outputs: int, stride: int) -> ops.Conv2D:
            options = {**common, "weight_bitwidth": bits, "clip_max_value": 4.0 if bits == 4 else 6.0}
            options |= {"activation_fn": None, "enable_batch_norm": True, "enable_bias": False, "padding": 1}
            return ops.Conv2D(inputs, outputs, stride=stride, auto_bitwidth=False, **options)

        self.preprocess = ops.Preprocess(0, 255.0, **t)
        self.conv0, self.conv1, self.conv2 = conv(1, 32, 1), conv(32, 32, 1), conv(64, 32, 2)
        self.conv0.first_layer = True
        self.route, self.unpool = ops.Route(**t), ops.Unpool2D(2, 2, quantize=True, **t)
        self.conv3, self.maxpool, self.conv4 = conv(32, 64, 1), ops.Maxpool2D(**t), conv(64, 64, 1)
        self.shortcut = ops.Shortcut(64, **common)
        self.bn1 = ops.BatchNorm(64, ops.PReLU(64, target), True, False, bits, bits, **t)
        self.gap = ops.AdaptiveAvgpool2D(64, keepdim=False, quantize=True, **t)
        self.fc1 = ops.FullConnected(
            64, 64, None, enable_batch_norm=True, weight_bitwidth=bits, auto_bitwidth=False, **common
        )
        self.fc2 = ops.FullConnected(64, 10, None, last_layer=True, weight_bitwidth=8, **common)

    def forward(self, image: Tensor) -> Tensor:
        first = self.conv0(self.preprocess(image))
        x = self.conv2(self.route([first, self.conv1(first)]))
        pooled = self.maxpool(self.conv3(self.unpool(x)))
        x = self.bn1(self.shortcut([pooled, self.conv4(pooled)]))
        logits: Tensor = self.fc2(self.fc1(self.gap(x)))
        return logits


class InRow(nn.Module):
    """Preprocess, a first convolution with `options`, and operators in a row; the last feature is returned."""

    def __init__(self, target: str, channels: int, *layers: nn.Module, signed: bool = False, **options: Any) -> None:
        super().__init__()
        options = {"activation_fn": ops.Linear(target) if signed else None, "padding": 1, **Q8, **options}
        self.pre = ops.Preprocess(0, 255.0, target)
        self.first = ops.Conv2D(3, channels, first_layer=True, target_device=target, **options)
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> Any:
        x = self.first(self.pre(image))
        for layer in self.layers:
            x = layer(x)
        return x


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)) / 255.0


def trained(net: nn.Module, *batches: Tensor) -> nn.Module:
    """With running statistics of data."""
    net.train()
    with torch.no_grad():
        for _ in range(3):
            for batch in batches:
                net(batch)
    return net


def filled(net: nn.Module) -> nn.Module:
    """Parameters and running statistics away from their defaults."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("clip_max_value"):
                values = torch.randn(tensor.shape, generator=generator) * 0.4
                tensor.copy_(values.abs() + 0.01 if name.endswith("running_var") else values)
    return net

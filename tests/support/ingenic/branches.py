"""A small network of Ingenic layers with everything that calibration has to see through, for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.demo import train
from chipfit.fit.data import digits


class Branches(nn.Module):
    """Convolutions with and without batch norm, two sums that share a branch, a concatenation, squeeze-and-excite."""

    def __init__(self, bits: int = 32, target: str = "T40", widths: Mapping[str, int] | None = None) -> None:
        super().__init__()
        q, given = bits < 32, dict(widths or {})
        common: dict[str, Any] = {
            "quantize": q,
            "input_bitwidth": bits,
            "output_bitwidth": bits,
            "target_device": target,
        }

        def conv(name: str, inputs: int, outputs: int, norm: bool = True, **options: Any) -> ops.Conv2D:
            options = {"activation_fn": ops.ReLU(target), "padding": 1, **common, **options}
            width = given.get(name, bits)
            return ops.Conv2D(
                inputs,
                outputs,
                enable_batch_norm=norm,
                enable_bias=not norm,
                weight_bitwidth=width,
                auto_bitwidth=False,
                **options,
            )

        self.pre = ops.Preprocess(0, 1.0, target)
        self.conv0 = conv("conv0", 1, 32, first_layer=True, activation_fn=ops.ReLU6(target))
        self.conv1 = conv("conv1", 32, 32)
        self.conv2 = conv("conv2", 32, 32, norm=False)
        self.add = ops.Shortcut(32, **common)
        self.conv3 = conv("conv3", 32, 32)
        self.add2 = ops.Shortcut(32, **common)
        self.route = ops.Route(target)
        self.pool = ops.Maxpool2D(target_device=target)
        self.se = ops.Se_Block(64, 2, weight_bitwidth=8 if q else 32, **common)
        self.conv4 = conv("conv4", 64, 32, stride=2)
        self.flatten = ops.Flatten([-1, 128], target)
        self.fc = ops.FullConnected(
            128,
            10,
            None,
            last_layer=True,
            quantize=q,
            weight_bitwidth=given.get("fc", bits),
            input_bitwidth=bits,
            target_device=target,
            auto_bitwidth=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(self.conv0(self.pre(x)))
        b = self.add([a, self.conv2(a)])
        c = self.add2([b, self.conv3(b)])
        out: Tensor = self.fc(self.flatten(self.conv4(self.se(self.pool(self.route([c, a]))))))
        return out


class Gated(nn.Module):
    """Three convolutions, a gate of two 1x1 convolutions and a linear layer; every weight's width is free."""

    def __init__(self, widths: Mapping[str, int] | None = None, target: str = "T40") -> None:
        super().__init__()
        q, given = widths is not None, dict(widths or {})
        bits = 8 if q else 32

        def layer(name: str, kind: Any, inputs: int, outputs: int, activation: Any, **options: Any) -> Any:
            return kind(
                inputs,
                outputs,
                activation_fn=activation,
                quantize=q,
                weight_bitwidth=given.get(name, bits),
                input_bitwidth=bits,
                output_bitwidth=bits,
                target_device=target,
                auto_bitwidth=False,
                **options,
            )

        relu, norm = ops.ReLU(target), {"enable_batch_norm": True, "enable_bias": False, "padding": 1}
        point = {"kernel_h": 1, "kernel_w": 1}
        self.pre = ops.Preprocess(0, 1.0, target)
        self.conv0 = layer("conv0", ops.Conv2D, 1, 32, relu, first_layer=True, **norm)
        self.conv1 = layer("conv1", ops.Conv2D, 32, 64, relu, stride=2, **norm)
        self.mean = ops.AdaptiveAvgpool2D(64, quantize=q, input_bitwidth=bits, target_device=target)
        self.gate1 = layer("gate1", ops.Conv2D, 64, 128, relu, **point)
        self.gate2 = layer("gate2", ops.Conv2D, 128, 64, ops.Hsigmoid(64, target_device=target), **point)
        self.mul = ops.Mul(64, quantize=q, input_bitwidth=bits, target_device=target)
        self.conv2 = layer("conv2", ops.Conv2D, 64, 32, relu, stride=2, **norm)
        self.flatten = ops.Flatten([-1, 128], target)
        self.fc = layer("fc", ops.FullConnected, 128, 10, None, last_layer=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.conv0(self.pre(x)))
        gate = self.gate2(self.gate1(self.mean(y)))
        out: Tensor = self.fc(self.flatten(self.conv2(self.mul([y, gate]))))
        return out


def trained(net: nn.Module, epochs: int = 4) -> nn.Module:
    """Train a float network on digits."""
    loader = DataLoader(digits(0)[0], 64, shuffle=True, drop_last=True)
    train(net, loader, epochs, 4e-3)
    return net.eval()


def images(count: int = 128, test: bool = False) -> Tensor:
    """Digits, (N, 1, 8, 8)."""
    pixels: Tensor = digits(0)[1 if test else 0].tensors[0][:count]
    return pixels

"""Speed of the integer program's fast path relative to the float network in evaluation, on 28x28 CNNs.

    python benchmarks/integer_speed.py [--rounds 20] [--batch 128] [--json FILE]

Witmem, Ingenic at 8 and 4 bits, and the convolutions of the Ingenic manual's network, whose wide layers pass 2^24.
Same batch, one thread. A ratio of 2 is half the float network's speed, which is what the fast path must keep.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from ingenic_layers import PlainNetwork
from timing import Step, ratios, show
from torch import Tensor, nn

from chipfit.chips import ingenic
from chipfit.chips.witmem.demo import cnn
from chipfit.fit.calibrate import calibrate
from chipfit.modes import set_mode
from chipfit.program import FastProgram, Program, lower, run

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from ingenic_t40_network import Network


def plain(net: nn.Module) -> nn.Module:
    """The same network of torch's own layers."""
    layers: list[nn.Module] = []
    for layer in net.children():
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.Linear(layer.in_features, layer.out_features))
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


class Digits(nn.Module):
    """Two convolutions and two matrix products for the T40."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        widths = {"weight_bitwidth": bits, "input_bitwidth": bits, "output_bitwidth": bits}
        common: dict[str, Any] = {"quantize": True, "target_device": "T40", **widths}
        conv = {**common, "padding": 1, "enable_batch_norm": True, "enable_bias": False}
        self.start, self.pool = ingenic.Preprocess(0, 255.0, "T40"), ingenic.Maxpool2D(target_device="T40")
        self.conv0 = ingenic.Conv2D(1, 32, first_layer=True, **conv)
        self.conv1 = ingenic.Conv2D(32, 64, **conv)
        self.flatten = ingenic.Flatten([-1, 3136], target_device="T40")
        self.fc0 = ingenic.FullConnected(3136, 128, **common)
        self.fc1 = ingenic.FullConnected(128, 10, activation_fn=None, last_layer=True, **common)

    def forward(self, image: Tensor) -> Any:
        """Classify images (N, 1, 28, 28)."""
        x = self.pool(self.conv1(self.pool(self.conv0(self.start(image)))))
        return self.fc1(self.fc0(self.flatten(x)))


def plain_digits() -> nn.Module:
    """`Digits` of torch's own layers."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU6(), nn.MaxPool2d(2)]

    tail = [nn.Flatten(), nn.Linear(3136, 128), nn.ReLU6(), nn.Linear(128, 10)]
    return nn.Sequential(*block(1, 32), *block(32, 64), *tail).eval()


class Convolutions(Network):
    """The manual's network up to its LSTM, which has no integer program."""

    def forward(self, image: Tensor) -> Any:
        """Features (N, 256, 1, 1) of images (N, 3, 32, 32)."""
        pooled = self.maxpool(self.conv0(self.bn(self.preprocess(image))))
        x = self.conv3(self.conv2(self.route([pooled, self.conv1(pooled)])))
        pooled = self.maxpool(self.conv4(self.unpool(x)))
        x = self.conv7(self.conv6(self.bn1(self.shortcut([pooled, self.conv5(pooled)]))))
        return self.conv10(self.conv9(self.conv8(x)))[0]


class PlainConvolutions(PlainNetwork):
    """`Convolutions` of torch's own layers."""

    def forward(self, image: Tensor) -> Tensor:
        """As `Convolutions`."""
        pooled = self.pool(self.conv0(self.bn(image)))
        x = self.conv3(self.conv2(torch.cat([pooled, self.conv1(pooled)], 1)))
        pooled = self.pool(self.conv4(self.up(x)))
        out: Tensor = self.tail(self.bn1(pooled + self.conv5(pooled)))
        return out


def measured(
    reference: nn.Module, variants: dict[str, tuple[nn.Module | None, Program]], x: Tensor, rounds: int
) -> dict[str, float]:
    """Time relative to the float network of each fast path, and of each network in evaluation that is given."""
    steps: dict[str, Step] = {"float network": lambda: reference(x)}
    for name, (net, program) in variants.items():
        if not torch.equal(FastProgram(program)(x[:8]), run(program, x[:8])):
            raise SystemExit(f"{name}: the fast path and the reference differ")
        steps[f"{name}: fast path"] = functools.partial(FastProgram(program), x)
        if net is not None:
            steps[f"{name}: layers in evaluation"] = functools.partial(net, x)
    figures = ratios(steps, "float network", rounds)
    del figures["float network"]
    return figures


def settled(net: nn.Module, x: Tensor) -> nn.Module:
    """With running statistics of the data, in evaluation."""
    for _ in range(10):
        net(x)
    return net.eval()


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    x = torch.rand(args.batch, 1, 28, 28)
    net = cnn(28)
    calibrate(net, [(x, torch.zeros(len(x)))])
    set_mode(net, "quant")
    programs = {rule: lower(net, x[:1], rounding=rule) for rule in ("witin_nn", "wtm2101")}
    with torch.no_grad():
        reference = plain(net)
        figures = measured(reference, {f"Witmem, {k}": (None, v) for k, v in programs.items()}, x, args.rounds)
        slow = ratios(
            {"float": lambda: reference(x[:8]), "int64": lambda: run(programs["wtm2101"], x[:8])}, "float", 5, warmup=1
        )
        figures["Witmem: int64 reference"] = slow["int64"]
        for title, make, twin, shape in (
            ("Ingenic", Digits, plain_digits(), (args.batch, 1, 28, 28)),
            ("Ingenic manual", Convolutions, PlainConvolutions().eval(), (32, 3, 32, 32)),
        ):
            pixels = torch.randint(0, 256, shape) / 255
            nets = {f"{title}, {bits} bit": settled(make(bits), pixels) for bits in (8, 4)}
            figures |= measured(twin, {k: (n, lower(n, pixels[:1])) for k, n in nets.items()}, pixels, args.rounds)
    rows = [(name, ratio, 2.0 if "fast" in name else None, None) for name, ratio in figures.items()]
    show("Evaluation: time relative to the float network", rows)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Training time of Ingenic layers and of the manual's network relative to their plain torch.nn twins.

The last two cases are relative to the same network with weight statistics in torch's order of summation.

python benchmarks/ingenic_layers.py [--rounds 40] [--only fc] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from timing import ratios, show, training_step
from torch import Tensor, nn

from chipfit.chips.ingenic import Conv2D, FullConnected, use_vendor_statistics

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from ingenic_t40_network import Network

BITS = {"weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}


class OnTuple(nn.Module):
    """Calls an Ingenic layer with a quantised feature, and returns the tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        out: Tensor = self.layer((x, 8, 0.0))[0]
        return out


class PlainNetwork(nn.Module):
    """The manual's network in plain torch.nn, with the same sizes."""

    def __init__(self) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())

        self.bn, self.pool = nn.BatchNorm2d(3), nn.MaxPool2d(2)
        self.conv0, self.conv1, self.conv2, self.conv3 = block(3, 32), block(32, 32), block(64, 32, 2), block(32, 64)
        self.up = nn.ConvTranspose2d(64, 64, 1, 2, output_padding=1, groups=64, bias=False)  # zeros between values
        self.up.weight.data.fill_(1.0)
        self.up.weight.requires_grad_(False)
        self.conv4, self.conv5 = block(64, 64), block(64, 64)
        self.bn1 = nn.Sequential(nn.BatchNorm2d(64), nn.PReLU(64))
        self.tail = nn.Sequential(
            block(64, 128, 2), block(128, 128), block(128, 256, 2), block(256, 256), block(256, 256, 2)
        )
        self.rnn = nn.LSTM(256, 256, batch_first=True, bidirectional=True)
        self.fc1 = nn.Sequential(nn.Linear(512, 128), nn.BatchNorm1d(128), nn.ReLU6())
        self.fc2 = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images (N, 3, 32, 32)."""
        pooled = self.pool(self.conv0(self.bn(image)))
        x = self.conv3(self.conv2(torch.cat([pooled, self.conv1(pooled)], 1)))
        pooled = self.pool(self.conv4(self.up(x)))
        x = self.tail(self.bn1(pooled + self.conv5(pooled)))
        sequence = self.rnn(x.squeeze(2).transpose(1, 2))[0]
        out: Tensor = self.fc2(self.fc1(sequence.reshape(-1, 512)))
        return out


def pairs(name: str) -> tuple[nn.Module, dict[str, nn.Module], Tensor]:
    """The plain twin, the Ingenic variants, and an input."""
    if name == "conv":
        plain = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        layers = {
            target: Conv2D(
                64,
                64,
                padding=1,
                enable_batch_norm=True,
                enable_bias=False,
                quantize=True,
                target_device=target,
                **BITS,
            )
            for target in ("T40", "Txx")
        }
        return plain, {k: OnTuple(v) for k, v in layers.items()}, torch.rand(8, 64, 32, 32)
    if name == "fc":
        fc = FullConnected(512, 512, quantize=True, target_device="T40", **BITS)
        return nn.Sequential(nn.Linear(512, 512), nn.ReLU6()), {"T40": OnTuple(fc)}, torch.rand(128, 512)
    if name in ("order", "clipped"):
        plain, vendor = (network_for_statistics(name == "clipped") for _ in range(2))
        use_vendor_statistics(plain, False)
        return plain, {"T40, 8 bit": vendor}, torch.rand(32, 3, 32, 32)
    return PlainNetwork(), {f"T40, {bits} bit": Network(bits) for bits in (8, 4)}, torch.rand(32, 3, 32, 32)


def network_for_statistics(clipped: bool) -> nn.Module:
    """The manual's network as it starts, or with normal weights, some of which every layer clips."""
    net = Network(8)
    if clipped:
        with torch.no_grad():
            for p in net.parameters():
                if p.dim() > 1:
                    p.normal_(0.0, p.std().item())
    return net


CASES: dict[str, tuple[str, float | None]] = {
    "conv": ("Conv2D 64 -> 64, 3x3, batch norm, 8x64x32x32, 8 bit", 1.35),
    "fc": ("FullConnected 512 -> 512, batch 128, 8 bit", 1.8),
    "network": ("the manual's network, batch 32", 1.5),
    "order": ("the vendor's order of summation, the manual's network", 1.03),
    "clipped": ("the same with clipped weights in every layer", None),
}


def main() -> None:
    """Measure, print a table, and save the ratios if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[tuple[str, float, float | None, float | None]] = []
    for name in [options.only] if options.only else CASES:
        torch.manual_seed(0)
        plain, variants, x = pairs(name)
        steps = {
            label: training_step(layer, [p for p in layer.parameters() if p.requires_grad], x.clone().requires_grad_())
            for label, layer in {"plain": plain, **variants}.items()
        }
        found = ratios(steps, "plain", max(options.rounds // 4, 5) if name not in ("conv", "fc") else options.rounds)
        title, target = CASES[name]
        rows += [(f"{title}, {label}", found[label], target, None) for label in variants]
    show("Training step, forward and backward, relative to plain torch.nn", rows)
    if options.json:
        options.json.write_text(json.dumps({row[0]: row[1] for row in rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

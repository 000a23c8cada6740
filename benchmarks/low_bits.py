"""Accuracy and noise of a small residual network at 8 and 4 bits, with the nearest weight codes and with the vendor's.

The network has the layout of MLPerf Tiny's image classifier (16, 32 and 64 channels). Noise is that of the logits
against the float network, as SQNR in dB.

python benchmarks/low_bits.py FOLDER [--images 60000] [--epochs 5] [--test 10000] [--qat 60000] [--json FILE]

FOLDER holds Fashion-MNIST or MNIST as four IDX files.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import chipfit
from chipfit.fit.data import mnist
from chipfit.fit.methods import sqnr

ROWS = [
    ("t40", 8, "vendor"),
    ("t40", 8, "nearest"),
    ("txx", 8, "vendor"),
    ("txx", 8, "nearest"),
    ("t40", 4, "vendor"),
    ("t40", 4, "nearest"),
    ("txx", 4, "vendor"),
    ("txx", 4, "nearest"),
]
"""Chip, bits (first and last layer: 8-bit weights), codes; on T40 of depthwise convolutions alone."""


class Block(nn.Module):
    """Two convolutions and a branch around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute (N, outputs, H / stride, W / stride)."""
        return F.relu(self.skip(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def resnet8() -> nn.Module:
    """The network, for (N, 1, 28, 28)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def train(net: nn.Module, data: TensorDataset, epochs: int, rate: float) -> nn.Module:
    """A plain loop: AdamW, one cycle, shifts by up to two pixels."""
    loader = DataLoader(data, 100, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * len(loader))
    net.train()
    for _ in range(epochs):
        for x, target in loader:
            down, right = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(net(torch.roll(x, (down, right), (2, 3))), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def logits(net: nn.Module, data: TensorDataset) -> Tensor:
    """Outputs for all images."""
    return torch.cat([net(x) for x, _ in DataLoader(data, 500)])


def share_right(found: Tensor, data: TensorDataset) -> float:
    """Accuracy in percent."""
    return 100 * (found.argmax(1) == data.tensors[1]).double().mean().item()


def figures(net: nn.Module, data: TensorDataset, clean: Tensor) -> dict[str, float]:
    """Accuracy in percent, and SQNR of the logits in dB."""
    found = logits(net, data)
    return {"accuracy": share_right(found, data), "sqnr": sqnr(clean, found)}


def measure(net: nn.Module, row: tuple[str, int, str], parts: dict[str, TensorDataset], qat: int) -> Any:
    """What becomes of the float network in one row of the table."""
    chip, bits, codes = row
    clean, example = logits(net, parts["test"]), parts["train"].tensors[0][:2]
    batches = parts["train"].tensors[0][:512].split(128)
    model = chipfit.convert(net, chip, example, bits=bits)
    chipfit.calibrate(model, batches, codes=codes)
    chipfit.set_mode(model, "quant")
    result = {"chip": chip, "bits": bits, "codes": codes, "ptq": figures(model, parts["test"], clean)}
    corrected = copy.deepcopy(model)
    chipfit.correct_bias(corrected, batches)
    result["corrected"] = figures(corrected, parts["test"], clean)
    if qat:
        epochs = max(1, round(qat / len(parts["qat"])))
        result["qat"] = figures(train(model, parts["qat"], epochs, 2e-3), parts["test"], clean)
    return result


def main() -> None:
    """Train the float network, and measure each row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=60_000, help="images of an epoch in float")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument("--qat", type=int, default=60_000, help="images of QAT in all; 0 for none")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    train_set, test_set = mnist(arguments.folder)

    def first(data: TensorDataset, count: int) -> TensorDataset:
        return TensorDataset(*(part[:count] for part in data.tensors))

    parts = {"train": first(train_set, arguments.images), "test": first(test_set, arguments.test)}
    parts["qat"] = first(train_set, min(30_000, arguments.images, arguments.qat or 1))
    net = train(resnet8(), parts["train"], arguments.epochs, 1e-2)
    clean = share_right(logits(net, parts["test"]), parts["test"])
    console = Console()
    console.print(f"float {clean:.2f} %")
    results = []
    for row in ROWS:
        results.append(measure(net, row, parts, arguments.qat))
        console.print(results[-1])
        if arguments.json:
            arguments.json.write_text(json.dumps({"float": clean, "rows": results}, indent=1))
    table = Table("chip", "bits", "codes", "PTQ", "bias corrected", "QAT", title=f"float {clean:.2f} %")
    for entry in results:
        cells = [entry[step] for step in ("ptq", "corrected", "qat") if step in entry]
        shown = [f"{cell['accuracy']:.2f} %, {cell['sqnr']:.1f} dB" for cell in cells]
        table.add_row(entry["chip"], str(entry["bits"]), entry["codes"], *shown)
    console.print(table)


if __name__ == "__main__":
    main()

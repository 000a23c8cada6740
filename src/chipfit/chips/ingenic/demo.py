"""The Ingenic T40 on real data: digits, float -> 8 bit -> 4 bit, each trained from the weights of the one before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from chipfit.chips import ingenic as ops
from chipfit.errors import InvalidValueError
from chipfit.files import save_model, write_json
from chipfit.fit.calibrate import fitting_of
from chipfit.fit.data import digits, shift_by_a_pixel
from chipfit.fit.figures import measure
from chipfit.fit.running import one_thread, progress_bar
from chipfit.folders import replacing_folder
from chipfit.vendor import vendor_of

TARGET = "T40"
WIDTHS = (32, 8, 4)
EPOCHS = (25, 10, 20)
PEAK_RATES = (4e-3, 2e-3, 2e-3)
BATCH = 64
MOST_LOST = {8: 1.0, 4: 3.0}
"""Points of accuracy that a width may lose against float."""


def _conv(inputs: int, outputs: int, stride: int, bits: int) -> ops.Conv2D:
    quantize = bits < 32
    return ops.Conv2D(
        inputs,
        outputs,
        stride=stride,
        activation_fn=None if quantize else ops.ReLU6(TARGET),
        enable_batch_norm=True,
        enable_bias=False,
        padding=1,
        quantize=quantize,
        weight_bitwidth=bits,
        input_bitwidth=bits,
        output_bitwidth=bits,
        clip_max_value=4.0 if bits == 4 else 6.0,
        target_device=TARGET,
    )


class DigitsNetwork(nn.Module):
    """The manual's example network (its last section) in small: the same operators, for images (N, 1, 8, 8).

    Args:
        bits: 32 for float, 8 or 4.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        q = bits < 32
        common: dict[str, Any] = {
            "quantize": q,
            "input_bitwidth": bits,
            "output_bitwidth": bits,
            "target_device": TARGET,
        }
        self.preprocess = ops.Preprocess(0, 1.0, target_device=TARGET)
        self.bn = ops.BatchNorm(1, None, q, True, 8, bits, target_device=TARGET)
        self.conv0 = _conv(1, 32, 1, bits)
        self.conv1 = _conv(32, 32, 1, bits)
        self.route = ops.Route(target_device=TARGET)
        self.conv2 = _conv(64, 32, 2, bits)
        self.unpool = ops.Unpool2D(2, 2, quantize=q, target_device=TARGET)
        self.conv3 = _conv(32, 64, 1, bits)
        self.maxpool = ops.Maxpool2D(target_device=TARGET)
        self.conv4 = _conv(64, 64, 1, bits)
        self.shortcut = ops.Shortcut(64, **common)
        self.bn1 = ops.BatchNorm(64, ops.PReLU(64, TARGET), q, False, bits, bits, target_device=TARGET)
        self.conv5 = _conv(64, 64, 2, bits)
        self.conv6 = _conv(64, 64, 2, bits)
        self.rnn = ops.LSTM(64, 32, bidirectional=True, use_squeeze=True, weight_bitwidth=bits, **common)
        self.flatten = ops.Flatten([-1, 64], target_device=TARGET)
        activation = None if q else ops.ReLU6(TARGET)
        clip = 3.0 if bits == 4 else 6.0
        self.fc1 = ops.FullConnected(
            64, 64, activation, enable_batch_norm=True, weight_bitwidth=bits, clip_max_value=clip, **common
        )
        self.fc2 = ops.FullConnected(
            64, 10, None, last_layer=True, quantize=q, weight_bitwidth=bits, input_bitwidth=bits, target_device=TARGET
        )

    def forward(self, image: Tensor) -> Tensor:
        """Ten logits an image."""
        first = self.conv0(self.bn(self.preprocess(image)))
        x = self.conv2(self.route([first, self.conv1(first)]))
        pooled = self.maxpool(self.conv3(self.unpool(x)))
        x = self.bn1(self.shortcut([pooled, self.conv4(pooled)]))
        sequence, _ = self.rnn(self.conv6(self.conv5(x)))
        logits: Tensor = self.fc2(self.fc1(self.flatten(sequence)))
        return logits


def train(
    net: nn.Module, loader: DataLoader[Any], epochs: int, rate: float, progress: Callable[[], None] = lambda: None
) -> None:
    """Train in place with AdamW and a one-cycle schedule, on images shifted by up to a pixel.

    Args:
        net: A classifier.
        loader: Batches `(image, label)`.
        epochs: Passes over the data.
        rate: Peak learning rate.
        progress: Called after each epoch.
    """
    net.train()
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * len(loader), pct_start=0.2)
    for _ in range(epochs):
        for image, label in loader:
            loss = F.cross_entropy(net(shift_by_a_pixel(image)), label)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch types no backward
            optimiser.step()
            schedule.step()
        progress()


@torch.no_grad()
def accuracy(net: nn.Module, loader: DataLoader[Any]) -> float:
    """Share of right answers in evaluation, in percent."""
    net.eval()
    right = total = 0
    for image, label in loader:
        right += int((net(image).argmax(1) == label).sum())
        total += len(label)
    return 100.0 * right / total


def run(
    out_dir: Path,
    seed: int = 0,
    epochs: tuple[int, int, int] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train float, 8 bit and 4 bit, print the table, save the three networks and the figures.

    Args:
        out_dir: Output folder: float.safetensors, 8bit.safetensors, 4bit.safetensors, figures.json.
        seed: Seed of the split, the initial weights and the training.
        epochs: Epochs of the three stages; None for the recipe's own.
        console: Where to print.

    Returns:
        The figures, as saved: accuracy on the test split in percent, and seconds.

    Raises:
        InvalidValueError: Not three positive epochs.
    """
    plan = epochs or EPOCHS
    if len(plan) != len(WIDTHS) or min(plan) < 1:
        raise InvalidValueError("three stages need epochs", given=plan, allowed="three ints >= 1", where="epochs")
    console = console or Console()
    started = time.perf_counter()
    torch.manual_seed(seed)
    train_set, test_set = digits(seed)
    loader = DataLoader(train_set, BATCH, shuffle=True, drop_last=True)
    test_loader = DataLoader(test_set, 1000)
    console.print(
        f"[bold]digits[/]: {len(train_set):,} training and {len(test_set):,} test images, {TARGET}, seed {seed}"
    )
    scores: dict[int, float] = {}
    trained: dict[str, DigitsNetwork] = {}
    sqnr: dict[int, float] = {}
    state: dict[str, Tensor] | None = None
    with progress_bar(console) as bar, one_thread():
        task = bar.add_task("", total=sum(plan))
        for bits, count, rate in zip(WIDTHS, plan, PEAK_RATES, strict=True):
            bar.update(task, description=f"train {_name(bits)}")
            net = DigitsNetwork(bits)
            if state is not None:
                net.load_state_dict(state)
            train(net, loader, count, rate, progress=lambda: bar.advance(task))
            scores[bits] = accuracy(net, test_loader)
            if bits < 32:
                sqnr[bits] = measure(net, fitting_of(vendor_of(net)), [test_set[:256]])[0]
            state = net.state_dict()
            trained[_name(bits)] = net
    figures = {
        "chip": TARGET.lower(),
        "data": "digits",
        "seed": seed,
        "epochs": list(plan),
        "seconds": round(time.perf_counter() - started, 1),
        "accuracy": {_name(bits): round(score, 2) for bits, score in scores.items()},
        "sqnr_db": {_name(bits): round(ratio, 1) for bits, ratio in sqnr.items()},
    }
    with replacing_folder(out_dir) as temporary:
        for name, net in trained.items():
            save_model(temporary / f"{name}.safetensors", net)
        write_json(temporary / "figures.json", figures)
    console.print(_table(scores, sqnr))
    console.print(f"{figures['seconds']:.0f} s; three networks and figures.json in {out_dir}")
    return figures


def _name(bits: int) -> str:
    return "float" if bits == 32 else f"{bits}bit"


def _table(scores: dict[int, float], sqnr: dict[int, float]) -> Table:
    table = Table(title="Accuracy on the test images, in %")
    for heading in ("trained as", "accuracy", "lost to float", "may lose", "output SQNR dB"):
        table.add_column(heading, justify="left" if heading == "trained as" else "right")
    for bits, score in scores.items():
        lost, most = scores[32] - score, MOST_LOST.get(bits)
        note = "" if most is None else f"{most:.0f} {'[green]✓' if lost <= most else '[red]✗'}"
        ratio = f"{sqnr[bits]:.1f}" if bits in sqnr else ""
        table.add_row(_name(bits), f"{score:.2f}", "" if bits == 32 else f"{lost:.2f}", note, ratio)
    return table

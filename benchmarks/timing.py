"""How everything here is timed: process CPU time, one thread, variants shuffled within rounds, medians of ratios.

A ratio is taken within a round, so that a machine that changes its speed changes both sides of it. Quote ratios only.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from rich.table import Table

Step = Callable[[], None]


def ratios(steps: Mapping[str, Step], floor: str, rounds: int = 60, warmup: int = 3, seed: int = 0) -> dict[str, float]:
    """Median over rounds of each step's time relative to the floor's time in the same round."""
    torch.set_num_threads(1)
    order, rng = list(steps), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-warmup, rounds):
        rng.shuffle(order)
        for name in order:
            start = time.process_time()
            steps[name]()
            if turn >= 0:
                times[name].append(time.process_time() - start)
    return {name: statistics.median(a / b for a, b in zip(times[name], times[floor], strict=True)) for name in steps}


def training_step(
    layer: Callable[..., torch.Tensor], parameters: list[torch.nn.Parameter], *inputs: torch.Tensor
) -> Step:
    """One forward and backward, gradients to the inputs included."""
    upstream = torch.randn_like(layer(*inputs).detach())

    def step() -> None:
        for tensor in (*parameters, *inputs):
            tensor.grad = None
        layer(*inputs).backward(upstream)

    return step


def show(title: str, rows: list[tuple[str, float, float | None, float | None]]) -> None:
    """Print name, measured ratio, the ratio to reach, and the vendor's."""
    table = Table(title=title)
    for heading in ("variant", "ratio", "to reach", "vendor"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, ratio, target, vendor in rows:
        mark = "" if target is None else " [green]✓" if ratio <= target else " [red]✗"
        table.add_row(name, f"{ratio:.2f}{mark}", *("" if v is None else f"{v:.2f}" for v in (target, vendor)))
    Console().print(table)

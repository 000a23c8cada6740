"""What both demos need while they run: a progress bar, and one thread for small layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bar(console: Console) -> Progress:
    """A bar with what is being done, how far it is, and the time it took."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=40),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
    )


@contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Compute on one thread inside the block.

    Layers on images of 8 x 8 gain nothing from threads, and on a busy machine lose tenfold by waiting for each other.

    Args:
        wanted: Whether to do so; False changes nothing.
    """
    before = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

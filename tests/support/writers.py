"""Everything that chipfit writes, for tests that hinder it: each writer leaves one of two states, by a seed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

import chipfit
from chipfit.chips.ingenic.demo import run as ingenic_demo
from chipfit.chips.witmem.demo import run as witmem_demo
from chipfit.export import export, export_witin_mapper
from chipfit.files import save_model
from chipfit.program import Program, lower, save_program
from support.ingenic import networks

X = torch.rand(100, 16, generator=torch.Generator().manual_seed(0))


@functools.cache
def _network(seed: int) -> tuple[nn.Module, Program]:
    """A small converted, calibrated network and its program; different weights for different seeds."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = chipfit.convert(net, "wtm2101", X[:4])
        chipfit.calibrate(model, [X])
        chipfit.chain_scales(model, X[:4])
        chipfit.set_mode(model, "quant", rounding="wtm2101")
        return model, lower(model, X[:4])


@functools.cache
def _magik_network(seed: int) -> tuple[nn.Module, Program, torch.Tensor]:
    torch.manual_seed(seed)
    pixels = networks.pixels(8, 3, 6, 6)
    net = networks.trained(networks.InRow("T40", 4), pixels)
    return net, lower(net, pixels[:2]), pixels[:2]


def _calibrated(folder: Path, seed: int) -> None:
    model, _ = _network(seed)
    chipfit.calibrate(model, [X])
    save_model(folder / "net.safetensors", model)


def _formats(*names: str) -> Callable[[Path, int], None]:
    def write(folder: Path, seed: int) -> None:
        export(_network(seed)[1], folder, names, samples=X)

    return write


def _magik(folder: Path, seed: int) -> None:
    net, program, pixels = _magik_network(seed)
    export(program, folder, ["magik"], model=net, samples=pixels)


def _mapper(folder: Path, seed: int) -> None:
    export_witin_mapper(_network(seed)[1], X, folder / "net.onnx")


def _demo(folder: Path, seed: int) -> None:
    witmem_demo(folder, seed=seed, epochs=(1, 1, 1), chips=1, console=Console(quiet=True))


def _other_demo(folder: Path, seed: int) -> None:
    ingenic_demo(folder, seed=seed, epochs=(1, 1, 1), console=Console(quiet=True))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "save_program": lambda folder, seed: save_program(folder, _network(seed)[1]),
    "calibrate, save_model": _calibrated,
    "export: onnx, golden, witin_mapper, mapping": _formats("onnx", "golden", "witin_mapper", "mapping"),
    "export_witin_mapper": _mapper,
    "export: magik": _magik,
}
"""Each writes one of two states into a folder, whole."""


def large(folder: Path, seed: int) -> None:
    """A program with 4 MiB of weights, which takes several times that to write."""
    program = _network(seed)[1]
    save_program(folder, replace(program, tensors={**program.tensors, "large": torch.full((1 << 22,), seed)}))


DEMOS: dict[str, Callable[[Path, int], None]] = {"demo, wtm2101": _demo, "demo, t40": _other_demo}
"""Their figures hold the seconds that they took, so only their sums are compared."""

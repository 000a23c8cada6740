"""Damaged files by the hundred for every reader: only errors of ours, no hang, no memory, nothing wrong accepted.

    python -m support.fuzzing --inputs 10000 --json out/fuzz.json

counts them per reader. An input is accepted where the reader raises nothing; where the sums were not computed anew, it
then has to compute what the undamaged file does.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import chipfit
from chipfit.cli import main
from chipfit.errors import ChipfitError, FileFormatError
from chipfit.export import (
    check_magik,
    check_mapper,
    export_golden,
    export_magik,
    export_witin_mapper,
    read_magik,
    verify_golden,
)
from chipfit.files import load_model, save_model
from chipfit.fit.data import mnist
from chipfit.program import FastProgram, Program, certify, load_program, lower, run, save_program
from support.damage import resummed
from support.ingenic import networks
from support.mutating import mutated_bytes, mutated_json, mutated_onnx
from support.programs import two_layers
from witin_nn import HandleNegInType, WitinConv2d, WitinGELU, WitinGru, WitinLayerConfig, WitinLinear

SLOWEST, MOST = 5.0, 512.0
"""Seconds that an input may take, and MiB by which the process may grow over all of them."""
Mutation = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Reader:
    """What reads files, and how to damage what it reads.

    Args:
        make: Writes the undamaged files.
        damage: Damages a copy of them.
        read: Reads; gives what was computed from them, or None where nothing is comparable.
        same: Whether what is accepted must compute what the undamaged files do.
    """

    make: Callable[[Path], Any]
    damage: Mutation
    read: Callable[[Path], Any]
    same: bool = True


@dataclass
class Counts:
    """What became of the inputs of one reader."""

    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    raw: int = 0
    slow: int = 0
    wrong: int = 0
    slowest: float = 0.0
    grown_mib: float = 0.0
    examples: dict[str, int] = field(default_factory=dict)


class TooSlow(BaseException):
    """An input took more than `SLOWEST` seconds."""


def fuzz(reader: Reader, inputs: int, seed: int = 0) -> Counts:
    """Feed damaged files to a reader.

    Args:
        reader: The reader.
        inputs: How many.
        seed: Of the damage.
    """
    counts, places = Counts(inputs), Counter[str]()
    with tempfile.TemporaryDirectory() as room, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, copy = Path(room) / "whole", Path(room) / "copy"
        whole.mkdir()
        reader.make(whole)
        wanted = reader.read(whole)
        before = _peak()
        for number in range(inputs):
            rng = random.Random(f"{seed}/{number}")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            reader.damage(copy, rng)
            started = time.perf_counter()
            try:
                with _limited():
                    found = reader.read(copy)
            except ChipfitError:
                counts.refused += 1
            except TooSlow:
                counts.slow += 1
            except Exception as error:
                counts.raw += 1
                last = traceback.extract_tb(error.__traceback__)[-1]
                places[f"input {number}: {type(error).__name__} at {Path(last.filename).name}:{last.lineno}"] += 1
            else:
                counts.accepted += 1
                if reader.same and not equal(found, wanted):
                    counts.wrong += 1
                    places[f"input {number}: accepted, computes otherwise"] += 1
            counts.slowest = max(counts.slowest, time.perf_counter() - started)
        counts.grown_mib = _peak() - before
    counts.examples = dict(places.most_common(8))
    return counts


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SLOWEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def equal(one: Any, other: Any) -> bool:
    """Whether two results are equal, bit for bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def one_file(mutate: Callable[[bytes, random.Random], bytes], *names: str, sums: bool = False) -> Mutation:
    """Damage one of the named files; with `sums`, compute the folder's anew."""

    def damage(folder: Path, rng: random.Random) -> None:
        path = folder / rng.choice(names)
        path.write_bytes(mutate(path.read_bytes(), rng))
        if sums:
            resummed(folder)

    return damage


def one_of(*mutations: Mutation) -> Mutation:
    """One kind of damage out of several."""
    return lambda folder, rng: rng.choice(mutations)(folder, rng)


# --- what is read


class Net(nn.Module):
    """Every nested part of the program format: two passes, a table, a GRU, a split."""

    def __init__(self) -> None:
        super().__init__()
        scales: dict[str, Any] = {"use_auto_scale": False, "scale_x": 32, "scale_weight": 64, "scale_y": 16}

        def config(**options: Any) -> WitinLayerConfig:
            return WitinLayerConfig(1, use_quantization=True, **scales, **options)

        self.conv = WitinConv2d(1, 2, 3, padding=1, layer_config=config(handle_neg_in=HandleNegInType.PN))
        self.gelu = WitinGELU(layer_config=config())
        self.gru = WitinGru(8, 3, batch_first=True, layer_config=config())
        self.head = WitinLinear(3, 2, layer_config=config(x_quant_bits=12))

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.gelu(self.conv(x)).flatten(2).transpose(1, 2).reshape(x.shape[0], 4, 8))
        return self.head(y[:, -1])


INPUT = torch.linspace(-2, 2, 32).view(2, 1, 4, 4)


def _program() -> Program:
    torch.manual_seed(0)
    return lower(Net(), INPUT[:1])


def _run(folder: Path) -> Any:
    program = load_program(folder)
    found = run(program, INPUT)
    certify(program)
    return found, FastProgram(program)(INPUT)


def _idx(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("train", "t10k"):
        images = struct.pack(">4B3I", 0, 0, 8, 3, 5, 6, 6) + rng.integers(0, 256, 180, dtype=np.uint8).tobytes()
        labels = struct.pack(">4BI", 0, 0, 8, 1, 5) + bytes(range(5))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, mtime=0))


def _state(folder: Path) -> Any:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    load_model(folder / "net.safetensors", net)
    return list(net.state_dict().values())


def _save_state(folder: Path) -> None:
    torch.manual_seed(0)
    save_model(folder / "net.safetensors", nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))


def _golden(folder: Path) -> None:
    save_program(folder / "program", _program())
    export_golden(_program(), INPUT, folder / "golden")


def _mapper(folder: Path) -> None:
    export_witin_mapper(two_layers(), torch.rand(100, 6) * 15, folder / "net.onnx")


def _magik(folder: Path) -> None:
    torch.manual_seed(0)
    net = networks.trained(networks.InRow("T40", 4), networks.pixels(8, 3, 6, 6))
    export_magik(net, networks.pixels(2, 3, 6, 6), folder / "net.onnx")


def _read_magik(folder: Path) -> Any:
    check_magik(folder / "net.onnx")
    read_magik(folder / "net.onnx")
    return None


def _yaml(folder: Path) -> None:
    save_program(folder / "program", _program())
    text = f"certify:\n  program: {folder / 'program'}\n"
    (folder / "given.yaml").write_text(text, encoding="utf-8")


def _command(folder: Path) -> Any:
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            status = main(["--config", str(folder / "given.yaml"), "certify"])
        except SystemExit as stopped:  # how the parser of the command line ends
            status = int(stopped.code or 0)
    if status == 2 and silent.getvalue().strip():
        raise FileFormatError("refused, and said so")
    assert status == 0, status
    return None


def _verified(folder: Path) -> Any:
    verify_golden(folder / "golden")
    return verify_golden(folder / "golden", load_program(folder / "program"))


_GRAPH, _TENSORS, _SUMS = "program.json", "tensors.safetensors", "SHA256SUMS"
_MANIFEST = "golden/manifest.json"
_VECTORS = ("golden/e000_conv_input.npy", "golden/e001_conv.h", "golden/outputs_output.npy", "golden/inputs_x.npy")


def _golden_sums(mutation: Mutation) -> Mutation:
    def damage(folder: Path, rng: random.Random) -> None:
        mutation(folder, rng)
        resummed(folder / "golden")

    return damage


READERS: dict[str, Reader] = {
    "IDX files": Reader(
        _idx,
        one_file(mutated_bytes, "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"),
        lambda folder: mnist(folder) and None,
        same=False,
    ),
    "load_model": Reader(_save_state, one_file(mutated_bytes, "net.safetensors"), _state),
    "load_program": Reader(
        lambda folder: save_program(folder, _program()),
        one_of(one_file(mutated_bytes, _GRAPH, _TENSORS, _SUMS), one_file(mutated_json, _GRAPH)),
        _run,
    ),
    "load_program, run, certify; sums anew": Reader(
        lambda folder: save_program(folder, _program()),
        one_of(
            one_file(mutated_json, _GRAPH, sums=True),
            one_file(mutated_json, _GRAPH, sums=True),
            one_file(mutated_bytes, _GRAPH, _TENSORS, sums=True),
        ),
        _run,
        same=False,
    ),
    "verify_golden": Reader(
        _golden,
        one_of(one_file(mutated_bytes, _MANIFEST, "golden/SHA256SUMS", *_VECTORS), one_file(mutated_json, _MANIFEST)),
        _verified,
    ),
    "verify_golden; sums anew": Reader(
        _golden,
        _golden_sums(one_of(one_file(mutated_bytes, _MANIFEST, *_VECTORS), one_file(mutated_json, _MANIFEST))),
        _verified,
    ),
    "check_mapper; sums anew": Reader(
        _mapper,
        one_of(
            one_file(mutated_bytes, "net.onnx", "net.txt", "net.npy", sums=True),
            one_file(mutated_onnx, "net.onnx", sums=True),
        ),
        lambda folder: check_mapper(folder / "net.onnx") and None,
        same=False,
    ),
    "check_magik, read_magik": Reader(
        _magik,
        one_of(one_file(mutated_bytes, "net.onnx"), one_file(mutated_onnx, "net.onnx")),
        _read_magik,
        same=False,
    ),
    "YAML of the command line": Reader(_yaml, one_file(mutated_bytes, "given.yaml"), _command, same=False),
}


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--reader", choices=READERS)
    given = parser.parse_args()
    found = {}
    print("| reader | inputs | refused | accepted | raw | above 5 s | accepted, wrong | slowest s | grown MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in [given.reader] if given.reader else READERS:
        c = found[name] = fuzz(READERS[name], given.inputs, given.seed)
        cells = (
            name,
            c.inputs,
            c.refused,
            c.accepted,
            c.raw,
            c.slow,
            c.wrong,
            f"{c.slowest:.2f}",
            f"{c.grown_mib:.0f}",
        )
        print("|", " | ".join(map(str, cells)), "|", flush=True)
        for place, count in c.examples.items():
            print(f"  {count} x {place}", file=sys.stderr)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({name: asdict(c) for name, c in found.items()}, indent=2), encoding="utf-8")
    return int(any(c.raw or c.slow or c.wrong or c.grown_mib > MOST for c in found.values()))


if __name__ == "__main__":
    assert chipfit.chip  # the vendors are found before anything is timed
    sys.exit(_main())

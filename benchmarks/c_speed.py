"""The exported C of two networks of MLPerf Tiny's size against onnxruntime on their exported ONNX, one thread, batch 1.

    python benchmarks/c_speed.py [--rounds 9] [--chips wtm2101,t40] [--json FILE]

Both run in the same rounds, interleaved; what counts is the ratio of medians. Weights are random: they do not change
the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.engines.c import SOURCES
from chipfit.export.c.folder import files_of
from chipfit.export.c.writer import build, example_inputs
from chipfit.export.onnx.writer import onnx_model
from chipfit.files import write_text

_REPEATS = 40
_TIMER = """
#include <stdio.h>
#include <time.h>
#include "net.h"
static union { int64_t aligned; unsigned char bytes[NET_ARENA]; } arena;
int main(void)
{
    net_t net;
    int i;
    struct timespec a, b;
    if (net_init(&net, arena.bytes, sizeof arena.bytes)) return 1;
    for (i = 0; i < 3; ++i) net_run(&net);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
    for (i = 0; i < REPEATS; ++i) net_run(&net);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
    printf("%.3f\\n", ((double)(b.tv_sec - a.tv_sec) * 1e6 + (double)(b.tv_nsec - a.tv_nsec) / 1e3) / REPEATS);
    return 0;
}
"""


class ResNet8(nn.Module):
    """Three residual blocks of 16, 32 and 64 channels on 32x32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.first, self.second, self.ways, self.relus = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        before = 16
        for channels, stride in ((16, 1), (32, 2), (64, 2)):
            self.first.append(
                nn.Sequential(nn.Conv2d(before, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU())
            )
            self.second.append(nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels)))
            self.ways.append(nn.Conv2d(before, channels, 1, stride) if stride == 2 else nn.Identity())
            self.relus.append(nn.ReLU())
            before = channels
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        x = self.stem(x)
        for first, second, way, relu in zip(self.first, self.second, self.ways, self.relus, strict=True):
            x = relu(second(first(x)) + way(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DsCnn(nn.Module):
    """A depthwise-separable network of 64 channels for 49x10 features."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1)), nn.BatchNorm2d(64), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.BatchNorm2d(64), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.ReLU()]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        return self.head(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


SHAPES: dict[type[nn.Module], tuple[int, ...]] = {ResNet8: (3, 32, 32), DsCnn: (1, 49, 10)}


def program_of(kind: type[nn.Module], chip: str) -> chipfit.Program:
    """A network on a chip, calibrated on random images."""
    torch.manual_seed(0)
    x = (torch.rand(8, *SHAPES[kind]) * 255).round() / 255
    net = chipfit.convert(kind().eval(), chip, x)
    chipfit.calibrate(net, [x])
    return chipfit.lower(chipfit.set_mode(net, "quant"), x)


def compiled(program: chipfit.Program, folder: Path, weights: str, flags: list[str], cc: str = "gcc") -> Path:
    """The timer, compiled with a program's C."""
    made = build(program, weights=weights)
    for name, text in files_of(made, example_inputs(program, 1)).items():
        write_text(folder / name, text)
    write_text(folder / "timer.c", _TIMER)
    executable = folder / "timer"
    sources = [str(folder / name) for name in SOURCES[:2]]
    command = [cc, *flags, f"-DREPEATS={_REPEATS}", str(folder / "timer.c"), *sources, "-o", str(executable)]
    subprocess.run(command, check=True)
    return executable


def session_of(program: chipfit.Program) -> tuple[onnxruntime.InferenceSession, dict[str, np.ndarray]]:
    """Onnxruntime on the exported model, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_model(program).SerializeToString(), options)
    drawn = example_inputs(program, 1)
    return session, {entry.name: x.numpy() for entry, x in zip(program.inputs, drawn, strict=True)}


def ort_time(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> float:
    """Microseconds of a run."""
    for _ in range(3):
        session.run(None, feeds)
    begin = time.process_time()
    for _ in range(_REPEATS):
        session.run(None, feeds)
    return (time.process_time() - begin) * 1e6 / _REPEATS


BUILDS = {
    "-O3": ("int8", ["-std=c99", "-O3"]),
    "-O3 int16": ("int16", ["-std=c99", "-O3"]),
    "-O3 native": ("int8", ["-std=c99", "-O3", "-march=native"]),
    "-O3 native int16": ("int16", ["-std=c99", "-O3", "-march=native"]),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--chips", default="wtm2101,t40")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for chip in given.chips.split(","):
        for kind in SHAPES:
            program = program_of(kind, chip)
            session, feeds = session_of(program)
            with tempfile.TemporaryDirectory() as temporary:
                runs = {}
                for i, (name, (weights, flags)) in enumerate(BUILDS.items()):
                    folder = Path(temporary) / str(i)
                    runs[name] = compiled(program, folder, weights, [*flags, "-D_POSIX_C_SOURCE=199309L"])
                times: dict[str, list[float]] = {"onnxruntime": [], **{name: [] for name in runs}}
                for _ in range(given.rounds):
                    times["onnxruntime"].append(ort_time(session, feeds))
                    for name, path in runs.items():
                        times[name].append(float(subprocess.run([path], capture_output=True, check=True).stdout))
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, value in medians.items():
                ratio = medians["onnxruntime"] / value
                rows.append({"chip": chip, "network": kind.__name__, "build": name, "us": value, "ratio": ratio})
                print(f"{chip:8} {kind.__name__:8} {name:18} {value:9.1f} us  {ratio:5.2f}", flush=True)
    if given.json:
        write_text(given.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

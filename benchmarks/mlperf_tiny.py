"""The five reference networks of MLPerf Tiny, by PTQ at 8 bits, on two chips: SQNR, warnings, differing codes.

    python benchmarks/mlperf_tiny.py --weights DIR --json out/mlperf_tiny.json

DIR holds ad, ic01, kws, sww and vww as safetensors, `<index>.<kind>.<what>` in order of execution. Without it nothing
is measured. Inputs are random, in the range of the network's own; of sww the clips in `sww_clips.npz` where they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.mlperf_tiny import NETWORKS, inputs_of, network_of
from support.random_upwards import upwards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("../shared/data/mlperf_tiny"))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--chips", default="wtm2101,t40")
    parser.add_argument("--rounds", type=int, help="as of the other benchmarks; means nothing here")
    given = parser.parse_args()
    figures: list[dict[str, Any]] = []
    if not given.weights.is_dir():
        print(f"no folder {given.weights}: give --weights")
    for name in NETWORKS if given.weights.is_dir() else ():
        torch.manual_seed(0)
        net, data = network_of(name, given.weights), inputs_of(name, given.weights)
        for chip in given.chips.split(","):
            try:
                row = upwards(net, chip, data, correct=chip != "wtm2101", proven=True)
            except Exception as error:  # a network that stops is a row of the table
                print(f"{name:5} {chip:8} {type(error).__name__}: {error}")
                continue
            if row is None:
                print(f"{name:5} {chip:8} not converted")
                continue
            codes = f", {row.codes:,} codes {'all equal' if row.equal else 'NOT equal'}"
            print(f"{name:5} {chip:8} {row.sqnr_db:6.1f} dB, fake_quantize {row.yardstick_db:5.1f} dB{codes}")
            for line in row.warnings:
                print(f"      {line}")
            figures.append({"network": name, "chip": chip, **vars(row)})
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

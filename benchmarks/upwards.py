"""Random plain networks upwards: float equality, SQNR after PTQ and warnings, beside torch.fake_quantize at 8 bits.

    python benchmarks/upwards.py --networks 300 --json out/upwards.json

Prints a row a chip, and exits with 1 where a network is below 20 dB (or not equal in float) and nothing said so.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.random_upwards import ENOUGH_DB, RandomNetwork, Upwards, upwards


def rows_of(chip: str, seeds: range) -> tuple[list[Upwards], int]:
    """Results of the networks that the chip takes, and the number of those that it refuses."""
    rows, refused = [], 0
    for seed in seeds:
        net = RandomNetwork(seed, recurrent=chip == "wtm2101")
        row = upwards(net, chip, net.data, seed)
        refused += row is None
        rows += [] if row is None else [row]
    return rows, refused


def line(chip: str, rows: list[Upwards], refused: int) -> str:
    """A row of the table in docs/calibration.md."""

    def quantiles(values: list[float]) -> str:
        v = torch.tensor(values).clamp(-99, 99)
        return f"{v.median():.1f} | {v.quantile(0.05):.1f}"

    low, warned = [row for row in rows if not row.sqnr_db >= ENOUGH_DB], [row for row in rows if row.warnings]
    ours, theirs = quantiles([r.sqnr_db for r in rows]), quantiles([r.yardstick_db for r in rows])
    share, silent = f"{len(warned) / len(rows):.1%}", sum(r.silent for r in rows)
    worst = max(row.off for row in rows)
    return f"| {chip} | {len(rows)} ({refused}) | {worst:.0e} | {ours} | {len(low)} | {share} | {silent} | {theirs} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=300)
    parser.add_argument("--chips", default="wtm2101,t40,txx")
    parser.add_argument("--rounds", type=int, help="as of the other benchmarks; means nothing here")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| chip | networks (refused) | float off | median | 5 % | below 20 dB | warned | silent | fake: median | 5 % |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    figures, silent = {}, 0
    for chip in given.chips.split(","):
        rows, refused = rows_of(chip, range(given.first, given.first + given.networks))
        print(line(chip, rows, refused), flush=True)
        silent += sum(row.silent for row in rows)
        figures[chip] = [asdict(row) for row in rows]
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    sys.exit(silent > 0)


if __name__ == "__main__":
    main()

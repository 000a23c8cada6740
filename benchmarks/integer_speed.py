"""Speed of the integer program's fast path relative to the float network in evaluation, on a 28x28 CNN.

    python benchmarks/integer_speed.py [--rounds 20] [--batch 128] [--json FILE]

Same batch, one thread. A ratio of 2 is half the float network's speed, which is what the fast path must keep.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import torch
from timing import Step, ratios, show
from torch import nn

from chipfit.chips.modes import set_mode
from chipfit.integer import FastProgram, lower, run
from chipfit.recipe.calibration import calibrate
from chipfit.recipe.witmem_demo import cnn


def plain(net: nn.Module) -> nn.Module:
    """The same network of torch's own layers."""
    layers: list[nn.Module] = []
    for layer in net.children():
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding))
        elif isinstance(layer, nn.Linear):
            layers.append(nn.Linear(layer.in_features, layer.out_features))
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    x = torch.rand(args.batch, 1, 28, 28)
    net = cnn(28)
    calibrate(net, [(x, torch.zeros(len(x)))])
    set_mode(net, "quant")
    programs = {rule: lower(net, x[:1], rounding=rule) for rule in ("witin_nn", "wtm2101")}
    for program in programs.values():
        if not torch.equal(FastProgram(program)(x[:8]), run(program, x[:8])):
            raise SystemExit("the fast path and the reference differ")
    reference = plain(net)
    with torch.inference_mode():
        steps: dict[str, Step] = {"float network": lambda: reference(x)}
        for rule, program in programs.items():
            steps[f"fast path, {rule}"] = functools.partial(FastProgram(program), x)
        figures = ratios(steps, "float network", args.rounds)
        slow = ratios(
            {"float": lambda: reference(x[:8]), "int64": lambda: run(programs["wtm2101"], x[:8])}, "float", 5, warmup=1
        )
    rows = [(name, ratio, 2.0 if "fast" in name else None, None) for name, ratio in figures.items()]
    show(
        f"28x28 CNN, batch {args.batch}, evaluation: time relative to float",
        [*rows, ("reference", slow["int64"], None, None)],
    )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

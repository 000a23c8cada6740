"""Training time of the Witmem array layers relative to the plain torch.nn layer, and of the fake-quantisation kernel.

    python benchmarks/witmem_layers.py [--rounds 60] [--json FILE]

The vendor's figures were measured with its closed library on the same kind of machine (scales 32, 64, 8).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from timing import Step, ratios, show, training_step
from torch import Tensor, nn

from chipfit.arithmetic.fake_quant import fake_quantise
from chipfit.arithmetic.grid import Grid
from witin_nn import HandleNegInType, WitinConv2d, WitinLayerConfig, WitinLinear

VARIANTS = {
    "QAT, unsigned, fixed scales": {},
    "QAT, PN, auto-scale": {"handle_neg_in": HandleNegInType.PN, "use_auto_scale": True},
    "NAT level 4": {"noise_level": 4},
    "NAT level 4, PN": {"noise_level": 4, "handle_neg_in": HandleNegInType.PN},
}
LAYERS = {
    "Linear 128x512 -> 512": ((1.42, 2.1, 2.1, 3.1), (2.4, 4.3, 4.5, 9.6)),
    "Conv2d 16x64x32x32, 64 -> 64, 3x3": ((1.3, 1.8, 1.4, 2.0), (2.0, 3.5, 2.2, 4.3)),
}


def build(name: str, config: WitinLayerConfig | None) -> tuple[nn.Module, Tensor]:
    """The layer, plain without a configuration, and an input."""
    if name.startswith("Linear"):
        plain = nn.Linear(512, 512)
        layer = plain if config is None else WitinLinear(512, 512, layer_config=config)
        return layer, torch.randn(128, 512)
    plain = nn.Conv2d(64, 64, 3, padding=1)
    layer = plain if config is None else WitinConv2d(64, 64, 3, padding=1, layer_config=config)
    return layer, torch.randn(16, 64, 32, 32)


def layer_ratios(name: str, rounds: int) -> dict[str, float]:
    """Ratio of each variant to the plain layer."""
    steps: dict[str, Step] = {}
    for variant, options in {"float": None, **VARIANTS}.items():
        config = None
        if options is not None:
            options = {"use_auto_scale": False, **options}
            config = WitinLayerConfig(
                G_algo=1, use_quantization=True, scale_x=32, scale_weight=64, scale_y=8, **options
            )
        layer, x = build(name, config)
        steps[variant] = training_step(layer, list(layer.parameters()), x.requires_grad_())
    return ratios(steps, "float", rounds)


def kernel_ratios(rounds: int) -> dict[str, float]:
    """8-bit fake quantisation of 4 MiB, forward and backward, relative to ReLU."""
    x = torch.randn(1 << 20).requires_grad_()
    grid = Grid(bits=8, signed=True, scale=32.0)

    def naive(v: Tensor) -> Tensor:
        scaled = torch.clamp(v * grid.scale, grid.lo, grid.hi)
        return (scaled + (torch.round(scaled) - scaled).detach()) / grid.scale

    candidates = {
        "ReLU": torch.relu,
        "chipfit": lambda v: fake_quantise(v, grid),
        "torch.fake_quantize": lambda v: torch.fake_quantize_per_tensor_affine(v, 1 / grid.scale, 0, grid.lo, grid.hi),
        "naive straight-through": naive,
    }
    return ratios({name: training_step(f, [], x) for name, f in candidates.items()}, "ReLU", rounds)


def main() -> None:
    """Measure, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    figures = {"8-bit fake quantisation / ReLU": kernel_ratios(args.rounds)}
    rows = [(name, r, 1.55 if name == "chipfit" else None, None) for name, r in next(iter(figures.values())).items()]
    show("8-bit fake quantisation, 4 MiB, forward + backward, relative to ReLU", rows)
    for name, (targets, vendor) in LAYERS.items():
        figures[name] = layer_ratios(name, args.rounds if name.startswith("Linear") else max(args.rounds // 3, 5))
        limits = [(None, None), *zip(targets, vendor, strict=True)]
        show(
            f"{name}: forward + backward relative to torch.nn",
            [(v, r, *limit) for (v, r), limit in zip(figures[name].items(), limits, strict=True)],
        )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

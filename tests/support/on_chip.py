"""Ordinary networks put on a chip and lowered."""

from __future__ import annotations

import torch

import chipfit
from chipfit.program import Program, lower
from support.networks import EXAMPLES, lively


def on_chip(kind: type[torch.nn.Module], chip: str) -> Program:
    """A network of `support.networks` with random weights, as a program for a chip."""
    torch.manual_seed(0)
    x = (torch.rand(4, *EXAMPLES[kind]) * 255).round() / 255
    net = chipfit.convert(lively(kind()), chip, x)
    chipfit.calibrate(net, [x])
    return lower(chipfit.set_mode(net, "quant"), x)

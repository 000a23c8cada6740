"""What quantising a plain network costs, through the verbs that a user calls."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import chipfit
from chipfit.errors import ChipfitWarning

CHIPS = ["wtm2101", "t40", "txx"]


def sqnr(y: Tensor, q: Tensor) -> float:
    """Signal to quantisation-noise ratio in dB."""
    noise = (y - q).double().square().sum().item()
    return 10 * math.log10(y.double().square().sum().item() / noise) if noise else math.inf


def quantised(net: nn.Module, target: str, example: Any, data: Any = None, **options: Any) -> nn.Module:
    """A network converted with an example, calibrated with data (None: the example), and in mode 'quant'."""
    converted = chipfit.convert(net.eval(), target, example, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChipfitWarning)
        chipfit.calibrate(converted, [example if data is None else data])
    return chipfit.set_mode(converted, "quant").eval()


def quality(net: nn.Module, target: str, x: Tensor, data: Tensor | None = None, **options: Any) -> float:
    """SQNR at the output of a network converted with `x`, calibrated and measured with `data`; codes equal."""
    converted = quantised(net, target, x, data, **options)
    seen = x if data is None else data
    proof = chipfit.verify(converted, chipfit.lower(converted, seen[:1]), [seen])
    assert proof.equal, proof
    with torch.no_grad():
        return sqnr(net(seen), converted(seen))

"""Lowering of Witmem networks by the contract: the rules of all layers, and what to do about what has none."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipfit.chips.witmem.gru.layers import WitinGru, WitinGruCell
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.program.lowering import array, digital, gru
from chipfit.program.lowering.rules import Lowering
from chipfit.vendor import Option

LAYERS: dict[type[Any], Any] = {**array.LAYERS, **digital.LAYERS, **gru.LAYERS}
"""Rules by class of layer."""

_DIGITAL = "Use {}, which rounds the result to a grid of the digital unit."
ADVICE = {
    **dict.fromkeys(("add", "iadd", "sub", "isub"), _DIGITAL.format("WitinElementAdd")),
    **dict.fromkeys(("mul", "imul", "truediv"), _DIGITAL.format("WitinElementMul or WitinElementDivide")),
    **dict.fromkeys(("matmul", "bmm"), _DIGITAL.format("WitinMatMul")),
    **dict.fromkeys(("sigmoid", "Sigmoid"), _DIGITAL.format("WitinSigmoid")),
    **dict.fromkeys(("tanh", "Tanh"), _DIGITAL.format("WitinTanh")),
    **dict.fromkeys(("gelu", "GELU"), _DIGITAL.format("WitinGELU")),
    **dict.fromkeys(("PReLU", "LeakyReLU", "leaky_relu"), _DIGITAL.format("WitinPReLU")),
    **dict.fromkeys(("sqrt", "rsqrt"), _DIGITAL.format("WitinSqrt or WitinInvSqrt")),
    "BatchNorm2d": "Fold it into the convolution before it, or use WitinBatchNorm2d.",
    "mean": "Use WitinMean, which rounds it.",
}
"""What to do about a call that has no rule, by its name."""

ROUNDING = Option(
    "wtm2101",
    ("wtm2101", "witin_nn", None),
    "rule of the array's output: the silicon's, that which the vendor's library trains, or None for each layer's own",
    "rounding rule",
)


def _uncalibrated(network: nn.Module) -> list[str]:
    return [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, WitinLayer)
        and layer.use_auto_scale
        and layer.observers
        and all(
            not observer.frozen and not observer.cnt_train and observer.io_max.item() == observer.max_default
            for observer in layer.observers.values()
        )
    ]


LOWERING = Lowering(LAYERS, advice=ADVICE, starts_at_zeros=(WitinGru, WitinGruCell), uncalibrated=_uncalibrated)

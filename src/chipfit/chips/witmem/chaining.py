"""Chained scales: on the array a layer's output codes are the next layer's input codes, so both have one scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from chipfit.chips.witmem.layer import WitinLayer
from chipfit.errors import UnsupportedError
from chipfit.modes import chip_layers, kept_modes, set_mode
from chipfit.program import lower
from chipfit.program.ops import Rescale


def chain_scales(model: nn.Module, example: Any) -> dict[str, tuple[float, float]]:
    """Give every layer the input scale that the layer before it puts out.

    Calibration chooses each scale by itself. The WTM2101's compiler knows no scales at all: what one operation puts out
    the next takes in, code for code. Chain the scales after `calibrate` and before the training that is to survive it.

    Args:
        model: Calibrated network of Witmem layers; changed in place, the chained scales frozen.
        example: Input of the network, batch first, as for `chipfit.lower`.

    Returns:
        Scale before and after, by the name of each layer that changed.

    Raises:
        UnsupportedError: the network cannot be lowered, or a layer reads tensors of different scales, or has no single
            input whose scale could follow.

    Source:
        spec/wtm2101-silicon.md, section 3.
    """
    with kept_modes(model):
        program = lower(set_mode(model, "quant"), example, rounding=None)
    layers = chip_layers(model)
    wanted: dict[str, float] = {}
    for node in program.nodes:
        name = node.name.rpartition(".input")[0].partition("@")[0]
        if not isinstance(node.op, Rescale):
            continue
        layer, scale = layers.get(name), program.type(node.inputs[0]).scale
        if not isinstance(layer, WitinLayer) or "x" not in layer.observers or wanted.get(name, scale) != scale:
            raise UnsupportedError(
                "no single input whose scale could follow the layer before it", given=node.name, where="chain_scales"
            )
        wanted[name] = scale
    changed: dict[str, tuple[float, float]] = {}
    for name, scale in wanted.items():
        layer = layers[name]
        observer = layer.observers["x"]  # type: ignore[attr-defined]  # a WitinLayer, as checked above
        if observer.scale != scale:
            changed[name] = (observer.scale, scale)
            with torch.no_grad():
                observer.io_max.fill_(math.ldexp(1.0, observer.q_bit_in - 1) / scale)
        layer.freeze_scales()
    return changed

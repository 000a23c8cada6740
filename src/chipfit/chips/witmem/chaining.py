"""Chained scales: on the array a layer's output codes are the next layer's input codes, so both have one scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chipfit.chips.witmem.autoscale import AutoScale
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.program.ops import Array, Gru, Quantise
from chipfit.chips.witmem.wtm2101 import LOG2_G
from chipfit.errors import UnsupportedError
from chipfit.modes import chip_layers, kept_modes, set_mode
from chipfit.program.core.ops import Rescale
from chipfit.program.lowering.engine import lower
from chipfit.program.reference import trace
from chipfit.program.types import Node, Program, owner_of

INT8_HIGHEST = 127
_CHAINED = 1 - 2.0**-24
"""A scale that was set here follows from an `io_max` this little below its range, by which it is known again."""

Scales = dict[tuple[str, str], float]
"""Scale by layer and tensor."""


def chain_scales(model: nn.Module, example: Any) -> dict[str, tuple[float, float]]:
    """Give every layer the input scale that the layer before it puts out, and scales that the array can work with.

    Calibration chooses each scale by itself. The WTM2101's compiler knows no scales at all: what one operation puts out
    the next takes in, code for code. Chain the scales after `calibrate` and before the training that is to survive it.
    What follows from a chained scale is set with it:

    - a G below 256 becomes 256 by a coarser output, a G above 8192 becomes 8192 by coarser weights;
    - the hidden half of a GRU gets no finer scale than the input's half, since the chip shifts only the hidden one;
    - a network's input that is negative somewhere in the example, and that a layer takes by PN, gets codes of int8;
      layers that share an input get the coarsest of their scales.

    Args:
        model: Calibrated network of Witmem layers; changed in place, all its scales frozen.
        example: Input of the network, batch first, as for `chipfit.lower`.

    Returns:
        Scale before and after, of each that changed: a layer's input by the layer's name, any other by the layer's name
        and the tensor's ('fc.y', 'gru.x_l0', 'gru.y_hidden_l0').

    Raises:
        UnsupportedError: the network cannot be lowered, or a layer reads tensors of different scales, or has no single
            input whose scale could follow.

    Source:
        spec/wtm2101-silicon.md, section 3.

    Example:
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> config = dict(use_quantization=True, use_auto_scale=False, scale_weight=64)
        >>> first = WitinLinear(2, 3, layer_config=WitinLayerConfig(1, scale_x=64, scale_y=16, **config))
        >>> second = WitinLinear(3, 1, layer_config=WitinLayerConfig(1, scale_x=32, scale_y=4, **config))
        >>> chain_scales(nn.Sequential(first, nn.ReLU(), second), torch.zeros(1, 2))
        {'2': (32.0, 16.0)}
    """
    layers = {name: layer for name, layer in chip_layers(model).items() if isinstance(layer, WitinLayer)}
    before: Scales = {}
    while wanted := _wanted(_lowered(model, example), layers, example):
        for (name, tensor), scale in wanted.items():
            before.setdefault((name, tensor), _scale(layers[name], tensor))
            _set(layers[name].observers[tensor], scale)
    for layer in layers.values():
        _freeze(layer)
    changed = {(name, tensor): (old, layers[name].observers[tensor].scale) for (name, tensor), old in before.items()}
    return {name if tensor == "x" else f"{name}.{tensor}": scales for (name, tensor), scales in changed.items()}


def _lowered(model: nn.Module, example: Any) -> Program:
    with kept_modes(model):
        return lower(set_mode(model, "quant"), example, rounding=None)


def _scale(layer: WitinLayer, tensor: str) -> float:
    """The scale of a tensor in evaluation, which is what lowering takes."""
    observer = layer.observers[tensor]
    return observer.get_scales() if layer.use_auto_scale else float(observer.scale)


def _set(observer: AutoScale, scale: float) -> None:
    """Put a scale in force, and the `io_max` from which it follows: the range of the grid, or `_CHAINED` of it."""
    with torch.no_grad():
        observer.io_max.fill_(math.ldexp(1.0, observer.q_bit_in - 1) / scale * _CHAINED)
    observer.scale, observer.settled = scale, False


def _is_set(observer: AutoScale) -> bool:
    """Whether the scale is of `_set`, so that `io_max` says nothing about data."""
    return float(observer.io_max) * observer.get_scales() == math.ldexp(1.0, observer.q_bit_in - 1) * _CHAINED


def _freeze(layer: WitinLayer) -> None:
    """Keep a layer's scales, those too that were configured and not observed."""
    if not layer.use_auto_scale:
        for observer in layer.observers.values():
            if not _is_set(observer) or observer.get_scales() != observer.scale:
                _set(observer, float(observer.scale))
    layer.freeze_scales()


def _wanted(program: Program, layers: dict[str, WitinLayer], example: Any) -> Scales:
    """The scales that must become others, each with what it must become; none where the network is chained.

    The input scales come first, then those of outputs, then those of weights: what comes later follows from what comes
    earlier, and is looked at when that is right.
    """
    found = _inputs(program, layers)
    if found:
        return found
    found, weights = _network_inputs(program, layers, example), Scales()
    for half in _halves(program, layers):
        layer, g = layers[half.layer], half.op.log2_g
        y = _scale(layer, half.y)
        if half.coarsest is not None and y > _scale(layer, half.coarsest):
            found[half.layer, half.y] = _scale(layer, half.coarsest)
        elif g < LOG2_G[0]:
            found[half.layer, half.y] = math.ldexp(y, g - LOG2_G[0])
        elif g > LOG2_G[1]:
            weights[half.layer, half.weight] = math.ldexp(_scale(layer, half.weight), LOG2_G[1] - g)
    return found or weights


def _inputs(program: Program, layers: dict[str, WitinLayer]) -> Scales:
    """What a layer's input must become where it is not what arrives."""
    found: Scales = {}
    for node in program.nodes:
        if not isinstance(node.op, Rescale) or not node.op.shift:
            continue
        key, scale = _input_of(node, layers), program.type(node.inputs[0]).scale
        if key is None or found.get(key, scale) != scale:
            raise UnsupportedError(
                "no single input whose scale could follow the layer before it", given=node.name, where="chain_scales"
            )
        found[key] = scale
    return found


def _input_of(node: Node, layers: dict[str, WitinLayer]) -> tuple[str, str] | None:
    """Layer and tensor whose grid a node brings codes to; None where that is no input of an operation on its own."""
    owner = owner_of(node, layers)
    part = node.name.partition("@")[0].removeprefix(f"{owner}.")
    if not owner or not part.endswith(("input", ".x")):
        return None
    tensor = "x" if part == "input" else f"x{_suffix(part.removesuffix('.x'))}"
    return (owner, tensor) if tensor in layers[owner].observers else None


def _suffix(cell: str) -> str:
    """The suffix of a GRU cell's tensors, from the name of its node behind the layer's."""
    return "" if cell == "cell" else f"_{cell}"


def _network_inputs(program: Program, layers: dict[str, WitinLayer], example: Any) -> Scales:
    """Scales at which numbers become codes: int8 where they have a sign and are taken by PN, and one for all readers.

    An `io_max` of exactly 128 codes passes: calibration rounds ranges up to such numbers.
    """
    codes = trace(program, *(example if isinstance(example, tuple) else (example,)))
    wanted: dict[str, Scales] = {}
    for node in program.nodes:
        key = _input_of(node, layers)
        if not isinstance(node.op, Quantise) or key is None:
            continue
        scale = node.op.scale
        if node.op.lo == -node.op.hi and codes[node.name].min() < 0:
            observer = layers[key[0]].observers[key[1]]
            largest = int(codes[node.name].abs().max()) / scale
            seen = 0.0 if _is_set(observer) else float(observer.io_max)
            while round(largest * scale) > INT8_HIGHEST or seen * scale > INT8_HIGHEST + 1:
                scale /= 2
        wanted.setdefault(node.inputs[0], {})[key] = scale
    shared = {key: min(scales.values()) for scales in wanted.values() for key in scales}
    return {key: scale for key, scale in shared.items() if _scale(layers[key[0]], key[1]) != scale}


@dataclass(frozen=True)
class _Half:
    """One array operation, with the tensors of its layer whose scales make its G."""

    op: Array
    layer: str
    y: str
    weight: str
    coarsest: str | None = None


def _halves(program: Program, layers: dict[str, WitinLayer]) -> Iterator[_Half]:
    for node in program.nodes:
        owner = owner_of(node, layers)
        if isinstance(node.op, Array):
            yield _Half(node.op, owner, "y", "weight")
        elif isinstance(node.op, Gru):
            end = _suffix(node.name.partition("@")[0].removeprefix(f"{owner}."))
            yield _Half(node.op.input, owner, f"y{end}", f"weight{end}")
            yield _Half(node.op.hidden, owner, f"y_hidden{end}", f"weight_hidden{end}", f"y{end}")

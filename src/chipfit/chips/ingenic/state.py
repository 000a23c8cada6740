"""Clips and factors in the state of converted networks, so that a state_dict is all that a result needs.

The vendor's kit has them as arguments of the layers, and its checkpoints do not: the layers of the drop-in package keep
to that. Of a converted network every quantising layer writes `<layer>.scales.<name>` beside its parameters, float64
numbers, and takes them back. A weight that is held for the nearest codes has two more: `nearest`, and, where its peaks
clip something, `excess`, a tensor of the weight's shape; without rounding the weight counts with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.calibration.float_view import (
    clip_of,
    quantised_layers,
    quantiser_of,
    set_clip,
    weight_quantiser,
)
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature
from chipfit.chips.ingenic.operators.fixed_norm import give_norm, norm_name
from chipfit.chips.ingenic.operators.layer import WeightedLayer
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.errors import ChipfitWarning

_SCALES = "scales."
_EXCESS = "excess"


def keep_scales(network: nn.Module) -> None:
    """Have the layers of a converted network write their clips and factors into its state_dict.

    Args:
        network: The network; its layers are changed.

    Example:
        >>> from chipfit.chips.ingenic import FullConnected
        >>> options = dict(quantize=True, weight_bitwidth=8, output_bitwidth=8, target_device="T40")
        >>> net = nn.Sequential(FullConnected(32, 32, clip_max_value=3.0, **options))
        >>> keep_scales(net)
        >>> net.state_dict()["0.scales.clip"]
        tensor(3., dtype=torch.float64)
    """
    for module in network.modules():
        if isinstance(module, Operator) and (_has_clip(module) or weight_quantiser(module) is not None):
            module.converted = True
            module.register_state_dict_post_hook(_write)  # type: ignore[no-untyped-call]  # torch types no hooks
            module.register_load_state_dict_pre_hook(_read)  # type: ignore[no-untyped-call]  # as above


def _has_clip(layer: nn.Module) -> bool:
    own = quantised_layers(layer)
    return type(layer).__name__ in own and not isinstance(quantiser_of(layer).clip_max_value, Tensor)


def _numbers(layer: Any) -> Iterator[tuple[str, float]]:
    """The numbers that belong into the state, by name."""
    if _has_clip(layer):
        yield "clip", clip_of(layer)
    if isinstance(getattr(layer, "QuantizeFeature", None), QuantizeFeature):
        yield "calibrated", float(layer.QuantizeFeature.calibrated)
    quantiser = weight_quantiser(layer)
    if quantiser is not None:
        yield "factor", quantiser.factor
        yield "absorbed", float(quantiser.absorbed)
        if quantiser.nearest:
            yield "nearest", 1.0


def _write(layer: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, number in _numbers(layer):
        state[f"{prefix}{_SCALES}{name}"] = torch.tensor(number, dtype=torch.float64)
    quantiser = weight_quantiser(layer)
    if quantiser is not None and quantiser.nearest and quantiser.excess is not None:
        # A copy: layers may share a quantiser, and safetensors takes no tensors that share memory.
        state[f"{prefix}{_SCALES}{_EXCESS}"] = quantiser.excess.detach().clone()


def _read(
    layer: Any,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    start = prefix + _SCALES
    excess: Tensor | None = state.pop(start + _EXCESS, None)
    found = {key.removeprefix(start): float(state.pop(key)) for key in list(state) if key.startswith(start)}
    if not found:
        warnings.warn(
            f"{prefix.rstrip('.')}: the state has no clips and factors, so those of the network stay; calibrate it",
            ChipfitWarning,
            stacklevel=2,
        )
    if "clip" in found:
        set_clip(layer, found["clip"])
    if "calibrated" in found and isinstance(getattr(layer, "QuantizeFeature", None), QuantizeFeature):
        layer.QuantizeFeature.calibrated = bool(found["calibrated"])
    quantiser = weight_quantiser(layer)
    if quantiser is not None and "factor" in found:
        quantiser.factor, quantiser.absorbed = found["factor"], bool(found.get("absorbed"))
        quantiser.nearest = bool(found.get("nearest"))
        quantiser.excess = excess.detach().clone() if quantiser.nearest and excess is not None else None
        if hasattr(layer, "weight_factor"):
            layer.weight_factor = quantiser.factor
    if isinstance(layer, WeightedLayer) and f"{prefix}{norm_name(layer)}.batch_norm.weight" in state:
        give_norm(layer)

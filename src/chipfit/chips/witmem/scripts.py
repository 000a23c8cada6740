"""What the vendor's two utility scripts write: G per layer as JSON, and the network with its integers as parameters.

Both work on a torch network of Witmem array layers, whose `io_max` and `layer_config.index` they read, and on nothing
else: they know no graph. For the whole network as the chip runs it, lower it and export the program.

Source: spec/witmem-array.md, section 10.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from chipfit.chips.witmem.array.layers import ArrayLayer
from chipfit.chips.witmem.array.numbers import BIAS_UNIT
from chipfit.chips.witmem.gru.base import GruLayer
from chipfit.chips.witmem.mapper.rules import G_RANGE, is_allowed_g
from chipfit.copying import copied
from chipfit.errors import ChipfitWarning, InvalidValueError, UnsupportedError
from chipfit.files import save_model, write_json
from chipfit.modes import chip_layers


def g_values(model: nn.Module) -> dict[str, int]:
    """G of each array layer: what the chip divides the accumulator by.

    The scales are those that follow from `io_max` at each tensor's own width (the vendor's script assumes 9, 8 and 8
    bits), or the configured ones where a layer has no auto-scale.

    Args:
        model: Network with Witmem array layers.

    Returns:
        `int(scale_x * scale_weight / scale_y)` by `layer_config.index`, as text, in network order.

    Raises:
        InvalidValueError: a G below 1, or two layers of one configuration and hence one index.
        UnsupportedError: a GRU layer, which has two G and no place for them here; or no array layer at all.

    Example:
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> config = WitinLayerConfig(1, scale_x=64, scale_weight=256, scale_y=16, use_auto_scale=False)
        >>> layer = WitinLinear(4, 2, layer_config=config)
        >>> g_values(layer) == {str(config.index): 1024}
        True
    """
    values: dict[str, int] = {}
    for layer in _array_layers(model).values():
        scales = _scales(layer)
        g = scales["x"] * scales["weight"] / scales["y"]
        if g < 1:
            raise InvalidValueError(
                "G = scale_x * scale_weight / scale_y is below 1",
                given=g,
                allowed="256 to 8192 on the chip",
                where=layer.where,
                hint="Lower scale_y, or raise scale_x or scale_weight.",
            )
        key = str(layer.index)
        if key in values:
            raise InvalidValueError(
                "two layers share one layer_config, hence one index, and the file has one place for both",
                given=layer.index,
                where=layer.where,
                hint="Give each layer a WitinLayerConfig of its own.",
            )
        values[key] = int(g)
        _warn_outside_chip(layer, g)
    return values


def write_g_values(model: nn.Module, path: str | Path) -> Path:
    """Write `g_values` as a JSON object.

    Returns:
        The file written.
    """
    path = Path(path)
    write_json(path, g_values(model))
    return path


def fixed_point_model(model: nn.Module) -> nn.Module:
    """A copy of the network whose array layers hold integer codes: weights int8, biases multiples of 128.

        weight = clip(round(w * s_w), -128, 127)
        bias   = clip(round(b * s_w * s_x / 128), -128 * N, 127 * N) * 128          N = bias_row_N

    Halves go to the even code. Shift's constant contribution is not part of these biases, as in the vendor's script;
    the integer program has it.

    Args:
        model: Network with Witmem array layers; left as it is.

    Returns:
        The copy. Its parameters are float tensors that hold integers, for saving; it is not meant to be run.

    Raises:
        UnsupportedError: a GRU layer, or no array layer at all.

    Example:
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> config = WitinLayerConfig(1, scale_x=16, scale_weight=64, use_auto_scale=False)
        >>> layer = WitinLinear(1, 1, layer_config=config)
        >>> _ = layer.load_state_dict({"weight": torch.tensor([[0.51]]), "bias": torch.tensor([0.3])}, strict=False)
        >>> fixed = fixed_point_model(layer)
        >>> fixed.weight.item(), fixed.bias.item(), 0.3 * 16 * 64
        (33.0, 256.0, 307.2)
    """
    _array_layers(model)
    fixed = copied(model)
    with torch.no_grad():
        for layer in _array_layers(fixed).values():
            scales = _scales(layer)
            rows = layer.layer_config.bias_row_N
            weight = torch.round(layer.weight * scales["weight"])
            bias = torch.round(layer.bias * scales["weight"] * scales["x"] / BIAS_UNIT)
            layer.weight.copy_(torch.clamp(weight, -128, 127))
            layer.bias.copy_(torch.clamp(bias, -BIAS_UNIT * rows, (BIAS_UNIT - 1) * rows) * BIAS_UNIT)
    return fixed


def save_fixed_point(model: nn.Module, path: str | Path) -> Path:
    """Save `fixed_point_model` as safetensors (tensors only; the vendor's script pickles the whole network).

    Returns:
        The file written.
    """
    path = Path(path)
    save_model(path, fixed_point_model(model))
    return path


def _array_layers(model: nn.Module) -> dict[str, ArrayLayer]:
    layers = chip_layers(model)
    recurrent = [name for name, layer in layers.items() if isinstance(layer, GruLayer)]
    if recurrent:
        raise UnsupportedError(
            "a GRU has two array operations, and the vendor's scripts have no place for them",
            given=", ".join(recurrent),
            hint="Lower the network and export the program instead.",
        )
    found = {name: layer for name, layer in layers.items() if isinstance(layer, ArrayLayer)}
    if not found:
        raise UnsupportedError("the network has no array layer", given=type(model).__name__)
    return found


def _scales(layer: ArrayLayer) -> dict[str, float]:
    """Scales of 'x', 'weight' and 'y' as an evaluation of the quantised network uses them."""
    if not layer.use_auto_scale:
        return layer.scales_in_force()
    return {name: observer.scale_from_io_max(layer.where) for name, observer in layer.observers.items()}


def _warn_outside_chip(layer: ArrayLayer, g: float) -> None:
    if not is_allowed_g(g):
        warnings.warn(
            f"{layer.where}: G is {g:g}; the WTM2101 divides by powers of two from {G_RANGE[0]} to {G_RANGE[1]}",
            ChipfitWarning,
            stacklevel=3,
        )

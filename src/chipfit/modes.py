"""Modes are a state of the network: float, quant, nat (quant with analog noise)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from chipfit.hardware import ChipLayer
from chipfit.vendor import options_of, vendor_of, without_layers


def chip_layers(model: nn.Module) -> dict[str, ChipLayer]:
    """All chip layers of a network by their qualified names, which the layers learn on the way.

    Args:
        model: Any module.

    Raises:
        UnsupportedError: the network has none.
    """
    layers = {name or type(model).__name__: module for name, module in model.named_modules()}
    found = {name: module for name, module in layers.items() if isinstance(module, ChipLayer)}
    if not found:
        raise without_layers(model)
    for name, layer in found.items():
        layer.layer_name = name
    return found


def set_mode(model: nn.Module, mode: str, level: float | None = None, **options: Any) -> nn.Module:
    """Choose what all chip layers of a network compute from now on.

    Args:
        model: Network with chip layers; changed in place.
        mode: 'float' (plain torch), 'quant' (the chip's arithmetic) or 'nat' (the chip's arithmetic with analog noise;
            a digital chip has none, there it equals 'quant').
        level: Noise level for 'nat', above 0 up to 9; None keeps the one in force.
        **options: The chip's own, for instance `rounding` on an analog array; None keeps what is in force.

    Returns:
        The same network.

    Raises:
        UnknownOptionError: no such mode or option.
        InvalidValueError: the level is outside its range.
        UnsupportedError: the network has no chip layers.

    Example:
        >>> from witin_nn import LayerConfigFactory, WitinLinear
        >>> net = nn.Sequential(WitinLinear(4, 2, layer_config=LayerConfigFactory.get_default_config()))
        >>> set_mode(net, "nat", level=4)[0].mode
        'nat'
    """
    layers = chip_layers(model)
    own = options_of(vendor_of(model), "set_mode", options)
    for layer in layers.values():
        layer.set_mode(mode, level, **own)
    return model


def freeze_scales(model: nn.Module, frozen: bool = True) -> nn.Module:
    """Keep the scales of a network through training, or let `train()` find them anew as the vendor's library does.

    Args:
        model: Network with chip layers; changed in place.
        frozen: Whether to keep them.

    Returns:
        The same network.
    """
    for layer in chip_layers(model).values():
        layer.freeze_scales(frozen)
    return model


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Restore every layer's mode, noise level and training flag on leaving."""
    layers = chip_layers(model)
    modes = {name: (layer.mode, getattr(layer, "noise_level", None)) for name, layer in layers.items()}
    training = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for name, (mode, level) in modes.items():
            layers[name].set_mode(mode, level)
        for module, flag in training:
            module.training = flag

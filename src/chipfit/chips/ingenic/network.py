"""The target of a whole network, and which of its operators were built for another."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from chipfit.chips.ingenic.devices import DEVICES, Device
from chipfit.chips.ingenic.operators.elementwise import Mul, Shortcut
from chipfit.chips.ingenic.operators.movement import Flatten, Preprocess, Route
from chipfit.chips.ingenic.operators.pooling import AdaptiveAvgpool2D, Avgpool2D, Maxpool2D, Unpool2D
from chipfit.errors import ChipfitWarning, UnsupportedError

_WEIGHTLESS = (Preprocess, Flatten, Route, Shortcut, Mul, Maxpool2D, Avgpool2D, AdaptiveAvgpool2D, Unpool2D)
_DEFAULT = "Txx"
"""What `target_device` of these is where nobody says it."""


def network_target(layers: Mapping[str, nn.Module], where: str) -> Device | None:
    """The target that a network is for.

    Operators without weights that were left at their default target take that of the others, but on T02, which has few
    of them.

    Args:
        layers: Its Ingenic operators, by name.
        where: Who asks, for the error.

    Returns:
        The target; None where no operator has one.

    Raises:
        UnsupportedError: several targets.

    Example:
        >>> from chipfit.chips.ingenic import Conv2D
        >>> network_target({"route": Route(), "conv": Conv2D(32, 32, target_device="T40")}, "lower").name
        'T40'
    """
    chosen, left = set[str](), set[str]()
    for layer in layers.values():
        name = _target_of(layer)
        if name is not None:
            (left if isinstance(layer, _WEIGHTLESS) and name == _DEFAULT else chosen).add(name)
    names = chosen | left if "T02" in chosen or not chosen else chosen
    if len(names) > 1:
        raise UnsupportedError(
            "layers of several targets",
            given=sorted(names),
            allowed="one target",
            where=where,
            hint="Give every operator the same target_device.",
        )
    return DEVICES[names.pop()] if names else None


def _target_of(layer: nn.Module) -> str | None:
    found = getattr(layer, "device", getattr(layer, "target_device", None))
    name = found.name if isinstance(found, Device) else found
    return name if name in DEVICES else None


def computes_otherwise(layer: nn.Module, inputs: Any, target: Device) -> bool:
    """Whether an operator that was left at its default target computes other codes than the network's target does.

    Args:
        layer: The operator.
        inputs: What it is given: a feature, or a list of features, as the vendor's tuples.
        target: The network's target.

    Example:
        >>> feature = (None, 8, -1.0)
        >>> computes_otherwise(Maxpool2D(), feature, DEVICES["T40"])
        False
        >>> computes_otherwise(Maxpool2D(3, 3, 2, padding=1), feature, DEVICES["T40"])  # its border is 0, not -1
        True
    """
    own = getattr(layer, "device", None)
    if not isinstance(layer, _WEIGHTLESS) or not isinstance(own, Device) or own.has_zero == target.has_zero:
        return False
    if isinstance(layer, Shortcut):
        return layer.quantizes_output
    if isinstance(layer, Maxpool2D):
        return layer.same and _signed(inputs)
    if isinstance(layer, Unpool2D):
        return layer.fill == "zero" and layer.quantize and _signed(inputs)
    if isinstance(layer, (Mul, Avgpool2D, AdaptiveAvgpool2D)):
        return layer.quantize and _signed(inputs)
    return False


def _signed(inputs: Any) -> bool:
    if not isinstance(inputs, (tuple, list)):
        return False
    if len(inputs) >= 3 and isinstance(inputs[-1], (int, float)):
        return inputs[-1] < 0
    return any(map(_signed, inputs))


def warn_of_strangers(names: Iterable[str], target: Device, then: str, stacklevel: int = 2) -> None:
    """Say which operators compute other codes than the network's target.

    Args:
        names: Their names.
        target: The network's target.
        then: What follows from it.
        stacklevel: Of the warning.

    Warns:
        ChipfitWarning: There are some.
    """
    found = list(dict.fromkeys(names))
    if found:
        warnings.warn(
            f"{', '.join(found)}: left at the default target {_DEFAULT}, whose arithmetic is not that of "
            f"{target.name}; {then}. Give target_device={target.name!r}, and train with it",
            ChipfitWarning,
            stacklevel=stacklevel + 1,
        )

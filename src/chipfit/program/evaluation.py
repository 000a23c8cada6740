"""The network as `lower` and `verify` look at it: a copy, in evaluation and without noise."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from chipfit.copying import copied, inside
from chipfit.vendor import Vendor


def in_evaluation(model: nn.Module, vendor: Vendor) -> nn.Module:
    """A copy of a network, in evaluation and without noise; layers in mode 'float' stay in it.

    Args:
        model: The network; it stays as it is. A single layer becomes a network of one, named by its class.
        vendor: Whose layers it has.

    Returns:
        The copy, whose layers know their names.
    """
    root = copied(inside(model))
    if vendor.owns(root):
        root = nn.Sequential(OrderedDict({type(root).__name__: root}))
    for module in root.modules():
        module.training = False
    layer: Any
    for name, layer in vendor.layers_of(root).items():
        if hasattr(layer, "layer_name"):
            layer.layer_name = name
        if getattr(layer, "mode", "") == "nat":
            layer.set_mode("quant")
    return root

"""A batch norm inside a converted layer that only divides: it takes back what calibration multiplied the weight by."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from chipfit.chips.ingenic.operators.blocks import batchNorm2d


class FixedNorm1d(nn.BatchNorm1d):
    """A batch norm that computes in training what it computes in evaluation."""

    def train(self, mode: bool = True) -> FixedNorm1d:
        """Stay in evaluation."""
        super().train(False)
        return self


class FixedNorm2d(nn.BatchNorm2d):
    """A batch norm that computes in training what it computes in evaluation."""

    def train(self, mode: bool = True) -> FixedNorm2d:
        """Stay in evaluation."""
        super().train(False)
        return self


def norm_name(layer: nn.Module) -> str:
    """The attribute in which a layer with weights has its batch norm, or None."""
    return "BatchNorm1d" if hasattr(layer, "Linear") else "BatchNorm2d"


@torch.no_grad()
def give_norm(layer: Any) -> batchNorm2d:
    """The batch norm of a layer with weights; a layer without gets one that changes nothing yet.

    Args:
        layer: A layer of class `Conv2D`, `DepthwiseConv2D` or `FullConnected`.

    Example:
        >>> from chipfit.chips.ingenic import FullConnected
        >>> fc = FullConnected(32, 4, None, quantize=True, last_layer=True, weight_bitwidth=8, target_device="T40")
        >>> x = torch.rand(2, 32)
        >>> before = fc(x)
        >>> _ = give_norm(fc)
        >>> torch.equal(fc(x), before)
        True
    """
    name = norm_name(layer)
    given: batchNorm2d | None = getattr(layer, name)
    if given is not None:
        return given
    flat = name == "BatchNorm1d"
    weight = layer.Linear.weight if flat else layer.Conv2d.weight
    made = batchNorm2d(len(weight), 1 if flat else 2, layer.quantize, layer.operator)
    fixed: Any = (FixedNorm1d if flat else FixedNorm2d)(len(weight)).eval()
    fixed.running_var.fill_(1.0 - made.eps)
    fixed.requires_grad_(False)
    made.batch_norm = fixed.to(weight)
    setattr(layer, name, made.train(layer.training))
    layer.enable_batch_norm = True
    return made

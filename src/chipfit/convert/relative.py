"""How far two results are apart, relative to their own size: an absolute measure would pass anything small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

TOLERANCE = 1e-4
"""Largest difference between the two networks, as a share of the largest magnitude of the user's."""


def difference(reference: Tensor, given: Tensor) -> float:
    """The largest difference of two tensors as a share of the largest magnitude of the first.

    Values that are not finite have to be the same ones.

    Args:
        reference: What should have come, any shape.
        given: What came, of the same shape.

    Returns:
        0 for equal tensors; infinite where one of the two is not finite and the other is.

    Example:
        >>> difference(torch.tensor([1e-6, -2e-6]), torch.tensor([1e-6, -1e-6]))
        0.5
    """
    a, b = reference.detach().double(), given.detach().double().to(reference.device)
    gap = torch.where((a == b) | (a.isnan() & b.isnan()), torch.zeros_like(a), (a - b).abs())
    gap = gap.nan_to_num(nan=torch.inf, posinf=torch.inf)
    if not gap.numel() or not bool(gap.any()):
        return 0.0
    size = largest(a)
    return gap.max().item() / size if size else float("inf")


def largest(values: Tensor) -> float:
    """The largest finite magnitude."""
    finite = values.detach().abs().nan_to_num(0.0, 0.0, 0.0)
    return finite.max().item() if finite.numel() else 0.0


def tensors_in(results: Any) -> list[Tensor]:
    """The tensors in what a network or a layer gave, in order."""
    found: list[Any] = []
    fx.node.map_aggregate(results, found.append)
    return [x for x in found if isinstance(x, Tensor)]

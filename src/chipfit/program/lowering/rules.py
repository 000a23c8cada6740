"""What a vendor says about lowering its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Lowering:
    """From a vendor's layers to operations.

    Args:
        layers: Rule by class of layer, of torch's own modules too; a subclass takes its nearest base's.
        refused: Classes that cannot be lowered, with the reason.
    """

    layers: Mapping[type[nn.Module], Callable[..., Any]]
    refused: Mapping[type[nn.Module], str] = field(default_factory=dict)

"""What a vendor says about fitting its networks to data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Fitting:
    """How a vendor's networks are fitted to data.

    Args:
        calibrate: Sets all scales from data; see `chipfit.calibrate`.
        float_view: Lets a calibrated network compute in float, in evaluation, for a while.
        compared: The layers whose output can be compared, by name.
    """

    calibrate: Callable[..., Any]
    float_view: Callable[[nn.Module], AbstractContextManager[None]]
    compared: Callable[[nn.Module], dict[str, nn.Module]]

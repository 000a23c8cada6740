"""The vendor's noise models, as far as they are known (spec/witmem-array.md, section 6)."""

from __future__ import annotations

import math
import warnings

from chipfit.chips.witmem.config.enums import NoiseModel
from chipfit.errors import ChipfitWarning, UnpublishedError
from chipfit.noise.effects import BIAS_DRIVE, AffineLaw, CellNoise, ColumnNoise

NORMAL = CellNoise(AffineLaw(floor=0.3145, slope=0.015605))
"""Gaussian noise on each weight cell, measured to five digits."""

_MBS_FLOOR_PER_LEVEL = 350 / 4  # at 8 bias rows and zero input
_MBS_KNOTS, _MBS_STDS = (0.0, 64.0, 127.0), (0.2 / 4, 2.8 / 4, 4.8 / 4)


def noise_in_force(
    model: NoiseModel, level: float, bias_rows: int, where: str
) -> tuple[CellNoise | ColumnNoise | None, float]:
    """Effect of a noise model at a level.

    Args:
        model: The vendor's model.
        level: Noise level; at 0 there is no effect.
        bias_rows: Number of bias rows, which carry noise of their own.
        where: Layer, for error and warning.

    Returns:
        The effect, and the deviation per level of an offset that all outputs of a forward share.

    Raises:
        UnpublishedError: the model is ARRMDL.

    Example:
        >>> noise_in_force(NoiseModel.NORMAL, 4, 8, "fc1")[0] is NORMAL
        True
    """
    if not level:
        return None, 0.0
    if model is NoiseModel.NORMAL:
        return NORMAL, 0.0
    if model is NoiseModel.ARRMDL:
        raise UnpublishedError(
            "noise model ARRMDL was never published by the vendor; its own library fails on it too",
            given=model,
            allowed="NoiseModel.NORMAL (measured), MBS and SIMPLE (approximate)",
            where=where,
        )
    warnings.warn(
        f"noise model {model.name} is approximated from a few probes of the vendor's library; "
        "NORMAL is the one that the vendor's manual supports and that was measured",
        ChipfitWarning,
        stacklevel=2,
    )
    rows = math.sqrt(bias_rows / 8)
    if model is NoiseModel.MBS:
        return ColumnNoise(_MBS_FLOOR_PER_LEVEL * rows, _MBS_KNOTS, _MBS_STDS, output_floor=1.0), 0.0
    # SIMPLE: all that is known is a mean that changes from call to call. It gets the size of the bias rows' noise.
    return NORMAL, BIAS_DRIVE * math.sqrt(bias_rows) * NORMAL.law.floor

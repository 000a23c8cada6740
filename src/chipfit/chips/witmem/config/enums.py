"""The vendor's enumerations, with the vendor's numbers (spec/witmem-array.md, section 1)."""

from __future__ import annotations

from enum import Enum


class TargetPlatform(Enum):
    """Chip generation."""

    WTM2101 = 1
    WTM2100 = 2
    ANKE = 3
    HE01 = 11
    HE03 = 12


class HardwareType(Enum):
    """Unit that computes a layer: the analog array or the vector unit."""

    ARRAY = 1
    VPU = 2


class NoiseModel(Enum):
    """Model of the analog noise."""

    NORMAL = 1
    ARRMDL = 2
    MBS = 3
    SIMPLE = 4


class HandleNegInType(Enum):
    """How an array, whose inputs are unsigned, takes negative inputs.

    FALSE does nothing, PN moves the sign to the weights (two passes), Shift adds a constant to the input.
    """

    FALSE = 1
    PN = 2
    Shift = 3


class ParamType(Enum):
    """Where a layer's option comes from when it is not given."""

    WITIN_AUTO = 1
    WITIN_GLOBAL = 2

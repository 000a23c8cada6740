"""Lowering rules of all Witmem layers, by class."""

from __future__ import annotations

from typing import Any

from chipfit.chips.witmem.program.lowering import (
    array as lower_witmem_array,
)
from chipfit.chips.witmem.program.lowering import (
    digital as lower_witmem_digital,
)
from chipfit.chips.witmem.program.lowering import (
    gru as lower_witmem_gru,
)

LAYERS: dict[type[Any], Any] = {
    **lower_witmem_array.LAYERS,
    **lower_witmem_digital.LAYERS,
    **lower_witmem_gru.LAYERS,
}
"""Rules by class of layer."""

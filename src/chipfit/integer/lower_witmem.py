"""Lowering rules of all Witmem layers, by class."""

from __future__ import annotations

from typing import Any

from chipfit.integer import lower_witmem_array, lower_witmem_digital, lower_witmem_gru

LAYERS: dict[type[Any], Any] = {
    **lower_witmem_array.LAYERS,
    **lower_witmem_digital.LAYERS,
    **lower_witmem_gru.LAYERS,
}
"""Rules by class of layer."""

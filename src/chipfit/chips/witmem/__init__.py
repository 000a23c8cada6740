"""Witmem WTM2101: analog in-memory compute, with a digital unit beside it."""

from chipfit.chips.witmem.wtm2101 import WTM2101

CHIPS = (WTM2101,)

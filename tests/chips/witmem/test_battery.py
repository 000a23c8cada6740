"""The WTM2101 passes what every chip has to pass; its mutants are in test_mutants_witmem.py."""

from __future__ import annotations

from tests.chips.battery import Plain, Stages
from tests.support.networks import Autoencoder, DsCnn, GruKeywords, Residual


class TestWtm2101(Stages):
    chip = "wtm2101"
    noise = True
    networks = (
        Plain(Residual, (3, 8, 8), 20.0),
        Plain(DsCnn, (1, 25, 10), 15.0),
        Plain(GruKeywords, (10, 21), 15.0),
        Plain(Autoencoder, (32,), 15.0),
    )

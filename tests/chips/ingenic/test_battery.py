"""The T40 and Txx pass what every chip has to pass; their mutants are in test_mutants_ingenic.py."""

from __future__ import annotations

from tests.chips.battery import Plain, Stages
from tests.support.networks import DsCnn, Residual
from torch import nn


def residual() -> nn.Module:
    return Residual(32)


def ds_cnn() -> nn.Module:
    return DsCnn(32)


NETWORKS = (Plain(residual, (3, 8, 8), 20.0, steps=255), Plain(ds_cnn, (1, 25, 10), 15.0))


class TestT40(Stages):
    chip = "t40"
    networks = NETWORKS


class TestTxx(Stages):
    chip = "txx"
    networks = NETWORKS

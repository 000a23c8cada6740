"""Ordinary networks on the Ingenic targets: equal in float before and after calibration, and every code equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chipfit.errors import UnsupportedError
from chipfit.program import lower
from chipfit.vendor import chip
from support import networks
from support.conversion import calibrated, on_chip

ZOO = [
    ("t40", "resnet18"),
    ("t40", "mobilenetv2_wd2"),
    ("t40", "squeezenet_v1_1"),
    ("t40", "mobilenetv3_small_w7d20"),
    ("t40", "efficientnet_b0"),
    ("t40", "seresnet18"),
    ("txx", "mobilenetv2_wd2"),
    ("txx", "mobilenetv3_small_w7d20"),
    ("txx", "squeezenet_v1_1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "name"), ZOO)
def test_networks_of_others_run_on_the_chip_code_for_code(target: str, name: str) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    converted = on_chip(networks.from_zoo(name), target, x)
    activations = {"efficientnet_b0": {"silu", "sigmoid"}, "seresnet18": {"sigmoid"}}.get(name, set())
    title = chip(target).title.split()[1].rstrip(",")
    assert set(converted.meta["on_cpu"].values()) == {f"{title} has no {kind}" for kind in activations}


@pytest.mark.parametrize("target", ["t40", "txx"])
@pytest.mark.parametrize("name", ["UNet", "DsCnn"])
def test_networks_of_the_chips_operators(name: str, target: str) -> None:
    kind = getattr(networks, name)
    torch.manual_seed(0)
    converted = on_chip(networks.lively(kind()), target, torch.randn(4, *networks.EXAMPLES[kind]))
    assert converted.meta["on_cpu"] == {}


MATMULS = {"matmul", "matmul_1", "transpose", *(f"transpose_{i}" for i in range(1, 5))}
NOT_MAPPED: list[Any] = [
    (
        "GruKeywords",
        {"transpose", "gru", "getitem", "getitem_1"},
        r"1 call.*\n  gru \(layer gru\): GRU has no integer form",
    ),
    ("LstmClassifier", {"lstm", "getitem", "getitem_1"}, r"1 call.*\n  lstm \(layer lstm\): LSTM has no integer form"),
    (
        "Autoencoder",
        {"encoder.4", "decoder.0", "decoder.6"},
        r"1 call.*\n  decoder_6 \(layer decoder.6\): Sigmoid has no integer form",
    ),
    (
        "Transformer",
        {"softmax", "norm1", "norm2", "gelu", "mean", *MATMULS},
        r"6 call.*\n  matmul: matmul has no integer form between Ingenic operators",
    ),
]


@pytest.mark.parametrize("target", ["t40", "txx"])
@pytest.mark.parametrize(("name", "on_cpu", "reasons"), NOT_MAPPED)
def test_what_cannot_be_lowered_is_listed(name: str, on_cpu: set[str], reasons: str, target: str) -> None:
    kind = getattr(networks, name)
    torch.manual_seed(0)
    x = torch.randn(4, *networks.EXAMPLES[kind])
    converted = calibrated(networks.lively(kind()), target, x)
    assert set(converted.meta["on_cpu"]) == on_cpu
    with pytest.raises(UnsupportedError, match=reasons):
        lower(converted, x[:1])

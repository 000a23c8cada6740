"""Recorded outputs, gradients and statistics of the vendor's digital-unit layers, replayed on ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from chipfit.chips.witmem import digital
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.presets import LayerConfigFactory

DATA = Path(__file__).parents[2] / "data" / "witmem_digital"
CASES = json.loads((DATA / "cases.json").read_text(encoding="utf-8"))["cases"]
RECORDED = [case for case in CASES if case["file"]]
REFUSED = [case for case in CASES if not case["file"]]

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def built(case: dict[str, Any]) -> nn.Module:
    config = LayerConfigFactory.get_default_config()
    for name, value in case["config"].items():
        setattr(config, name, value)
    assert isinstance(config, WitinLayerConfig)
    layer: nn.Module = getattr(digital, case["op"])(layer_config=config, **case["ctor"])
    return layer


class Recording:
    """The arrays of one case, by step."""

    def __init__(self, case: dict[str, Any]) -> None:
        with np.load(DATA / case["file"]) as archive:
            self.arrays = {key: torch.from_numpy(archive[key]) for key in archive.files}

    def under(self, prefix: str) -> dict[str, torch.Tensor]:
        return {key[len(prefix) :]: value for key, value in self.arrays.items() if key.startswith(prefix)}


def assert_outputs(y: torch.Tensor, want: torch.Tensor, tolerance: dict[str, float], where: str) -> None:
    assert y.shape == want.shape, where
    y = y.detach()
    wrong = ~torch.isclose(y, want, rtol=tolerance["y_rtol"], atol=tolerance["y_atol"] + 1e-7, equal_nan=True)
    if not wrong.any():
        return
    # A transcendental function may round differently on another machine: then by one code, and rarely.
    codes = want[want.isfinite()].unique()
    step = codes.diff().min() if codes.numel() > 1 else torch.tensor(0.0)
    assert wrong.double().mean() <= tolerance["y_offbyone_frac"], f"{where}: {int(wrong.sum())} outputs differ"
    assert (y - want).abs()[wrong].max() <= 1.001 * step, where


@pytest.mark.parametrize("case", RECORDED, ids=[case["id"] for case in RECORDED])
def test_recorded_case(case: dict[str, Any]) -> None:
    recording, layer, tolerance = Recording(case), built(case), case["tolerance"]
    layer.load_state_dict({**layer.state_dict(), **recording.under("param.")})
    for step in case["steps"]:
        if step["call"] != "forward":
            layer.train(step["call"] == "train()")
            continue
        now = f"s{step['step']}."
        seen = recording.under(now)
        inputs = [seen[name].clone().requires_grad_("up" in seen) for name in ("x1", "x2") if name in seen]
        layer.zero_grad(set_to_none=True)
        y = layer(*inputs)
        assert_outputs(y, seen["y"], tolerance, now)
        if "up" in seen:
            y.backward(seen["up"])
        gradients = {f"gx{j}": x.grad for j, x in enumerate(inputs, 1)}
        gradients |= {f"gparam.{name}": parameter.grad for name, parameter in layer.named_parameters()}
        for name, want in seen.items():
            if name.startswith("g"):
                got = gradients[name]
                atol = tolerance["grad_atol_rel_max"] * want.abs().max().item()
                torch.testing.assert_close(got, want, rtol=tolerance["grad_rtol"], atol=atol, equal_nan=True)
            elif name.startswith("io_max."):
                got = layer.get_submodule(name[len("io_max.") :]).io_max
                torch.testing.assert_close(got.detach(), want.reshape(()), rtol=tolerance["io_max_rtol"], atol=0.0)
            elif name.startswith("running_"):
                torch.testing.assert_close(layer.get_buffer(name), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", REFUSED, ids=[case["id"] for case in REFUSED])
def test_refused_case(case: dict[str, Any]) -> None:
    kind = {"AssertionError": AssertionError, "TypeError": TypeError}[case["error_type"]]
    with pytest.raises(kind):
        built(case)(*[torch.ones(shape) for shape in case["input_shapes"]])


def test_every_layer_is_recorded() -> None:
    assert {case["op"] for case in CASES} == set(digital.__all__)

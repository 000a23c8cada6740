"""What calibration says: figures, findings with layer, figure and remedy; strict makes an error of them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import chipfit
from chipfit.errors import CalibrationError, ChipfitWarning
from chipfit.fit.contract import ScaleChoice
from chipfit.fit.figures import LayerFigures
from chipfit.fit.methods import sqnr
from chipfit.fit.report import CalibrationReport, cause_of, findings_of

CHIPS = ("wtm2101", "t40", "txx", "example")


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 4),
    ).eval()


def calibrated(net: nn.Module, data: Any, chip: str = "wtm2101", example: Any = None, **options: Any) -> Any:
    converted = chipfit.convert(net, chipfit.chip(chip), data[:2] if example is None else example)
    return converted, chipfit.calibrate(converted, [data], **options)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
def test_the_figure_is_that_of_the_output_on_every_chip(chip: str) -> None:
    net, x = plain(), torch.rand(32, 3, 8, 8)
    converted, report = calibrated(net, x, chip)
    quantised = chipfit.set_mode(converted, "quant").eval()
    with torch.no_grad():
        assert report.sqnr_db == pytest.approx(sqnr(net(x), quantised(x)), abs=0.05)
    assert report.samples == 32
    assert [row.sqnr_db for row in report.layers] == sorted(row.sqnr_db for row in report.layers)
    assert f"{report.sqnr_db:.1f} dB" in str(report) and str(report.layers[0].layer) in str(report)
    assert all(0 <= row.saturated <= 1 and 0 <= row.unused <= 1 for row in report.layers)


def test_it_is_the_sequence_of_choices_that_it_was() -> None:
    _, report = calibrated(plain(), torch.rand(8, 3, 8, 8))
    assert isinstance(report, CalibrationReport)
    assert len(report) == len(list(report)) and report[0] is next(iter(report)) and report[-1] == report.choices[-1]
    assert all(isinstance(choice, ScaleChoice) for choice in report) and report[1:3] == report.choices[1:3]
    assert report == list(report)


def test_negative_values_where_the_converter_saw_none() -> None:
    net, x = plain(), torch.randn(32, 3, 8, 8)
    with pytest.raises(CalibrationError, match=r"values from -.* at input 1") as caught:
        calibrated(net, x, example=x[:2].abs())
    assert "input_range" in str(caught.value)


def test_a_bias_that_no_scale_holds_is_named_with_its_figure() -> None:
    net, x = plain(), torch.rand(32, 3, 8, 8)
    with torch.no_grad():
        net[5].bias[2] = 3e9
    with pytest.warns(ChipfitWarning, match=r"5: 1 of 4 biases clipped, the worst from 3e\+09 to"):
        _, report = calibrated(net, x)
    assert report.biases_clipped == 1
    with pytest.raises(CalibrationError, match="biases clipped"):
        calibrated(net, x, strict=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("chip", ["wtm2101", "t40"])
def test_a_parameter_that_is_not_finite(value: float, chip: str) -> None:
    net, x = plain(), torch.rand(8, 3, 8, 8)
    converted = chipfit.convert(net, chipfit.chip(chip), x[:2])
    name, weight = next((n, p) for n, p in converted.named_parameters() if p.dim() == 4)
    with torch.no_grad():
        weight[0, 0, 0, 0] = value
    with pytest.raises(CalibrationError, match=f"{name}: NaN or infinite values"):
        chipfit.calibrate(converted, [x], strict=True)
    with pytest.warns(ChipfitWarning, match=f"{name}: NaN or infinite values"), pytest.raises(Exception):  # noqa: B017
        chipfit.calibrate(converted, [x])
        raise RuntimeError("on some chips such weights have codes")


def test_nothing_is_said_of_a_network_that_survives() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = calibrated(plain(), torch.rand(32, 3, 8, 8), strict=True)
    assert not report.findings and report.sqnr_db > 30 and "nothing to warn of" in str(report)


def test_a_loader_that_gives_its_batches_once_is_enough() -> None:
    net, x = plain(), torch.rand(64, 3, 8, 8)
    converted = chipfit.convert(net, chipfit.chip("wtm2101"), x[:2])
    assert chipfit.calibrate(converted, iter(x.split(16)), batches=2).samples == 32


def test_below_enough_is_a_warning_and_below_least_an_error() -> None:
    rows = (LayerFigures("fc", 17.0, added=0.02),)
    (mild,) = findings_of(17.0, rows, ())
    (severe,) = findings_of(14.9, rows, ())
    assert not mild.severe and severe.severe
    assert "14.9 dB" in str(severe) and "fc" in str(severe)
    assert findings_of(25.0, rows, ()) == ()
    assert findings_of(math.nan, rows, ())[0].severe


def test_the_cause_follows_the_figures() -> None:
    assert "bias" in cause_of(LayerFigures("a", 5.0, biases_clipped=1, biases=2))[0]
    assert "negative" in cause_of(LayerFigures("a", 5.0, negatives=0.1))[0]
    assert "clipped" in cause_of(LayerFigures("a", 5.0, saturated=0.3))[0]
    assert "equalise" in cause_of(LayerFigures("a", 15.0, lost_db=9.0, spread=90.0))[1]
    assert cause_of(LayerFigures("a", 40.0)) == ("", "")


def test_evaluate_shows_the_figure() -> None:
    net, x = plain(), torch.rand(32, 3, 8, 8)
    converted, report = calibrated(net, x)
    row = chipfit.evaluate(converted, [(x, torch.zeros(32, dtype=torch.long))], chips=1)
    assert row.sqnr_db == pytest.approx(report.sqnr_db, abs=0.05)
    assert row.as_dict()["quant"]["sqnr_db"] == row.sqnr_db

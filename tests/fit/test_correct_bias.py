"""Bias correction: the output decides, the mode does not; harmless before training and before another calibration."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.fit.methods import sqnr

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def network(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation),
        *(nn.Conv2d(8, 12, 3, padding=1), activation, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)),
    ).eval()


def calibrated(net: nn.Module, x: Tensor, chip: str) -> Any:
    converted = chipfit.convert(net, chipfit.chip(chip), x[:2])
    chipfit.calibrate(converted, x.split(16))
    return converted


def output(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = chipfit.set_mode(net, "quant").eval()(x)
    return y


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.1), nn.ReLU()], ids=["leaky", "relu"])
@pytest.mark.parametrize("chip", ["wtm2101", "t40", "txx", "example"])
def test_never_worse_and_alike_in_every_mode(chip: str, activation: nn.Module) -> None:
    if chip == "example" and isinstance(activation, nn.LeakyReLU):
        pytest.skip("the example chip has no LeakyReLU")
    net, x, other = network(activation), torch.randn(48, 3, 12, 12), torch.randn(48, 3, 12, 12)
    before = calibrated(net, x, chip)
    results = []
    for mode in ("float", "quant", "nat"):
        corrected = copy.deepcopy(before)
        chipfit.set_mode(corrected, mode, *([4] if mode == "nat" and chip == "wtm2101" else []))
        chipfit.correct_bias(corrected, x.split(16))
        results.append(output(corrected, x))
        with torch.no_grad():
            assert sqnr(net(other), output(corrected, other)) >= sqnr(net(other), output(before, other)) - 0.2
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    with torch.no_grad():
        assert sqnr(net(x), results[0]) >= sqnr(net(x), output(before, x))


@pytest.mark.parametrize("chip", ["wtm2101", "t40", "txx"])
def test_a_second_calibration_and_training_work(chip: str) -> None:
    net, x = network(nn.LeakyReLU(0.1)), torch.randn(48, 3, 12, 12)
    with torch.no_grad():
        target = net(x)
    plain = calibrated(net, x, chip)
    corrected = copy.deepcopy(plain)
    chipfit.correct_bias(corrected, x.split(16))
    good = sqnr(target, output(corrected, x))
    chipfit.calibrate(corrected, x.split(16))
    assert sqnr(target, output(corrected, x)) > min(good, 25) - 3
    losses = []
    for trained in (plain, corrected):
        chipfit.set_mode(trained, "quant").train()
        optimiser = torch.optim.Adam(trained.parameters(), 1e-3)
        for _ in range(40):
            loss = (trained(x) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert losses[1] <= 1.5 * losses[0] + 1e-5


def test_a_correction_by_which_the_output_is_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrections of a thousand times the error: what does not help the output is undone."""
    net, x = network(nn.ReLU()), torch.randn(32, 3, 12, 12)
    converted = calibrated(net, x, "wtm2101")
    before = output(converted, x)
    from chipfit.fit import bias

    def wild(name: str, target: Any, clean: Tensor, given: Tensor, mean: Any) -> bias.BiasCorrection:
        if target.bias is not None:
            target.bias.add_(1000 * (clean - given).to(target.bias))
        mean()
        return bias.BiasCorrection(name, 1.0, 0.0, True)

    monkeypatch.setattr(bias, "_correct", wild)
    done = chipfit.correct_bias(converted, [x])
    assert not done[-1].corrected and done[-1].left == done[-1].shift
    with torch.no_grad():
        assert sqnr(net(x), output(converted, x)) >= sqnr(net(x), before)


def test_one_pass_is_what_layer_by_layer_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network(nn.ReLU()), torch.randn(32, 3, 12, 12)
    results = []
    for values in (1 << 24, 0):  # 0: no pass takes the batches at once
        monkeypatch.setattr("chipfit.fit.bias._AT_ONCE", values)
        converted = calibrated(net, x, "wtm2101")
        chipfit.correct_bias(converted, x.split(8))
        results.append(output(converted, x))
    assert torch.equal(*results)

"""Weights that get the nearest codes of a grid with zero, through the vendor's own quantiser."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.calibration.nearest import weights_of
from chipfit.chips.ingenic.exact import weight_codes
from chipfit.chips.ingenic.nearest_codes import (
    SMALLEST_PEAK,
    affine_image,
    best_peaks,
    covering_peaks,
    latent_weight,
    open_window,
    rows_of,
)
from chipfit.chips.ingenic.operators.blocks import QuantizeWeight, held_weight
from chipfit.errors import CalibrationError, UnknownOptionError
from chipfit.fit.data import digits
from chipfit.fit.methods import sqnr
from chipfit.program import lower, verify
from support.ingenic import branches as networks
from support.ingenic.magik import round_trip

TIE = 2e-3
"""Codes within which a weight is as near to one code as to the other: the vendor's band, and what float32 adds."""


class Residual(nn.Module):
    """A small residual network for the digits: batch norms, a sum, a depthwise layer, ReLU6, one layer without norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU6())
        self.c, self.fc = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.b(self.a(x)))
        x = F.relu(self.c(self.depthwise(F.max_pool2d(x, 2))))
        y: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


def fit(net: nn.Module, epochs: int, rate: float) -> nn.Module:
    x, target = digits()[0].tensors
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], rate)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(net(x[rows]), target[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    return fit(Residual(), 4, 5e-3)


def images(count: int = 256) -> Tensor:
    return digits()[0].tensors[0][:count]


def calibrated(net: nn.Module, target: str = "txx", bits: int = 8, **options: Any) -> Any:
    model = chipfit.convert(net, target, images(2), bits=bits)
    chipfit.calibrate(model, images().split(64), **options)
    chipfit.set_mode(model, "quant")
    return model


def quantisers(net: nn.Module) -> dict[str, tuple[QuantizeWeight, Tensor]]:
    found = {name: weights_of(layer) for name, layer in net.named_modules()}
    return {name: (held[0], held[1][0]) for name, held in found.items() if held is not None}


def differing(w: Tensor, peaks: Tensor, codes: Tensor, bits: int) -> int:
    """Codes that are not the nearest, ties apart."""
    h = 2 ** (bits - 1)
    exact = rows_of(w).double() * h / peaks.double().view(-1, 1)
    tie = ((exact - exact.floor()) - 0.5).abs() < TIE
    wrong = rows_of(codes).double() != exact.round().clamp(-h, h - 1)
    assert tie.double().mean() < 0.01 and (wrong & tie).double().mean() < 0.002
    return int((wrong & ~tie).sum())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (48, 16, 1, 9), (64, 100), (16, 1, 1, 1)])
def test_every_code_is_the_nearest(bits: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(bits)
    w = torch.randn(shape) * (0.5 + torch.rand(shape[0], *[1] * (len(shape) - 1)))
    w[w.abs() < 0.1] += 0.2  # a peak that the quantiser can have, in rows of one weight too
    for find in (covering_peaks, best_peaks):
        peaks = find(w, bits)
        latent = latent_weight(w, peaks, bits)
        codes, scale = weight_codes(latent, bits, open_window(w), "Txx")
        assert torch.equal(scale * 2 ** (bits - 1), peaks)
        assert differing(w, peaks, codes, bits) == 0
        image = affine_image(latent, bits)
        inside = (rows_of(w) > -peaks.view(-1, 1)) & (rows_of(w) < peaks.view(-1, 1) * (1 - 2.0 ** (1 - bits)))
        torch.testing.assert_close(rows_of(image)[inside], rows_of(w)[inside], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        affine_image(latent_weight(w, covering_peaks(w, bits), bits), bits), w, rtol=0, atol=1e-6
    )


def test_the_peak_of_least_error_is_no_worse_and_helps_at_2_bits() -> None:
    torch.manual_seed(0)
    w = torch.randn(32, 64, 3, 3)
    gains = {}
    for bits in range(2, 9):
        found = []
        for peaks in (covering_peaks(w, bits), best_peaks(w, bits)):
            codes, scale = weight_codes(latent_weight(w, peaks, bits), bits, open_window(w), "Txx")
            found.append(sqnr(w, codes * scale.view(-1, 1, 1, 1)))
        gains[bits] = found[1] - found[0]
    assert all(gain > -1e-3 for gain in gains.values()) and gains[2] > 5 and gains[4] > 0.5


@pytest.mark.parametrize(("target", "bits"), [("txx", 8), ("xs1", 4), ("xs2", 8), ("t40", 8)])
@torch.no_grad()
def test_a_converted_network_has_the_nearest_codes_and_shows_the_users_weights(
    trained: nn.Module, target: str, bits: int
) -> None:
    model = calibrated(trained, target, bits)
    nearest = {name: held for name, held in quantisers(model).items() if held[0].nearest}
    if target == "t40":  # where the depthwise convolutions alone have that grid; one stands for the ReLU of the sum
        assert nearest.keys() == {"depthwise.0", "relu"}
    else:
        assert nearest.keys() == quantisers(model).keys()
    for quantiser, weight in nearest.values():
        peaks = rows_of(weight).abs().amax(1)
        assert bool((peaks >= 0.05).all())
        codes, scale = quantiser.codes(weight)
        assert torch.equal(scale * 2 ** (quantiser.bits - 1), peaks)
        assert differing(held_weight(weight, quantiser), peaks, codes, quantiser.bits) == 0
    x = digits()[1].tensors[0]
    chipfit.set_mode(model, "float")
    torch.testing.assert_close(model(x), trained(x), rtol=0, atol=1e-5 * float(trained(x).abs().max()))


@pytest.mark.parametrize("bits", [8, 4])
def test_no_code_differs_in_the_program_and_in_the_file(trained: nn.Module, bits: int, tmp_path: Path) -> None:
    model, x = calibrated(trained, bits=bits), images(64)
    assert verify(model, lower(model, x[:1]), x.split(16)).equal
    again = round_trip(model, tmp_path, x[:8])
    for name, (quantiser, weight) in quantisers(again).items():
        known, held = quantisers(model)[name]
        assert torch.equal(weight, held) and quantiser.nearest == known.nearest
        quantiser.nearest = False  # what a reader sees that knows nothing of it
        assert torch.equal(quantiser(weight), known(held))


class Plain(Residual):
    """The same layers without the sum."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.b(self.a(self.stem(x)))), 2)
        y: Tensor = self.fc(F.adaptive_avg_pool2d(F.relu(self.c(self.depthwise(x))), 1).flatten(1))
        return y


@pytest.mark.parametrize(("kind", "behind"), [(Plain, 1), (Residual, 3.5)])
def test_8_bits_are_about_as_good_as_those_of_t40(kind: type[nn.Module], behind: float) -> None:
    """A sum on Txx is the mean of codes, rounded again: half the resolution, whatever the weights are."""
    torch.manual_seed(0)
    net, x = fit(kind(), 4, 5e-3), digits()[1].tensors[0]
    ways: list[tuple[str, str, dict[str, str]]] = [
        ("t40", "t40", {}),
        ("nearest", "txx", {}),
        ("vendor", "txx", {"codes": "vendor"}),
    ]
    with torch.no_grad():
        noise = {way: sqnr(net(x), calibrated(net, target, **options)(x)) for way, target, options in ways}
    assert noise["nearest"] > noise["t40"] - behind, noise
    assert noise["nearest"] > noise["vendor"] + 10, noise


def test_layers_of_a_users_script_keep_the_vendors_codes_unless_asked() -> None:
    torch.manual_seed(0)
    net = networks.Branches(8, "Txx").eval()
    data = networks.images(64).split(32)
    plain, asked = copy.deepcopy(net), copy.deepcopy(net)
    chipfit.calibrate(plain, data)
    assert not any(quantiser.nearest or quantiser.laid_open for quantiser, _ in quantisers(plain).values())
    chipfit.calibrate(asked, data, codes="nearest")
    assert all(quantiser.nearest for quantiser, _ in quantisers(asked).values())
    with pytest.raises(UnknownOptionError, match="nearest"):
        chipfit.calibrate(asked, data, codes="neares")


def test_what_was_trained_in_the_vendors_way_keeps_its_float_view_and_its_codes(trained: nn.Module) -> None:
    torch.manual_seed(0)
    model = fit(calibrated(trained, bits=4, codes="vendor"), 1, 1e-3)
    again, asked, x = copy.deepcopy(model), copy.deepcopy(model), images(64)
    chipfit.calibrate(again, images().split(64))
    assert not any(quantiser.nearest for quantiser, _ in quantisers(again).values())
    chipfit.calibrate(asked, images().split(64), codes="nearest")
    before = {name: quantiser.codes(weight)[0] for name, (quantiser, weight) in quantisers(model).items()}
    for name, (quantiser, weight) in quantisers(asked).items():
        assert torch.equal(quantiser.codes(weight)[0], before[name]), name
    right = [(net(x).argmax(1) == digits()[0].tensors[1][:64]).double().mean() for net in (model, asked)]
    assert abs(right[0] - right[1]) < 0.05


def test_training_goes_on_from_the_nearest_codes(trained: nn.Module) -> None:
    torch.manual_seed(0)
    model, (x, target) = calibrated(trained, bits=4), digits()[1].tensors
    with torch.no_grad():
        before = F.cross_entropy(model(x), target).item()
    quantiser, weight = quantisers(model)["c"]
    seen = []
    inner = model.get_submodule("c").Conv2d
    latent = weight.detach().clone().requires_grad_()
    quantised = quantiser(latent)
    (quantised * torch.arange(quantised.numel()).view(quantised.shape)).sum().backward()
    assert torch.equal(latent.grad, torch.arange(latent.numel()).view(latent.shape).float())  # straight through
    seen.append(inner.weight.detach().clone())
    fit(model, 2, 2e-3)
    with torch.no_grad():
        assert F.cross_entropy(model(x), target).item() < before
    assert not torch.equal(inner.weight, seen[0])
    codes = {name: quantiser.codes(weight)[0] for name, (quantiser, weight) in quantisers(model).items()}
    chipfit.calibrate(model, images().split(64))  # new clips, the trained codes
    for name, (quantiser, weight) in quantisers(model).items():
        assert quantiser.nearest
        assert (quantiser.codes(weight)[0] != codes[name]).double().mean() < 1e-3, name
    assert verify(model, lower(model, x[:1]), x[:64].split(16)).equal


@torch.no_grad()
def test_the_vendors_codes_come_back_when_asked_for(trained: nn.Module) -> None:
    x = images(64)
    model, plain = calibrated(trained), calibrated(trained, codes="vendor")
    chipfit.calibrate(model, images().split(64), codes="vendor")
    assert not any(quantiser.nearest or quantiser.laid_open for quantiser, _ in quantisers(model).values())
    for name, (quantiser, weight) in quantisers(model).items():
        known, held = quantisers(plain)[name]
        assert (quantiser.codes(weight)[0] != known.codes(held)[0]).double().mean() < 0.01, name
    chipfit.set_mode(model, "float")
    torch.testing.assert_close(model(x), trained(x), rtol=0, atol=1e-5 * float(trained(x).abs().max()))


@torch.no_grad()
def test_calibrating_twice_gives_the_same(trained: nn.Module) -> None:
    model = calibrated(trained, bits=4)
    first = {name: held_weight(weight, quantiser).clone() for name, (quantiser, weight) in quantisers(model).items()}
    codes = {name: quantiser.codes(weight)[0] for name, (quantiser, weight) in quantisers(model).items()}
    chipfit.calibrate(model, images().split(64))
    for name, (quantiser, weight) in quantisers(model).items():
        shown = held_weight(weight, quantiser)
        torch.testing.assert_close(shown, first[name], rtol=1e-4, atol=1e-5 * float(shown.abs().max()))
        assert (quantiser.codes(weight)[0] != codes[name]).double().mean() < 2e-3, name


def test_a_calibration_that_fails_changes_nothing(trained: nn.Module) -> None:
    model = calibrated(trained, bits=4)
    state, x = copy.deepcopy(model.state_dict()), images(8)
    with torch.no_grad():
        before = model(x)
        with pytest.raises(CalibrationError):
            chipfit.calibrate(model, [torch.full((2, 1, 8, 8), torch.nan)])
        assert torch.equal(model(x), before)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(quantiser.nearest and not quantiser.laid_open for quantiser, _ in quantisers(model).values())


@torch.no_grad()
def test_a_network_built_anew_is_restored(trained: nn.Module) -> None:
    model = chipfit.convert(trained, "txx", images(2))
    again, x = copy.deepcopy(model), images(64)
    choices = chipfit.calibrate(model, images().split(64))
    again.load_state_dict(model.state_dict())
    chipfit.restore(again, choices)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=1e-2 * float(model(x).abs().max()))  # what peaks clip
    for net in (model, again):
        chipfit.set_mode(net, "quant")
    assert torch.equal(again(x), model(x))


class Small(nn.Module):
    """Channels of a size that no peak can have, dead ones too, with and without a batch norm behind them."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32) if norm else nn.Identity()
        self.b, self.fc = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32, 10)
        with torch.no_grad():
            self.a.weight *= torch.logspace(-4, 0, 32).view(-1, 1, 1, 1)
            self.a.weight[5] = 0
            self.a.weight[6] = 1e-32
            self.b.weight *= 1e-3
            self.b.bias *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(F.relu(self.b(F.relu(self.norm(self.a(x))))).mean((2, 3)))
        return y


@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_small_channels_are_enlarged_where_it_can_be_taken_out_again(norm: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Small(norm), images(64)
    if norm:
        net.train()(x)  # statistics of channels of all sizes
    net.eval()
    model = calibrated(net)
    for quantiser, weight in quantisers(model).values():
        assert bool((rows_of(weight).abs().amax(1) >= 0.05).all()) and quantiser.nearest
    assert sqnr(net(x), model(x)) > 25
    chipfit.set_mode(model, "float")
    torch.testing.assert_close(model(x), net(x), rtol=0, atol=1e-5 * float(net(x).abs().max()))
    chipfit.set_mode(model, "quant")
    assert verify(model, lower(model, x[:1]), x.split(16)).equal
    round_trip(model, tmp_path, x[:8])


@torch.no_grad()
def test_equalising_afterwards_leaves_them_alone(trained: nn.Module) -> None:
    model, x = calibrated(trained), images(64)
    chipfit.set_mode(model, "float")
    before = model(x)
    assert chipfit.equalise(model) == []
    assert torch.equal(model(x), before)


def test_no_peak_is_below_what_the_quantiser_can_have() -> None:
    w = torch.full((2, 4, 1, 1), 1e-3)
    for bits in (2, 8):
        peaks = best_peaks(w, bits)
        assert torch.equal(peaks, torch.full((2,), SMALLEST_PEAK))
        codes, scale = weight_codes(latent_weight(w, peaks, bits), bits, open_window(w), "Txx")
        torch.testing.assert_close(scale * 2 ** (bits - 1), peaks)
        assert (rows_of(codes) == rows_of(w).mul(2 ** (bits - 1) / SMALLEST_PEAK).round()).sum(1).tolist() == [3, 3]


def test_a_script_that_asks_keeps_its_function() -> None:
    torch.manual_seed(0)
    floats = networks.Branches(32, "Txx").eval()
    net = networks.Branches(8, "Txx")
    net.load_state_dict(floats.state_dict())
    data = networks.images(64)
    with torch.no_grad():
        clean = floats(data)
        found = {}
        for codes in ("vendor", "nearest"):
            model = copy.deepcopy(net).eval()
            chipfit.calibrate(model, data.split(32), codes=codes)
            found[codes] = sqnr(clean, model(data))
            ops_mode = copy.deepcopy(model)
            chipfit.set_mode(ops_mode, "float")
            torch.testing.assert_close(ops_mode(data), clean, rtol=0, atol=1e-4 * float(clean.abs().max()))
    assert found["nearest"] > found["vendor"] + 6, found
    assert isinstance(net.conv0, ops.Conv2D)

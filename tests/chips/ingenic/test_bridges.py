"""What stands between the chip's operators and torch: into features, out of them, and borders."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chipfit.chips.ingenic import Preprocess
from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.errors import InvalidTypeError, InvalidValueError

X = torch.tensor([[-3.0, -1.0, -0.004, 0.0, 0.5, 1.1, 2.0]])


@pytest.mark.parametrize(
    ("target", "signed", "codes"),
    [
        ("T40", False, [0, 0, 0, 0, 64, 140, 255]),  # 255 steps of 2 / 255
        ("Txx", False, [0, 0, 0, 0, 64, 140, 255]),
        ("Txx", True, [-128, -64, 0, 0, 32, 70, 127]),
    ],
)
def test_codes_of_a_tensor(target: str, signed: bool, codes: list[int]) -> None:
    layer = ToFeature(8, signed, clip_max_value=2.0, target_device=target)
    y, bits, minimum = layer(X)
    assert (bits, minimum) == (8, -1.0 if signed else 0.0)
    assert (y * (128 if signed else 255)).round().int().tolist() == [codes]


@given(st.integers(2, 12), st.booleans(), st.sampled_from(["T40", "T41", "Txx", "Xs1", "T02"]), st.floats(0.1, 50))
def test_codes_are_within_half_a_step_or_clipped(bits: int, signed: bool, target: str, clip: float) -> None:
    x = torch.linspace(-2 * clip if signed else 0, 2 * clip, 201)
    y = ToFeature(bits, signed, clip, target_device=target)(x)[0] * clip
    step = clip / (2 ** (bits - 1) if signed else 2**bits - 1)
    inside = x.abs() <= clip - step
    assert (y - x)[inside].abs().max().item() <= 1.01 * step
    assert y.abs().max().item() <= clip * (1 + 1e-6)


def test_tags_of_an_image() -> None:
    assert ToFeature(image=True).tags == (8, 0.0, 255.0, 0.0)
    assert ToFeature(signed=True, image=True).tags == (8, 128.0, 128.0, -1.0)
    y = ToFeature(8, True, 2.0, image=True, target_device="T40")(X)[0]  # its zero is a code on every target
    assert (y * 128).tolist() == [[-128, -64, 0, 0, 32, 70, 127]]


def test_a_gate_keeps_its_clip_of_one() -> None:
    layer = ToFeature(8, gate=True, clip_max_value=5.0)
    assert layer.QuantizeFeature.clip_max_value == 1.0
    layer.set_mode("float")
    assert layer(torch.tensor([0.3, 1.2]))[0].tolist() == pytest.approx([0.3, 1.0])


def test_mode_float_does_not_round() -> None:
    layer = ToFeature(8, True, 2.0, target_device="T40")
    layer.set_mode("float")
    assert torch.equal(layer(X)[0], X)
    layer.QuantizeFeature.calibrated = True  # the layers behind expect the division then
    assert torch.equal(layer(X)[0], X / 2)


def test_wrong_arguments() -> None:
    with pytest.raises(InvalidValueError, match="a gate has no negative values"):
        ToFeature(gate=True, signed=True)
    with pytest.raises(InvalidValueError, match="an image has 8 bits; got 4"):
        ToFeature(4, image=True)
    with pytest.raises(InvalidTypeError, match="ToFeature: a tensor is needed"):
        ToFeature()((X, 8, 0.0))
    with pytest.raises(InvalidValueError, match="fill"):
        PadFeature((1, 1), "highest")


def test_a_tensor_again_is_scaled_by_channel() -> None:
    layer = ToTensor(2, "T40")
    layer.scale.copy_(torch.tensor([2.0, 3.0]))
    x = torch.ones(1, 2, 2, 1)
    assert layer((x, 8, 0.0)).flatten().tolist() == [2.0, 2.0, 3.0, 3.0]
    assert layer(torch.ones(1, 2)).tolist() == [[2.0, 3.0]]
    assert list(layer.state_dict()) == ["scale"]


@pytest.mark.parametrize(
    ("target", "fill", "minimum", "border", "floating"),
    [
        ("T40", "zero", 0.0, 0.0, 0.0),
        ("T40", "zero", -1.0, -1.0, 0.0),  # its signed codes have no zero
        ("Txx", "zero", -1.0, 0.0, 0.0),
        ("T40", "lowest", 0.0, 0.0, 0.0),
        ("T40", "lowest", -1.0, -1.0, -math.inf),
        ("Txx", "lowest", -1.0, -1.0, -math.inf),
    ],
)
def test_borders(target: str, fill: str, minimum: float, border: float, floating: float) -> None:
    layer = PadFeature((1, 0), fill, target)
    for mode, expected in (("quant", border), ("float", floating)):
        layer.set_mode(mode)
        y, bits, tag = layer((torch.full((1, 1, 1), 0.5), 8, minimum))
        assert (y.flatten().tolist(), bits, tag) == ([expected, 0.5], 8, minimum)


def test_the_border_of_an_image_is_its_zero() -> None:
    prepared = Preprocess(128, 128, "T40")(torch.full((1, 1, 1, 1), 0.5))
    y = PadFeature((0, 1), target_device="T40")(prepared)
    assert y[0].flatten().tolist() == [0.5, 0.0] and y[1:] == prepared[1:]

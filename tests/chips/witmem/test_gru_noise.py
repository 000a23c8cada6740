"""Analog noise in the GRU layers: a chip's cells stay what they are from one time step to the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chipfit.chips.witmem.array.kernel import array_forward
from chipfit.chips.witmem.array.numbers import ArraySpec, Geometry
from chipfit.chips.witmem.array.rule import CellDraw, array_rule, draw_cells
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, NoiseModel
from chipfit.chips.witmem.gru import base as gru_base
from chipfit.chips.witmem.gru.layers import WitinGru, WitinGruCell
from chipfit.chips.witmem.noise import NORMAL

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
LINEAR = Geometry("linear")
C0, K = 0.3145, 0.015605


def config(**options: Any) -> WitinLayerConfig:
    fixed = {"use_quantization": True, "use_auto_scale": False, "handle_neg_in": HandleNegInType.PN}
    return WitinLayerConfig(1, **{**fixed, "scale_x": 32, "scale_weight": 64, "scale_y": 32, **options})


def halves(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Have every array operation of a GRU leave its output here, in order."""
    outputs: list[Tensor] = []

    def recorded(*args: Any) -> Any:
        result = array_forward(*args)
        outputs.append(result[0].detach())
        return result

    monkeypatch.setattr(gru_base, "array_forward", recorded)
    return outputs


def same_state(step: Tensor, b: Tensor, h: Tensor, *rest: Any) -> Tensor:
    return h


@pytest.mark.parametrize(
    ("model", "equal"), [(NoiseModel.NORMAL, True), (NoiseModel.SIMPLE, True), (NoiseModel.MBS, False)]
)
def test_deviation_at_constant_input_and_state(monkeypatch: pytest.MonkeyPatch, model: NoiseModel, equal: bool) -> None:
    """Cell noise is the same at each step of either operation; MBS's column noise is not."""
    outputs = halves(monkeypatch)
    monkeypatch.setattr(gru_base, "gru_step", same_state)
    options = {"noise_level": 6, "noise_model": model, "scale_y": 512, "y_quant_bits": 16}
    layer = WitinGru(5, 20, layer_config=config(**options))
    x, h = torch.randn(1, 3, 5).expand(4, 3, 5), torch.rand(1, 3, 20) * 2 - 1
    layer(x, h)
    inputs, *hidden = outputs
    layer.set_mode("quant")
    outputs.clear()
    layer(x, h)
    clean_input, *clean_hidden = outputs
    deviations = (
        [(inputs - clean_input)[t] for t in range(4)],
        [a - b for a, b in zip(hidden, clean_hidden, strict=True)],
    )
    for steps in deviations:
        assert steps[0].abs().max() > 0.02
        for later in steps[1:]:
            assert torch.equal(later, steps[0]) is equal


def test_sequence_under_constant_input_settles() -> None:
    """With fixed cells and a constant input the state comes to rest; a loop of single cells draws and never does."""
    torch.manual_seed(3)
    layer = WitinGru(4, 12, layer_config=config(noise_level=6))
    cell = WitinGruCell(4, 12, layer_config=config(noise_level=6))
    cell.load_state_dict({name.removesuffix("_l0"): v for name, v in layer.state_dict().items()}, strict=False)
    x = torch.rand(1, 2, 4)
    states = layer(x.expand(150, 2, 4))[0]
    assert torch.equal(states[100:], states[100:101].expand(50, 2, 12))
    h: Tensor | None = None
    looped = [h := cell(x[0], h) for _ in range(150)]
    assert len({tuple(h.flatten().tolist()) for h in looped[100:]}) > 45


def test_each_forward_and_each_operation_draws_anew() -> None:
    torch.manual_seed(0)
    layer = WitinGru(4, 12, layer_config=config(noise_level=6))
    x = torch.randn(3, 2, 4)
    torch.manual_seed(1)
    first = layer(x)[0]
    second = layer(x)[0]
    torch.manual_seed(1)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(first, second)


def spec(**options: Any) -> ArraySpec:
    """An operation whose output is its accumulator: all scales 1, 24 bits of output."""
    return ArraySpec(1.0, 1.0, 1.0, **{"y_bits": 24, "noise": NORMAL, "noise_level": 4.0, "where": "here"} | options)


@pytest.mark.parametrize("negative", list(HandleNegInType))
@pytest.mark.parametrize("compute", [array_forward, array_rule])
def test_a_held_draw_is_the_draw_of_its_seed_and_stays_what_it_is(compute: Any, negative: HandleNegInType) -> None:
    numbers = spec(negative=negative, shift_num=3.0)
    x, weight = torch.randint(-100, 100, (6, 7)).float(), torch.randint(-127, 128, (9, 7)).float()
    bias = torch.randint(-9, 9, (9,)) * 128.0
    torch.manual_seed(5)
    want = compute(x, weight, bias, LINEAR, numbers)[0]
    torch.manual_seed(5)
    held = draw_cells(weight, LINEAR, numbers)
    assert held is not None
    before = [eps.clone() for eps in (*held.passes, *held.rows)]
    named = {"draw": held}
    for _ in range(2):
        assert torch.equal(compute(x, weight, bias, LINEAR, numbers, **named)[0], want)
    assert all(torch.equal(a, b) for a, b in zip(before, (*held.passes, *held.rows), strict=True))


def test_deviation_of_a_held_draw_has_the_size_of_the_formula() -> None:
    numbers = spec(negative=HandleNegInType.PN, bias_rows=8)
    torch.manual_seed(0)
    q_x, q_w = torch.randint(-128, 128, (1, 30)).float(), torch.randint(-127, 128, (1, 30)).float()
    weight, bias = q_w.expand(40_000, 30).contiguous(), torch.full((40_000,), 1024.0)
    held = draw_cells(weight, LINEAR, numbers)
    y = array_forward(q_x, weight, bias, LINEAR, numbers, False, held)[0][0]
    cells = (q_x * (C0 + K * q_w.abs())).square().sum() + 8 * (128 * (C0 + K * 1)) ** 2
    assert (y - (q_x * q_w).sum() - 1024).std().item() == pytest.approx(4 * cells.sqrt().item(), rel=0.02)


def test_the_two_passes_of_pn_meet_different_cells() -> None:
    numbers = spec(negative=HandleNegInType.PN)
    torch.manual_seed(0)
    weight, bias = torch.full((20_000, 8), 60.0), torch.zeros(20_000)
    held = draw_cells(weight, LINEAR, numbers)
    assert isinstance(held, CellDraw)
    assert [tuple(eps.shape) for eps in held.passes] == [(20_000, 16)]  # one array of twice the inputs
    x = torch.full((1, 8), 100.0)
    up, down, rest = (
        array_forward(v, weight, bias, LINEAR, numbers, False, held)[0][0] for v in (x, -x, torch.zeros_like(x))
    )
    up, down = up - rest, down - rest  # without the bias rows, which both share
    correlation = torch.corrcoef(torch.stack([up, down]))[0, 1].item()
    assert abs(correlation) < 0.03
    assert up.std().item() == pytest.approx(down.std().item(), rel=0.03)


def test_no_draw_without_noise_of_cells() -> None:
    weight = torch.ones(2, 3)
    assert draw_cells(weight, LINEAR, spec(noise=None, noise_level=0.0)) is None

"""Noise effects: deviation, derivative, draws under torch's seed."""

import pytest
import torch

from chipfit.noise.effects import BIAS_DRIVE, AffineLaw, CellNoise, ColumnNoise, draw_shared_offset

LAW = AffineLaw(0.3145, 0.015605)
NOISE = CellNoise(LAW)


def test_law():
    assert LAW.std(torch.tensor([0.0, 100.0, -100.0])).tolist() == pytest.approx([0.3145, 1.875, 1.875])
    codes = torch.tensor([-5.0])
    LAW.std(codes)
    assert codes.item() == -5.0


@pytest.mark.parametrize("level", [1, 4, 9, 2.5])
def test_disturb_is_the_written_formula(level):
    torch.manual_seed(0)
    codes, eps = torch.randint(-128, 128, (40, 30)).float(), torch.randn(40, 30)
    noisy, factor = NOISE.disturb(codes.clone(), level, eps.clone())
    torch.testing.assert_close(noisy, codes + level * (0.3145 + 0.015605 * codes.abs()) * eps)
    torch.testing.assert_close(factor, 1 + level * 0.015605 * codes.sign() * eps)


def test_factor_is_the_derivative():
    codes = torch.tensor([-100.0, -1.0, 1.0, 90.0], dtype=torch.float64, requires_grad=True)
    eps = torch.tensor([0.3, -2.0, 1.1, -0.7], dtype=torch.float64)
    _, factor = NOISE.disturb(codes.detach(), 3.0, eps.clone())
    (codes + 3.0 * (0.3145 + 0.015605 * codes.abs()) * eps).sum().backward()
    torch.testing.assert_close(factor, codes.grad)


@pytest.mark.parametrize("code", [0, 60, -127])
def test_std_of_many_draws(code):
    torch.manual_seed(1)
    noisy, _ = NOISE.disturb(torch.full((100_000,), float(code)), 4, torch.randn(100_000))
    error = noisy - code
    std = 4 * (0.3145 + 0.015605 * abs(code))
    assert error.std().item() == pytest.approx(std, rel=0.02)
    assert abs(error.mean().item()) < 4 * std / 100_000**0.5
    assert (error / std).pow(4).mean().item() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_rows_are_drawn_one_by_one(rows):
    bias = torch.tensor([0.0, 128.0 * 100, -128.0 * 900])
    torch.manual_seed(5)
    eps = torch.randn(rows, 3)
    torch.manual_seed(5)
    noisy, factor = NOISE.disturb_rows(bias.clone(), rows, 4)
    cell = bias / (BIAS_DRIVE * rows)
    expected = bias + BIAS_DRIVE * (4 * (0.3145 + 0.015605 * cell.abs()) * eps).sum(0)
    torch.testing.assert_close(noisy, expected)
    torch.testing.assert_close(factor, 1 + 4 * 0.015605 * bias.sign() * eps.mean(0))


def test_rows_leave_the_bias_alone():
    bias = torch.tensor([128.0, -256.0])
    NOISE.disturb_rows(bias, 8, 4)
    assert bias.tolist() == [128.0, -256.0]


def test_same_seed_same_noise_and_next_draw_differs():
    bias = torch.zeros(4)
    torch.manual_seed(3)
    first, second = NOISE.disturb_rows(bias, 8, 1)[0], NOISE.disturb_rows(bias, 8, 1)[0]
    torch.manual_seed(3)
    assert torch.equal(NOISE.disturb_rows(bias, 8, 1)[0], first)
    assert not torch.equal(first, second)


def test_column_noise_interpolates_and_spares_zero_weights():
    noise = ColumnNoise(90.0, (0.0, 64.0, 127.0), (0.05, 0.7, 1.2), 1.0)
    codes = torch.tensor([0.0, 32.0, -64.0, 95.5, 127.0, -128.0])
    std = noise.cell_variance(codes, 2.0).sqrt() / 2
    beyond = 0.7 + (128 - 64) * 0.5 / 63  # the last line goes on past its knot
    assert std.tolist() == pytest.approx([0.0, 0.375, 0.7, 0.95, 1.2, beyond], rel=1e-6)


def test_column_noise_draw():
    noise = ColumnNoise(90.0, (0.0, 127.0), (0.0, 1.0), 1.0)
    torch.manual_seed(0)
    assert noise.draw(torch.zeros(100_000), 4).std().item() == pytest.approx(360, rel=0.02)
    assert noise.draw(torch.full((100_000,), 480.0**2), 4).std().item() == pytest.approx(600, rel=0.02)


def test_shared_offset_is_one_number():
    torch.manual_seed(2)
    draws = torch.stack([draw_shared_offset(torch.zeros(7, 3), 5.0) for _ in range(4000)])
    assert draws.shape == (4000,)
    assert draws.std().item() == pytest.approx(5, rel=0.05)

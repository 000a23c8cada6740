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
    assert torch.equal(NOISE.disturb(codes, level, eps), codes + (0.3145 + 0.015605 * codes.abs()) * level * eps)


@pytest.mark.parametrize("level", [1, 4, 9, 2.5])
def test_gradient_is_autograds(level):
    torch.manual_seed(0)
    codes, eps, up = (
        torch.randint(-128, 128, (40, 30)).float().requires_grad_(),
        torch.randn(40, 30),
        torch.randn(40, 30),
    )
    NOISE.disturb(codes, level, eps).backward(up)
    assert torch.equal(NOISE.gradient(up.clone(), codes.detach().sign() * eps, level), codes.grad)
    torch.testing.assert_close(codes.grad, up * (1 + level * 0.015605 * codes.detach().sign() * eps))


@pytest.mark.parametrize("code", [0, 60, -127])
def test_std_of_many_draws(code):
    torch.manual_seed(1)
    noisy = NOISE.disturb(torch.full((100_000,), float(code)), 4, torch.randn(100_000))
    error = noisy - code
    std = 4 * (0.3145 + 0.015605 * abs(code))
    assert error.std().item() == pytest.approx(std, rel=0.02)
    assert abs(error.mean().item()) < 4 * std / 100_000**0.5
    assert (error / std).pow(4).mean().item() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("rows", [1, 8, 32])
def test_rows_add_their_cells(rows):
    torch.manual_seed(5)
    bias, eps, up = (
        torch.tensor([0.0, 128.0 * 100, -128.0 * 900]).requires_grad_(),
        torch.randn(rows, 3),
        torch.randn(3),
    )
    noisy = NOISE.disturb_rows(bias, rows, 4, eps)
    noisy.backward(up)
    clean = bias.detach()
    cell = clean / (BIAS_DRIVE * rows)
    torch.testing.assert_close(noisy, clean + BIAS_DRIVE * (4 * (0.3145 + 0.015605 * cell.abs()) * eps).sum(0))
    assert torch.equal(NOISE.rows_gradient(up, clean.sign() * eps, 4), bias.grad)
    torch.testing.assert_close(bias.grad, up * (1 + 4 * 0.015605 * clean.sign() * eps.mean(0)))


def test_arguments_stay_as_they_are():
    bias, eps, grad = torch.tensor([128.0, -256.0]), torch.ones(8, 2), torch.ones(2)
    NOISE.disturb_rows(bias, 8, 4, eps)
    NOISE.rows_gradient(grad, eps, 4)
    NOISE.disturb(bias, 4, eps[0])
    assert bias.tolist() == [128.0, -256.0]
    assert eps.eq(1).all()
    assert grad.tolist() == [1.0, 1.0]


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

"""What a forward does to its input before the first layers does not cost them the border of zero, nor any codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.chips.ingenic.operators.bridges import ToFeature
from chipfit.cli.main import main
from chipfit.errors import CalibrationError, InvalidValueError
from support.conversion import CHIPS, quality


class First(nn.Module):
    """A network whose forward begins with anything."""

    def __init__(self, begin: Callable[[Any, Tensor], Tensor], channels: int = 3) -> None:
        super().__init__()
        self.begin = begin
        self.conv, self.again = nn.Conv2d(channels, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.head, self.norm = nn.Linear(32, 10), nn.BatchNorm2d(channels)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.norm.running_mean.uniform_(0.3, 0.6)
        self.norm.running_var.uniform_(0.05, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.again(F.relu(self.conv(self.begin(self, x))))).mean((2, 3)))


MOVES = {
    "unsqueeze": (lambda _, x: x.unsqueeze(1), (16, 16)),
    "view": (lambda _, x: x.view(-1, 1, 16, 16), (256,)),
    "permute": (lambda _, x: x.permute(0, 3, 1, 2), (16, 16, 1)),
    "transpose, unsqueeze": (lambda _, x: x.transpose(1, 2).unsqueeze(1), (16, 16)),
    "getitem": (lambda _, x: x[:, None], (16, 16)),
    "contiguous": (lambda _, x: x.unsqueeze(1).contiguous(), (16, 16)),
    "pad": (lambda _, x: F.pad(x.unsqueeze(1), (1, 2, 0, 1)), (16, 16)),
    "dropout": (lambda self, x: F.dropout(x.unsqueeze(1), 0.1, self.training), (16, 16)),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("target", CHIPS)
def test_moving_an_input_costs_nothing(target: str, name: str) -> None:
    """Row 4: behind a reshape the first convolution had a border of -1, and 2.1 dB instead of 37.1."""
    torch.manual_seed(0)
    begin, shape = MOVES[name]
    net = First(begin, channels=1)
    assert quality(net, target, torch.randn(8, *shape)) > 24


NORMALISED = {
    "x - .5": lambda _, x: x - 0.5,
    "(x - .5) / .5": lambda _, x: (x - 0.5) / 0.5,
    "2 * x - 1": lambda _, x: 2 * x - 1,
    "sub, div": lambda _, x: x.sub(0.5).div(0.25),
    "1 - x": lambda _, x: 1 - x,
    "rsub": lambda _, x: torch.rsub(x, 0.75),
    "-x": lambda _, x: -x,
    "-=": lambda _, x: x.clone().sub_(0.25),
    "buffers": lambda self, x: (x - self.mean[None, :, None, None]) / self.std,
    "view": lambda self, x: (x - self.mean.view(1, -1, 1, 1)).mul(1 / self.std),
    "batch norm": lambda self, x: self.norm(x),
    "moved too": lambda _, x: (x.permute(0, 2, 3, 1) * 2 - 1).permute(0, 3, 1, 2),
    "border of the normalised": lambda _, x: F.pad((x - 0.5) / 0.5, (1, 1, 0, 1)),
}


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize("target", CHIPS)
def test_a_normalisation_of_an_input_costs_nothing(target: str, name: str) -> None:
    """On the WTM2101 half of these could not be calibrated; on T40 they cost up to 40 dB."""
    torch.manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 10, 10)) / 255
    assert quality(First(NORMALISED[name]), target, x) > 24


def test_a_normalisation_is_part_of_the_preparation() -> None:
    """No operator of the chip computes it, and it is where a user looks for it."""
    net = First(NORMALISED["buffers"])
    converted = chipfit.convert(net.eval(), "t40", torch.rand(2, 3, 8, 8))
    (prepare,) = (layer for layer in converted.modules() if isinstance(layer, ToFeature))
    torch.testing.assert_close(prepare.gain, 1 / net.std.flatten())
    torch.testing.assert_close(prepare.bias, -net.mean / net.std.flatten())
    assert converted.meta["on_cpu"] == {}
    rows = {row.name: row.operator for row in chipfit.check(net, "t40", torch.rand(2, 3, 8, 8)).rows}
    assert rows["mul"] == rows["add"] == rows["div"] == "in the input's preparation"


def test_what_is_learned_stays_an_operation() -> None:
    class Learned(First):
        def __init__(self) -> None:
            super().__init__(lambda self, x: x * self.gain)
            self.gain = nn.Parameter(torch.full((1, 3, 1, 1), 2.0))

    converted = chipfit.convert(Learned().eval(), "t40", torch.rand(2, 3, 8, 8))
    assert "gain" in dict(converted.named_parameters())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


@pytest.mark.parametrize("target", CHIPS)
def test_data_with_negatives_after_an_example_without(target: str) -> None:
    """Row 8: 2.3 dB instead of 35.6, and nobody said so."""
    torch.manual_seed(0)
    net, data = mlp(), torch.randn(64, 64)
    converted = chipfit.convert(net, target, torch.rand(4, 64))
    with pytest.raises(CalibrationError, match=r"negative values where the example of convert had none.*input_range"):
        chipfit.calibrate(converted, [data])
    assert quality(net, target, torch.rand(4, 64), data, input_range=(-4, 4)) > 24
    assert quality(net, target, torch.randn(4, 64), data) > 24


@pytest.mark.parametrize("target", CHIPS)
def test_what_rounding_leaves_below_zero_is_no_negative_value(target: str) -> None:
    converted = chipfit.convert(mlp(), target, torch.rand(4, 64))
    chipfit.calibrate(converted, [torch.rand(8, 64) - 1e-4])


@pytest.mark.parametrize("target", CHIPS)
def test_each_input_has_a_range(target: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.a(x) + self.b(y)

    example = torch.rand(4, 32), torch.rand(4, 32)
    converted = chipfit.convert(Two().eval(), target, example, input_range=[(0, 1), (-1, 1)])
    assert converted.meta["unsigned_inputs"] == [0]
    with pytest.raises(CalibrationError, match="at input 1"):
        chipfit.calibrate(converted, [((-example[0], example[1]),)])
    chipfit.calibrate(converted, [((example[0], -example[1]),)])
    for wrong in [(1, 0), (0, 1, 2), "ab", [(0, 1)], (0, float("nan"))]:
        with pytest.raises(InvalidValueError, match="input_range: no range of an input"):
            chipfit.convert(Two().eval(), target, example, input_range=wrong)


def test_check_counts_the_rows_of_the_range() -> None:
    net = nn.Sequential(nn.Linear(64, 10)).eval()
    assert chipfit.check(net, "wtm2101", torch.rand(1, 64)).rows[0].rows == 64
    assert chipfit.check(net, "wtm2101", torch.rand(1, 64), input_range=(-1, 1)).rows[0].rows == 128


def test_the_command_line_takes_a_range(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["check", "torch.nn:ReLU", "1,4", "--chip", "wtm2101"]
    assert main([*given, "--input_range=-1,1"]) == 0
    assert main([*given, "--input_range=1,-1"]) == 2
    assert "two numbers such as -1,1" in capsys.readouterr().err

"""`check`: the table, its numbers, and the suggestions."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from chipfit.convert import check
from chipfit.vendor import chip

WTM, T40, T02 = chip("wtm2101"), chip("t40"), chip("t02")


def test_numbers_of_a_small_network() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10), nn.Softmax(1)
    )
    report = check(net, WTM, torch.randn(4, 3, 8, 8))
    rows = {row.name: row for row in report.rows}
    assert list(rows) == ["0", "2", "3", "4", "5"]
    conv, linear, softmax = rows["0"], rows["4"], rows["5"]
    assert (conv.macs, conv.parameters, conv.bytes) == (36 * 8 * 27, 8 * 27 + 8, 8 * 27 + 8 * 4)
    assert (conv.operator, conv.unit, conv.rows, conv.columns) == ("WitinConv2d", "array", 54, 8)  # signed: doubled
    assert (linear.macs, linear.rows, linear.columns) == (2880, 288, 10)
    assert softmax.unit == "cpu" and softmax.problems == ("the chip has no softmax: runs on the CPU core",)
    assert (report.coverage, report.ok, report.folded) == (1.0, False, ("1",))
    assert json.loads(json.dumps(report.as_dict()))["macs"] == 7776 + 2880
    assert "100.0 % of 10,656 MACs on the chip" in str(report)
    assert "Leave softmax" in " ".join(str(report).split())


def test_rows_and_columns_beyond_the_array() -> None:
    report = check(nn.Sequential(nn.Linear(600, 1500), nn.ReLU(), nn.Linear(1500, 3)), WTM, torch.randn(1, 600))
    first, _, last = report.rows
    assert first.problems == ("1200 rows, at most 896 an operation", "1500 columns, at most 1024 side by side")
    assert first.suggestions[0].startswith("Split the inputs in two and add the results, or put a ReLU before it")
    assert last.problems == ("1500 rows, at most 896 an operation",)
    assert check(nn.Sequential(nn.Linear(896, 1024)), WTM, torch.rand(1, 896)).ok


def test_multiplications_on_the_cpu_core_count_against_coverage() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, stride=2, groups=2), nn.Conv2d(4, 4, 1))
    report = check(net, WTM, torch.rand(1, 4, 5, 5))
    assert [row.macs for row in report.rows] == [25 * 4 * 2 * 4, 100 * 16]
    assert report.coverage == pytest.approx(1600 / 2400)


def test_recurrent_multiplications() -> None:
    report = check(nn.Sequential(nn.GRU(6, 4, batch_first=True)), WTM, torch.randn(3, 7, 6))
    assert report.rows[0].macs == 7 * 3 * (4 * 6 + 4 * 4)


@pytest.mark.parametrize(
    ("target", "net", "shape", "problem", "suggestion"),
    [
        (T40, nn.SiLU(), (32, 4, 4), "T40 has no silu: runs on the CPU core", "Use Hswish instead, torch's Hardswish."),
        (
            T40,
            nn.Conv2d(48, 64, 3),
            (48, 8, 8),
            "48 input channels, multiples of 32",
            "Pad the 48 input channels to 64.",
        ),
        (
            T02,
            nn.Conv2d(16, 16, 7),
            (16, 9, 9),
            "T02 pads 3x3 kernels by 1, not (7, 7) by (0, 0): runs on the CPU core",
            "Use 3 3x3 kernel(s) in a row, with padding=1.",
        ),
        (T40, nn.Conv2d(64, 64, 3, groups=4), (64, 8, 8), "4 groups of 16 channels, multiples of 32", "Use groups=1"),
        (
            chip("txx"),
            nn.Conv2d(16, 16, 3, dilation=2),
            (16, 9, 9),
            "dilation (2, 2), only 1: runs on the CPU core",
            "Use a larger kernel",
        ),
        (
            T40,
            nn.PixelShuffle(2),
            (64, 4, 4),
            "16 output channels, multiples of 32: runs on the CPU core",
            "Pad the 16 output channels to 32.",
        ),
    ],
)
def test_limits_of_ingenic_targets(
    target, net: nn.Module, shape: tuple[int, ...], problem: str, suggestion: str
) -> None:
    (row,) = check(nn.Sequential(net), target, torch.rand(1, *shape)).rows
    assert row.problems == (problem,)
    assert row.suggestions[0].startswith(suggestion)


def test_what_fits_an_ingenic_target_has_no_problem() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU6(), nn.Conv2d(32, 32, 3, groups=32), nn.Hardswish()
    )
    report = check(net, T40, torch.rand(1, 3, 9, 9))
    assert [row.operator for row in report.rows] == ["Conv2D", "inside 0", "DepthwiseConv2D", "inside 3"]
    assert report.ok and report.coverage == 1.0


@pytest.mark.parametrize(("stride", "size", "fits"), [(1, 8, True), (2, 8, False), (2, 9, True), (4, 8, False)])
def test_borders_that_are_not_the_chips_are_operators(stride: int, size: int, fits: bool) -> None:
    """3 pixels at stride 2 over 8 need one pixel of border, and the chip puts it after."""
    (row,) = check(nn.Sequential(nn.Conv2d(32, 32, 3, stride, 1)), T40, torch.rand(1, 32, size, size)).rows
    assert row.operator == ("Conv2D" if fits else "Pad, Conv2D")
    assert (row.unit, row.problems) == ("npu", ())


def test_a_border_of_signed_codes_is_a_problem_on_the_t40_family() -> None:
    net = nn.Sequential(nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 7))
    rows = check(net, T40, torch.randn(1, 32, 9, 9)).rows
    assert [row.problems for row in rows] == [(), ("signed codes have no zero: the border is -1",), ()]
    assert rows[1].suggestions == ("Put a ReLU before it, or fine-tune.",)
    assert check(net, chip("txx"), torch.randn(1, 32, 9, 9)).ok  # two's complement has a zero


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.plain = nn.Linear(16, 16), nn.LSTMCell(16, 16), nn.RNNCell(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.plain(self.cell(self.a(x))[0])
        return y


@pytest.mark.parametrize("target", ["wtm2101", "t40"])
def test_cells_on_the_cpu_core_are_counted(target: str) -> None:
    """An LSTMCell was in neither number of "100 % of MACs"."""
    report = check(Cells().eval(), target, torch.rand(2, 16))
    assert {row.name: row.macs for row in report.rows if row.macs} == {"a": 256, "cell": 2048, "plain": 512}
    assert report.coverage == 256 / 2816

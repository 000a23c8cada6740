"""How a report of `check` looks: exact small tables, and large networks within the width."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from chipfit.convert import check
from chipfit.convert.checking import Report, Row
from chipfit.vendor import chip

WTM = chip("wtm2101")


def row(name: str, kind: str, operator: str, unit: str, *numbers: int, **notes: tuple[str, ...]) -> Row:
    macs, parameters, size = numbers or (0, 0, 0)
    notes = {"problems": (), "suggestions": (), **notes}
    return Row(name, kind, operator, unit, macs, parameters, size, 0, 0, line="", **notes)


NO_SILU = {"problems": ("no silu: runs on the CPU core",), "suggestions": ("Use Hardswish instead.",)}
NARROW = ("16 input channels, multiples of 32", "8 input channels, multiples of 32")
CELLS = Report(
    "t40",
    (
        row("stem.body.conv", "conv2d", "Conv2D", "npu", 21_168, 448, 496, suggestions=("Use three 3x3 kernels.",)),
        row("stem.body.act", "silu", "", "cpu", **NO_SILU),
        row(
            "cell.body.conv",
            "conv2d",
            "Conv2D",
            "npu",
            57_600,
            2_320,
            2_368,
            problems=NARROW[:1],
            suggestions=("Pad.",),
        ),
        row("cell.body.act", "silu", "", "cpu", **NO_SILU),
        row("cell.body.out", "conv2d", "Conv2D", "npu", 900, 9_999_999, 0, problems=NARROW[1:], suggestions=("Pad.",)),
        row("softmax", "softmax", "", "cpu", problems=("no softmax: runs on the CPU core",)),
    ),
    (),
)


def test_a_table_at_80_columns() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 144, 10), nn.Softmax(1))
    report = check(net, WTM, torch.rand(1, 3, 14, 14))
    assert (
        report.text(80)
        == """\
wtm2101: 100.0 % of 42,624 MACs on the chip; 5 operations, 2 with problems;
11,736 of 1,835,008 cells (an estimate)

operation  chip operator  unit      MACs  params  bytes    array  see
─────────────────────────────────────────────────────────────────────
0          WitinConv2d    array    31.1k     224    248     27x8
1          Relu           digital
2          moves codes    digital
3          WitinLinear    array    11.5k   11.5k  11.6k  1152x10  1
4          (softmax)      cpu                                     2
─────────────────────────────────────────────────────────────────────
total                              42.6k   11.8k  11.8k

[1] 1152 rows, at most 896 an operation: 3
    → Split the inputs in two and add the results.
[2] the chip has no softmax: runs on the CPU core: 4
    → Leave softmax to the code that reads the outputs, or use a sigmoid gate."""
    )


def test_100_columns_say_what_is_computed_and_what_repeats_is_said_once() -> None:
    assert (
        CELLS.text(100)
        == """\
t40: 100.0 % of 79,668 MACs on the chip; 6 operations, 5 with problems

operation       computes  chip operator  unit   MACs  params  bytes  see
────────────────────────────────────────────────────────────────────────
stem.body.conv  conv2d    Conv2D         npu   21.2k     448    496  1
stem.body.act   silu      (silu)         cpu                         2
cell.body.conv  conv2d    Conv2D         npu   57.6k   2.32k  2.37k  3
cell.body.act   silu      (silu)         cpu                         2
cell.body.out   conv2d    Conv2D         npu     900   10.0M         3
softmax         softmax   (softmax)      cpu                         4
────────────────────────────────────────────────────────────────────────
total                                          79.7k   10.0M  2.86k

[1] stem.body.conv
    → Use three 3x3 kernels.
[2] no silu: runs on the CPU core: stem.body.act, cell.body.act
    → Use Hardswish instead.
[3] 16 input channels, multiples of 32: cell.body.conv
    8 input channels, multiples of 32: cell.body.out
    → Pad.
[4] no softmax: runs on the CPU core: softmax"""
    )


def test_a_narrow_terminal_puts_names_under_headings() -> None:
    assert CELLS.text(58).splitlines()[3:14] == [
        "operation  chip operator  unit   MACs  params  bytes  see",
        "─────────────────────────────────────────────────────────",
        "stem.body",
        "  conv     Conv2D         npu   21.2k     448    496  1",
        "  act      (silu)         cpu                         2",
        "cell.body",
        "  conv     Conv2D         npu   57.6k   2.32k  2.37k  3",
        "  act      (silu)         cpu                         2",
        "  out      Conv2D         npu     900   10.0M         3",
        "softmax    (softmax)      cpu                         4",
        "─────────────────────────────────────────────────────────",
    ]


def test_several_operators_stand_below_each_other_where_the_line_is_short() -> None:
    report = check(nn.Sequential(nn.SiLU()), WTM, torch.rand(1, 30))
    assert report.text(80).splitlines()[5] == "0          WitinSigmoid, WitinElementMul  digital"
    assert [line.rstrip() for line in report.text(60).splitlines()[5:7]] == [
        "0          WitinSigmoid,        digital",
        "           WitinElementMul",
    ]


def test_nothing_wrong_leaves_the_last_column_out() -> None:
    report = check(nn.Sequential(nn.Linear(32, 10)), WTM, torch.rand(1, 32))
    assert "see" not in report.text(80) and "[1]" not in report.text(80)


def test_rich_prints_the_same_as_wide_as_its_console() -> None:
    for width in (60, 100):
        console = Console(file=io.StringIO(), width=width)
        console.print(CELLS)
        assert console.file.getvalue() == CELLS.text(width) + "\n"
    assert str(CELLS) == CELLS.text(Console().width)


@pytest.mark.parametrize("target", ["wtm2101", "t40", "t02"])
def test_a_large_network_fits_the_terminal_and_nothing_is_left_out(target: str) -> None:
    zoo = pytest.importorskip("pytorchcv.model_provider", reason="pytorchcv 0.0.67 is installed with --no-deps")
    net = zoo.get_model("mobilenetv2_wd2", pretrained=False).eval()
    report = check(net, chip(target), torch.rand(1, 3, 224, 224))
    for width in (80, 100, 140):
        text = report.text(width)
        assert max(map(len, text.splitlines())) <= width
        table, *notes = text.split("\n[1] ")
        said = " ".join(f"[1] {notes[0] if notes else ''}".split())
        for found in report.rows:
            assert found.name.rsplit(".", 1)[-1] in table
            for words in (*found.problems, *found.suggestions):
                assert words in said
        for suggestion in {words for found in report.rows for words in found.suggestions}:
            assert said.count(f"→ {suggestion}") == 1

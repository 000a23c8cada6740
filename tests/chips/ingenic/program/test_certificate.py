"""The certificate of Ingenic programs: worked out by hand, and never wrong about a random network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.program import ops as ops_ingenic
from chipfit.chips.ingenic.program.ops import Activation, Affine, Combine, Finish, Norm, Requantise
from chipfit.cli import main
from chipfit.errors import UnsupportedError
from chipfit.program import Program, certify, lower, ops, save_program, trace
from chipfit.program.ranges import code_ranges
from chipfit.program.types import VERSION, Grid, Input, Node, ValueType
from support.ingenic import networks as known
from support.ingenic import random_networks as drawn

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def pixels_to(lo: int, hi: int, features: int, *nodes: Node, **tensors: Any) -> Program:
    """Whole numbers from `lo` to `hi` as codes 'q', and what follows."""
    real = ValueType((features,), None)
    codes = Node("q", ops_ingenic.PixelCodes(1.0, lo, hi), ("x",), ValueType((features,), 8))
    return Program(VERSION, "t40", (codes, *nodes), (Input("x", real),), (), tensors)


def linear(finish: Finish, weight: list[list[int]], lo: int, hi: int, **tensors: Any) -> Program:
    """A linear layer 'y' on such codes."""
    op = ops.Accumulate("linear", "w", max(-lo, hi))
    total = Node("sum", op, ("q",), ValueType((len(weight),), 16))
    y = Node("y", finish, ("sum",), ValueType((len(weight),), None if finish.requantise is None else 8), "y")
    return pixels_to(lo, hi, len(weight[0]), total, y, w=torch.tensor(weight), **tensors)


def test_a_layer_worked_out_by_hand() -> None:
    """Sums from -3 to 9 and 0 to 3, halved, on the odd codes -3 to 3 of clip 1."""
    finish = Finish(None, Affine("s", None), requantise=Requantise("odd", 3, 1.0), axis=-1)
    program = linear(finish, [[3, -1], [1, 0]], 0, 3, s=torch.tensor([0.5]))
    data = torch.tensor([[0.0, 3.0], [3.0, 0.0], [1.0, 1.0]])
    assert trace(program, data)["y"].tolist() == [[-3, 1], [3, 3], [3, 1]]
    certificate = certify(program, [data[:1], data[1:]])
    (row,) = certificate.rows
    assert (row.name, row.kind, row.inputs, row.channels) == ("y", "linear", 2, 2)
    assert (row.bound, row.bits, row.exact_in_float32) == (3 * 4, 5, True)
    assert (row.lo, row.hi, row.weight_codes) == (-3, 3, 4)
    assert (row.can_clip_below, row.can_clip_above) == (1, 2)  # -1.5; 4.5 and 1.5
    assert certificate.samples == 3 and row.seen is not None
    assert row.seen.outputs == 6 and row.seen.below == 1 / 6 and row.seen.above == 2 / 6
    assert row.seen.code_use == 3 / 4  # of -3, -1, 1, 3
    assert certify(program).as_dicts()[0]["seen"] is None


def test_a_convolution_of_the_training_kit() -> None:
    """Weight code 3 of scale 1/3 on pixels, clip 2: nothing is clipped. Codes 0, 26 and 128 of 256."""
    conv = chips.Conv2D(
        1, 1, 1, 1, 1, None, enable_bias=False, first_layer=True, target_device="T40",
        **{**known.Q8, "weight_bitwidth": 2, "clip_max_value": 2.0},
    )  # fmt: skip
    torch.nn.init.constant_(conv.Conv2d.weight, 1.0)
    image = torch.tensor([0, 51, 255]).view(1, 1, 1, 3) / 255
    program = lower(torch.nn.Sequential(chips.Preprocess(0, 255.0, "T40"), conv), image)
    (row,) = certify(program, [image]).rows
    assert (row.name, row.kind, row.inputs, row.channels, row.bound, row.bits) == ("1", "conv", 1, 1, 765, 11)
    assert (row.lo, row.hi, row.can_clip_below, row.can_clip_above) == (0, 255, 0, 0)
    assert row.seen is not None and (row.seen.below, row.seen.above, row.seen.code_use) == (0, 0, 3 / 256)


@pytest.mark.parametrize(("clip", "below"), [(0.25, 1), (0.5, 0)])
def test_hswish_is_least_in_the_middle(clip: float, below: int) -> None:
    """From -3 to 3 it is 0 and 3 at the ends, and -0.375 at -1.5."""
    swish, to = Activation("hswish", None, 3.0, 6.0), Requantise("signed", 8, clip)
    (row,) = certify(linear(Finish(activation=swish, requantise=to), [[3]], -1, 1)).rows
    assert (row.can_clip_below, row.can_clip_above) == (below, 1)


def test_a_falling_slope() -> None:
    """Sums from -3 to 3; a slope of -1 makes them 0 to 3, one of 1 leaves them; unsigned codes of clip 4."""
    leaky, to = Activation("leaky", "slope"), Requantise("unsigned", 4, 4.0)
    finish = Finish(activation=leaky, requantise=to, axis=-1)
    (row,) = certify(linear(finish, [[3], [3]], -1, 1, slope=torch.tensor([-1.0, 1.0]))).rows
    assert (row.can_clip_below, row.can_clip_above) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "n", "clip", "clips"),
    [("mul", 8, 8.0, (0, 2)), ("mul", 8, 5.0, (2, 2)), ("add", 8, 8.0, (0, 0)), ("add", 8, 5.0, (2, 0))],
)
def test_combinations_have_their_extremes_at_the_corners(
    kind: Any, n: int, clip: float, clips: tuple[int, int]
) -> None:
    """Codes from -3 to 2: products from -6 to 9, sums from -6 to 4; the highest of signed codes is n - 1."""
    grid = Grid("plain", 1.0)
    op = Combine(kind, grid, grid, requantise=Requantise("signed", n, clip))
    program = pixels_to(-3, 2, 2, Node("y", op, ("q", "q"), ValueType((2,), 8), "y"))
    (row,) = certify(program).rows
    assert (row.kind, row.inputs, row.bound, row.can_clip_below, row.can_clip_above) == (kind, 2, 0, *clips)


def test_means_and_averages() -> None:
    """On Txx a shortcut's 127 is 1.0, which a mean's grid of 1/128 does not hold."""
    grid = Grid("plain", 1.0)
    average = Node("a", ops_ingenic.AverageCodes(grid, grid, 127), ("q", "q"), ValueType((4,), 8), "a")
    total = Node("sum", ops.Sum((1,), False), ("a",), ValueType((), 10))
    mean = Finish(Grid("plain", 4 * 127.0), requantise=Requantise("signed", 128, 1.0))
    program = pixels_to(-1, 1, 4, average, total, Node("m", mean, ("sum",), ValueType((), 8), "m"))
    first, second = certify(program, [torch.ones(2, 4)]).rows
    assert (first.kind, first.inputs, first.bound, first.lo, first.hi) == ("average", 2, 254, -127, 127)
    assert (first.can_clip_below, first.can_clip_above) == (0, 0)
    assert first.seen is not None and first.seen.code_use == 1 / 255
    assert (second.kind, second.inputs, second.bound, second.bits) == ("mean", 4, 508, 10)
    assert (second.can_clip_below, second.can_clip_above) == (0, 1)
    assert second.seen is not None and second.seen.above == 1.0


@pytest.mark.parametrize("windows", [{}, {"kernel": (1, 4), "stride": (1, 4)}])
def test_float_means(windows: dict[str, Any]) -> None:
    """They round in float32 and have no sum of codes; 127 is 1.0, which the grid of 1/128 does not hold."""
    nodes = [
        Node("q", ops_ingenic.PixelCodes(1.0, -127, 127), ("x",), ValueType((1, 1, 4), 8)),
        Node("s", ops_ingenic.FloatMean(Grid("plain", 127.0), **windows), ("q",), ValueType((1, 1, 1), None)),
        Node("m", Finish(requantise=Requantise("signed", 128, 1.0)), ("s",), ValueType((1, 1, 1), 8), "m"),
    ]
    program = Program(VERSION, "txx", tuple(nodes), (Input("x", ValueType((1, 1, 4), None)),), (), {})
    (row,) = certify(program, [torch.tensor([127.0, 127, 127, 127, 0, 127, 127, 127]).view(2, 1, 1, 4)]).rows
    assert (row.name, row.kind, row.inputs, row.channels, row.bound) == ("m", "mean", 4, 1, 0)
    assert (row.can_clip_below, row.can_clip_above) == (0, 1)
    assert row.seen is not None and row.seen.above == 0.5


def test_real_numbers_can_lie_anywhere() -> None:
    finish = Finish(norm=Norm("m", "g", "b"), requantise=Requantise("unsigned", 255, 6.0))
    tensors = {"m": torch.zeros(3), "g": torch.ones(3), "b": torch.zeros(3)}
    node = Node("y", finish, ("x",), ValueType((3, 2), 8, False), "y")
    program = Program(VERSION, "t40", (node,), (Input("x", ValueType((3, 2), None)),), (), tensors)
    (row,) = certify(program).rows
    assert (row.kind, row.channels, row.can_clip_below, row.can_clip_above) == ("normalise", 3, 3, 3)


@pytest.mark.parametrize(
    ("divisor", "value", "below", "above"),
    [
        (None, 6.1, 0, 0),
        (None, 6.3, 0, 1),
        (2.0, 12.2, 0, 0),
        (2.0, 12.6, 0, 1),
        (None, -0.1, 0, 0),
        (None, -0.3, 1, 0),
    ],
)
def test_half_a_code_beyond_the_end_is_still_the_end(divisor: Any, value: float, below: int, above: int) -> None:
    finish = Finish(requantise=Requantise("unsigned", 15, 6.0, divisor))
    node = Node("y", finish, ("x",), ValueType((1,), 4, False), "y")
    program = Program(VERSION, "t40", (node,), (Input("x", ValueType((1,), None)),), (), {})
    (row,) = certify(program, [torch.tensor([[value]])]).rows
    assert row.seen is not None and (row.seen.below, row.seen.above) == (below, above)


def test_what_is_summed_in_float64_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(8)
    net = known.trained(known.Digits(8, "T40"), known.pixels(16, 1, 8, 8))
    program = lower(net, known.pixels(2, 1, 8, 8))
    certificate = certify(program)
    names = ["conv0", "conv1", "conv2", "conv3", "conv4", "shortcut", "bn1", "gap", "fc1", "fc2"]
    assert [row.name for row in certificate.rows] == names
    assert certificate.in_float64 == ("conv2", "conv4")  # 576 products of up to 255 * 255
    bound = int(program.tensors["conv2.weight"].abs().flatten(1).sum(1).max()) * 255
    assert certificate.rows[2].bound == bound > 1 << 24
    assert certificate.rows[-1].lo is None and certificate.rows[-1].weight_codes is not None
    save_program(tmp_path, program)
    assert main(["certify", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "One float32 sum may not be exact; computed in pieces or in float64: conv2, conv4" in printed
    assert all(name in printed for name in names) and "23 bits" in printed


def test_ranges_of_what_moves_codes() -> None:
    """A border, a filling and a table lie outside the range of the codes beside them."""
    shape = ValueType((2, 3, 4), 8)
    nodes = (
        Node("pad", ops.Pad((1, 1), "constant", -9), ("q",), shape),
        Node("fill", ops_ingenic.Enlarge((2, 2), "zero", 9), ("q",), shape),
        Node("repeat", ops_ingenic.Enlarge((2, 2), "nearest", 0), ("fill",), shape),
        Node("max", ops_ingenic.Maximum(), ("pad", "fill"), shape),
        Node("cat", ops.Cat(1), ("pad", "repeat"), shape),
        Node("pool", ops.SumPool((3, 2), (1, 1)), ("pad",), shape),
        Node("sum", ops.Sum((2, -1), False), ("q",), shape),
        Node("rows", ops_ingenic.TableRows("t"), ("x",), shape),
    )
    program = pixels_to(-3, 2, 24, *nodes, t=torch.tensor([[4, 60], [17, 5]]))
    program = replace(program, nodes=(replace(program.nodes[0], output=shape), *nodes))
    assert code_ranges(program) == {
        "q": (-3, 2),
        "pad": (-9, 2),
        "fill": (-3, 9),
        "repeat": (-3, 9),
        "max": (-3, 9),
        "cat": (-9, 9),
        "pool": (-54, 12),
        "sum": (-36, 24),
        "rows": (4, 60),
    }


def test_number_of_summands_needs_the_shape() -> None:
    total = Node("sum", ops.Sum((0,), False), ("q",), ValueType(None, 16))
    finish = Finish(Grid("plain", 4.0), requantise=Requantise("signed", 8, 1.0))
    program = pixels_to(-3, 2, 2, total, Node("y", finish, ("sum",), ValueType(None, 8), "y"))
    with pytest.raises(UnsupportedError, match="number of summands"):
        certify(program)


@pytest.mark.slow
@given(drawn.SEEDS)
@settings(max_examples=40, deadline=None)
def test_no_network_leaves_its_ranges(seed: int) -> None:
    """No code outside `code_ranges`, and nothing clipped that the static part calls impossible."""
    net, example, more = drawn.draw(seed, ends=False)
    try:
        program = lower(net, example)
    except UnsupportedError:
        return
    edges = trace(program, more)
    for name, (lo, hi) in code_ranges(program).items():
        assert lo <= int(edges[name].min()) and int(edges[name].max()) <= hi, name
    for row in certify(program, [more]).rows:
        assert row.seen is not None and row.seen.outputs > 0
        assert row.can_clip_below > 0 or not row.seen.below, row
        assert row.can_clip_above > 0 or not row.seen.above, row
        sums = edges.get(f"{row.name}.sum")
        assert sums is None or int(sums.abs().max()) <= row.bound

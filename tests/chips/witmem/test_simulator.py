"""Files for the vendor's simulator: read back by hand, and computed by a small simulator of the test's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import chipfit
from chipfit.chips.witmem.program.ops import arrays
from chipfit.errors import FileFormatError, InvalidValueError, UnsupportedError
from chipfit.export import export
from chipfit.program.core import ops
from chipfit.program.types import Program, ValueType
from witin_nn import HandleNegInType, WitinLayerConfig, WitinLinear

PLACES = "0,4,0,5,0,7,256\n100,102,6,10,8,15,1024\n"
"""Of the network `two_layers`: 6 -> 5, ReLU, 5 -> 3."""


def simulated(folder: Path, places: str, relus: list[bool], dtype: type) -> dict[int, list[int]]:
    """What the chip makes of the frames, from map.txt and the compiled placement alone (spec, sections 1 and 5)."""
    cells = np.array([line.split() for line in (folder / "map.txt").read_text().splitlines()], dtype=np.int64)
    assert cells.shape == (2080, 1024)
    found = {}
    for frame in sorted((folder / "in" / "net0").iterdir()):
        x = np.fromfile(frame, dtype=dtype).astype(np.int64)
        for line, relu in zip(places.split(), relus, strict=True):
            x0, x1, y0, y1, b0, b1, g = map(int, line.split(","))
            columns = slice(x0, x1 + 1)
            rows = cells[y0 : y1 + 1, columns]
            driven = np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)]) if len(rows) == 2 * len(x) else x
            assert driven.min() >= 0 and driven.max() <= 255
            total = driven @ rows + 128 * cells[2049 + 2 * b0 : 2049 + 2 * b1 + 1 : 2, columns].sum(0)
            v = total / g
            y = np.clip(np.where(v >= 0, np.floor(v + 0.5), np.trunc(v - 0.25)), -128, 127).astype(np.int64)
            x = np.maximum(y, 0) if relu else y
        found[int(frame.stem.removeprefix("in_"))] = x.tolist()
    return found


def expected(folder: Path) -> dict[int, list[int]]:
    return {
        int(path.stem.removeprefix("final_output_")): [int(code) for code in path.read_text().split()]
        for path in folder.glob("final_output_*.txt")
    }


def test_the_simulator_gives_the_expected_codes(two_layers, tmp_path):
    program, samples = two_layers(), torch.rand(30, 6) * 16
    files = export(program, tmp_path, ["witin_sim"], samples=samples, layers=PLACES)
    folder = tmp_path / "witin_sim"
    assert {*files, folder / "SHA256SUMS"} == {path for path in folder.rglob("*") if path.is_file()}
    assert len(files) == 1 + 2 * 30
    frame = np.fromfile(folder / "in/net0/in_0007.bin", dtype=np.uint8)
    assert frame.tolist() == (samples[7] * 16).round().clamp(0, 255).int().tolist()
    codes = simulated(folder, PLACES, [True, False], np.uint8)
    assert codes == expected(folder)
    reference = (chipfit.program.run(program, samples) * 4).int().tolist()
    assert [codes[n] for n in range(30)] == reference
    assert len({code for frame in codes.values() for code in frame}) > 20


def test_round_trip_of_weights_and_biases(two_layers, tmp_path):
    program = two_layers(3)
    export(program, tmp_path, ["witin_sim"], samples=torch.rand(1, 6), layers=PLACES)
    lines = (tmp_path / "witin_sim" / "map.txt").read_text().splitlines()
    assert len(lines) == 2080 and {len(line.split()) for line in lines} == {1024}
    cells = np.array([line.split() for line in lines], dtype=np.int64)
    for name, weights, bias in (
        ("fc1", cells[0:6, 0:5], cells[2049:2065:2, 0:5]),
        ("fc2", cells[6:11, 100:103], cells[2065:2081:2, 100:103]),
    ):
        assert np.array_equal(weights.T, program.tensors[f"{name}.weight"].numpy())
        assert np.array_equal(128 * bias.sum(0), program.tensors[f"{name}.bias"].numpy())
        weights[:], bias[:] = 0, 0
    assert not cells.any()


def signed_network(inputs: int = 20) -> tuple[nn.Module, torch.Tensor]:
    """Four layers as a user writes them, signed input and PN throughout, one ReLU; trained in the vendor's rounding."""
    torch.manual_seed(4)

    def layer(i: int, o: int) -> WitinLinear:
        config = WitinLayerConfig(1, use_quantization=True, handle_neg_in=HandleNegInType.PN)
        return WitinLinear(i, o, layer_config=config)

    net = nn.Sequential(layer(inputs, 64), layer(64, 48), nn.ReLU(), layer(48, 32), layer(32, 10))
    x = torch.randn(150, inputs)
    chipfit.calibrate(net, [x])
    chipfit.chain_scales(net, x)
    return net, x


def compiled(program: Program, rows: dict[str, int] | None = None) -> str:
    """A placement such as the compiler makes, side by side; `rows` for layers that are not to have theirs twice."""
    lines, x = [], 3
    for name, _, op in arrays(program):
        outputs, inputs = program.tensors[op.weight_tensor].shape
        height = (rows or {}).get(name, 2 * inputs if op.negative == "pn" else inputs)
        lines.append(f"{x},{x + outputs - 1},17,{16 + height},0,15,{op.g:.0f}")
        x += outputs
    return "\n".join(lines) + "\n"


def test_signed_layers_have_their_weights_twice(tmp_path):
    net, x = signed_network()
    program = chipfit.lower(net, x[:1])
    places = compiled(program)
    program.export(tmp_path, ["witin_sim"], samples=x, layers=places)
    folder = tmp_path / "witin_sim"
    cells = np.loadtxt(folder / "map.txt", dtype=np.int64)
    weight = program.tensors["0.weight"].numpy().T
    assert np.array_equal(cells[17:57, 3:67], np.concatenate([weight, -weight]))
    assert np.fromfile(folder / "in/net0/in_0000.bin", np.int8).min() < 0
    codes = simulated(folder, places, [False, True, False, False], np.int8)
    assert codes == expected(folder)
    assert len(codes) == 150 and chipfit.verify(net, program, [x])


def test_a_layer_behind_a_relu_may_stand_once(tmp_path):
    net, x = signed_network()
    program = chipfit.lower(net, x[:1])
    places = compiled(program, {"3": 48})
    program.export(tmp_path, ["witin_sim"], samples=x[:20], layers=places)
    assert simulated(tmp_path / "witin_sim", places, [False, True, False, False], np.int8) == expected(
        tmp_path / "witin_sim"
    )
    with pytest.raises(FileFormatError, match=r"line 2 \(1\): y 17 to 80 are 64 rows; allowed: 128 \(\[W; -W\]"):
        program.export(tmp_path, ["witin_sim"], samples=x[:20], layers=compiled(program, {"1": 64}))


def test_the_placement_is_a_file_or_its_text(two_layers, tmp_path):
    path = tmp_path / "layers.txt"
    path.write_text(PLACES + "\n")
    contents = []
    for number, layers in enumerate((path, str(path), PLACES, PLACES.replace(",", " , "), PLACES.strip())):
        files = export(two_layers(), tmp_path / str(number), "witin_sim", samples=torch.ones(2, 6), layers=layers)
        contents.append([file.read_bytes() for file in files])
    assert all(content == contents[0] for content in contents)


BROKEN = {
    "not a line": ("hello\n100,102,6,10,8,15,1024", r"line 1: 'hello'; allowed: seven integers x_start,"),
    "six numbers": ("0,4,0,5,0,7\n100,102,6,10,8,15,1024", "line 1: '0,4,0,5,0,7'"),
    "a fraction": ("0,4,0,5,0,7,256.5\n100,102,6,10,8,15,1024", "line 1.*seven integers"),
    "a huge number": (f"0,4,0,5,0,7,{10**30}\n100,102,6,10,8,15,1024", "line 1.*seven integers"),
    "too few lines": ("0,4,0,5,0,7,256", "1 lines; allowed: 2, one for each array layer of the program: fc1, fc2"),
    "too many lines": (PLACES + "200,202,0,5,0,7,256", "3 lines; allowed: 2"),
    "columns": ("1020,1024,0,5,0,7,256\n100,102,6,10,8,15,1024", r"line 1 \(fc1\): x_start 1020, x_end 1024; .* 1023"),
    "rows": ("0,4,1788,1793,0,7,256\n100,102,6,10,8,15,1024", "y_start 1788, y_end 1793; allowed: 0 to 1791"),
    "bias rows": ("0,4,0,5,9,16,256\n100,102,6,10,8,15,1024", "bias_start 9, bias_end 16; allowed: 0 to 15"),
    "below zero": ("-1,3,0,5,0,7,256\n100,102,6,10,8,15,1024", "x_start -1"),
    "backwards": ("4,0,0,5,0,7,256\n100,102,6,10,8,15,1024", "x_start 4, x_end 0; .* start before end"),
    "width": ("0,5,0,5,0,7,256\n100,102,6,10,8,15,1024", "x 0 to 5 are 6 columns; allowed: 5, the layer's outputs"),
    "height": (
        "0,4,0,5,0,7,256\n100,102,6,11,8,15,1024",
        r"line 2 \(fc2\): y 6 to 11 are 6 rows; allowed: 5 \(the lay",
    ),
    "twice": ("0,4,0,11,0,7,256\n100,102,16,20,8,15,1024", "y 0 to 11 are 12 rows; allowed: 6"),
    "G": ("0,4,0,5,0,7,512\n100,102,6,10,8,15,1024", r"line 1 \(fc1\): G 512; allowed: 256, the program's"),
    "weights": ("0,4,0,5,0,7,256\n4,6,5,9,8,15,1024", r"line 2 \(fc2\): its weights lie over those of line 1 \(fc1\)"),
    "biases": ("0,4,0,5,0,7,256\n4,6,6,10,7,15,1024", r"line 2 \(fc2\): its bias rows lie over those of line 1"),
    "empty": (" \n", "0 lines; allowed: 2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_placements(two_layers, tmp_path, name):
    text, words = BROKEN[name]
    with pytest.raises(FileFormatError, match=words):
        export(two_layers(), tmp_path, ["witin_sim"], samples=torch.rand(2, 6), layers=text)
    assert list(tmp_path.iterdir()) == []


def test_all_that_is_wrong_is_listed(two_layers, tmp_path):
    with pytest.raises(
        FileFormatError, match=r"5 rules of a placement[\s\S]*line 1[\s\S]*G 9[\s\S]*line 2[\s\S]*3 lines"
    ):
        export(two_layers(), tmp_path, "witin_sim", samples=torch.rand(2, 6), layers="0,3,0,5,0,7,9\n?\n0,0,0,0,8,8,1")


def test_a_bias_that_its_rows_cannot_hold(two_layers, tmp_path):
    program = two_layers()
    program.tensors["fc1.bias"][0] = 128 * 700
    with pytest.raises(
        FileFormatError, match=r"are 2 rows, in which a cell would hold 350; allowed: up to 275, 3 rows"
    ):
        export(program, tmp_path, "witin_sim", samples=torch.rand(2, 6), layers="0,4,0,5,0,1,256\n9,11,6,10,8,15,1024")
    program.tensors["fc1.bias"][0] = 128 * 16 * 275 + 128
    with pytest.raises(FileFormatError, match="more than 16 rows"):
        export(program, tmp_path, "witin_sim", samples=torch.rand(2, 6), layers="0,4,0,5,0,1,256\n9,11,6,10,8,15,1024")


@pytest.mark.parametrize("missing", ["nowhere.txt", "a,b.txt", Path("nowhere.txt"), "bytes"])
def test_files_that_cannot_be_read(two_layers, tmp_path, missing):
    if missing == "bytes":
        missing = tmp_path / "layers.txt"
        missing.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileFormatError, match=r"cannot read the placement|seven integers"):
        export(two_layers(), tmp_path / "out", "witin_sim", samples=torch.rand(2, 6), layers=missing)
    assert not (tmp_path / "out").exists()


def test_what_the_format_needs(two_layers, tmp_path):
    with pytest.raises(InvalidValueError, match=r"layers=, the path of layers.txt or its text"):
        export(two_layers(), tmp_path, "witin_sim", samples=torch.rand(2, 6))
    with pytest.raises(InvalidValueError, match="samples"):
        export(two_layers(), tmp_path, "witin_sim", layers=PLACES)
    with pytest.raises(InvalidValueError, match="samples"):
        export(two_layers(), tmp_path, "witin_sim", samples=torch.rand(0, 6), layers=PLACES)
    with pytest.raises(UnsupportedError, match="t40"):
        program = dataclasses.replace(two_layers(), chip="t40")
        export(program, tmp_path, "witin_sim", samples=torch.rand(2, 6), layers=PLACES)


def refused(program: Program, samples: torch.Tensor, tmp_path: Path, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        export(program, tmp_path, "witin_sim", samples=samples, layers=PLACES)
    assert list(tmp_path.iterdir()) == []


def test_the_trainers_rounding_is_refused(maker, tmp_path):
    made = maker(0)
    x = made.start((6,), 8, signed=False)
    op = made.array_op("fc", ops.Geometry("linear"), made.weights(5, 6), log2_g=8, rounding="witin_nn")
    y = made.node("fc", op, (x,), ValueType((5,), 8))
    refused(made.finish(y), torch.rand(2, 6), tmp_path, "fc: rounds as 'witin_nn', the simulator as 'wtm2101'")


def test_convolutions_are_refused(maker, tmp_path):
    made = maker(0)
    x = made.start((2, 8, 8), 8, signed=False)
    conv = ops.Geometry("conv", (1, 1), (0, 0), (1, 1), (), 1)
    op = made.array_op("conv", conv, made.weights(4, 2, 3, 3), log2_g=8, rounding="wtm2101")
    y = made.node("conv", op, (x,), ValueType((4, 6, 6), 8))
    refused(made.finish(y), torch.rand(2, 2, 8, 8), tmp_path, r"conv \(Conv\): how it stands")


def test_branches_are_refused(two_layers, maker, tmp_path):
    made = maker(0)
    x = made.start((6,), 8, signed=False)
    ends = []
    for name in ("a", "b"):
        op = made.array_op(name, ops.Geometry("linear"), made.weights(5, 6), log2_g=8, rounding="wtm2101")
        ends.append(made.node(name, op, (x,), ValueType((5,), 8)))
    refused(made.finish(*ends), torch.rand(2, 6), tmp_path, "b: reads input, not what was computed before it")


def test_a_relu_on_the_input_is_refused(maker, tmp_path):
    made = maker(0)
    x = made.start((6,), 8, signed=True)
    x = made.node("relu", ops.Relu(), (x,), ValueType((6,), 8))
    op = made.array_op("fc", ops.Geometry("linear"), made.weights(5, 6), log2_g=8, rounding="wtm2101")
    refused(made.finish(made.node("fc", op, (x,), ValueType((5,), 8))), torch.rand(2, 6), tmp_path, "a ReLU on the net")


def test_two_outputs_are_refused(maker, tmp_path):
    made = maker(0)
    y = made.start((6,), 8, signed=False)
    ends = []
    for name, sizes in (("a", (5, 6)), ("b", (3, 5))):
        op = made.array_op(name, ops.Geometry("linear"), made.weights(*sizes), log2_g=8, rounding="wtm2101")
        y = made.node(
            f"{name}.relu", ops.Relu(), (made.node(name, op, (y,), ValueType(sizes[:1], 8)),), ValueType(sizes[:1], 8)
        )
        ends.append(y)
    refused(
        made.finish(*ends), torch.rand(2, 6), tmp_path, r"outputs a.relu, b.relu; allowed: one, of the last array layer"
    )


def test_from_the_command_line(tmp_path, capsys):
    from chipfit.cli import main
    from chipfit.program import save_program

    torch.manual_seed(0)
    config = WitinLayerConfig(
        1, use_quantization=True, use_auto_scale=False, scale_x=256, scale_weight=256, scale_y=128
    )
    program = chipfit.lower(
        nn.Sequential(nn.Flatten(), WitinLinear(64, 10, layer_config=config)), torch.rand(1, 1, 8, 8)
    )
    save_program(tmp_path / "program", program)
    (tmp_path / "layers.txt").write_text("0,9,0,63,0,7,512")
    words = ["export", str(tmp_path / "program"), "--formats", "[witin_sim]", "--samples", "3"]
    words += ["--out", str(tmp_path / "out"), "--options.layers", str(tmp_path / "layers.txt")]
    assert main(words) == 0, capsys.readouterr().err
    assert simulated(tmp_path / "out/witin_sim", "0,9,0,63,0,7,512", [False], np.uint8) == expected(
        tmp_path / "out/witin_sim"
    )

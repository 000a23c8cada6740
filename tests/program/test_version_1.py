"""Folders that version 1 of the formats wrote, with the code of then: they load, and compute the same codes.

Each network's folder also holds the codes of every edge on a batch, as they were computed then.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chipfit.errors import FileFormatError
from chipfit.export import verify_golden
from chipfit.program import FastProgram, Grid, Program, load_program, save_program, trace

DATA = Path(__file__).parents[1] / "data" / "program_v1"
NETWORKS = ("wtm2101", "t40", "t40_4bit", "txx")


def recorded(name: str) -> tuple[Program, dict[str, torch.Tensor]]:
    return load_program(DATA / name), load_file(DATA / name / "expected.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_codes_of_every_edge_are_those_of_then(name: str, tmp_path: Path) -> None:
    program, expected = recorded(name)
    inputs = [expected[given.name] for given in program.inputs]
    edges = trace(program, *inputs)
    assert edges.keys() == expected.keys()
    for edge, codes in edges.items():
        assert torch.equal(codes, expected[edge].to(codes.dtype)), edge
    assert torch.equal(FastProgram(program)(*inputs), expected[program.outputs[0]])
    save_program(tmp_path, program)
    again = load_program(tmp_path)
    assert (again.nodes, again.inputs, again.outputs) == (program.nodes, program.inputs, program.outputs)


def grids(name: str) -> dict[str, Grid | None]:
    program, _ = recorded(name)
    return {node.name: node.output.grid for node in program.nodes if not node.output.real}


def test_grids_of_a_chip_that_shifts() -> None:
    found = grids("wtm2101")
    assert found["shifted.input"] == Grid("plain", 32.0, 32) and found["avg_pool2d"] == Grid("plain", 64.0)
    assert all(grid is not None and grid.kind == "plain" for grid in found.values())


@pytest.mark.parametrize(("name", "n"), [("t40", 255.0), ("t40_4bit", 15.0)])
def test_grids_without_zero(name: str, n: float) -> None:
    """Unsigned codes are on a plain grid, signed ones have no zero, through moves and tables; sums have no unit."""
    odd = ("conv1", "conv2", "shortcut", "pool", "back", "gap")
    sums = ("conv0.sum", "conv1.sum", "conv2.sum", "gap.sum", "fc.sum")
    plain = {"conv0.input": Grid("plain", 255.0), "conv0.pad": Grid("plain", 255.0), "conv0": Grid("plain", n)}
    assert grids(name) == {**plain, **dict.fromkeys(odd, Grid("odd", n)), **dict.fromkeys(sums, None)}


def test_grids_with_zero() -> None:
    found = grids("txx")
    assert (found["conv0"], found["conv1"], found["shortcut"], found["pool"], found["back"]) == (
        Grid("plain", 255.0),
        Grid("plain", 128.0),
        Grid("plain", 127.0),
        Grid("plain", 127.0),
        Grid("plain", 128.0),
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["nodes"].append(3), r"nodes\[18\]: a value of the wrong kind"),
        (lambda c: c.update(inputs=None), "inputs: a value of the wrong kind"),
        (lambda c: c["nodes"][1]["output"].pop("scale"), "a field is missing.*grid|an unknown field.*zero"),
        (lambda c: c["nodes"][1]["output"].update(scale="16"), "n: a value of the wrong kind"),
        (lambda c: c["nodes"][1].update(op="Array"), "unknown operation"),
        (lambda c: c["nodes"][5].update(inputs=[["relu"]]), r"inputs\[0\]: a value of the wrong kind"),
        (lambda c: c["nodes"][6].update(inputs=3), "inputs: a value of the wrong kind"),
        (lambda c: c["nodes"][7]["op"].update(table_tensor=[]), "table_tensor: a value of the wrong kind"),
        (lambda c: c["nodes"][1].update(inputs="conv.input"), "inputs: a value of the wrong kind"),
    ],
)
def test_damage_of_then_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / "wtm2101", tmp_path / "net")
    content = json.loads((tmp_path / "net" / "program.json").read_text())
    change(content)
    (tmp_path / "net" / "program.json").write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match=said):
        load_program(tmp_path / "net")


def test_golden_vectors_of_then() -> None:
    assert verify_golden(DATA / "wtm2101_golden", load_program(DATA / "wtm2101")) > 0

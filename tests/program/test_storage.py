"""A program on disk: what comes back is what went in, and what is damaged is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from chipfit.errors import FileFormatError
from chipfit.program import Node, Program, load_program, lower, run, save_program
from chipfit.program.ops import Relu
from support.damage import resummed
from witin_nn import HandleNegInType, WitinConv2d, WitinGELU, WitinGru, WitinLayerConfig, WitinLinear

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
OPTIONS = {"use_quantization": True, "use_auto_scale": False, "scale_x": 32, "scale_weight": 64, "scale_y": 16}


def config(**options: Any) -> WitinLayerConfig:
    return WitinLayerConfig(1, **{**OPTIONS, **options})


class Net(nn.Module):
    """An array layer with a split, one with PN, a table and a GRU: every nested part of the format."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = WitinConv2d(1, 2, 3, padding=1, layer_config=config(handle_neg_in=HandleNegInType.PN))
        self.gelu = WitinGELU(layer_config=config())
        self.gru = WitinGru(8, 3, batch_first=True, layer_config=config())
        self.head = WitinLinear(3, 2, layer_config=config(x_quant_bits=12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.gru(self.gelu(self.conv(x)).flatten(2).transpose(1, 2).reshape(x.shape[0], 4, 8))
        return self.head(y[:, -1])


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return lower(Net(), torch.zeros(1, 1, 4, 4))


def test_round_trip(program: Program, tmp_path: Path) -> None:
    save_program(tmp_path / "net", program)
    names = ["SHA256SUMS", "program.json", "tensors.safetensors"]
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == names
    back = load_program(tmp_path / "net")
    assert back.nodes == program.nodes and back.inputs == program.inputs and back.outputs == program.outputs
    assert back.tensors.keys() == program.tensors.keys()
    for name, tensor in program.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype and torch.equal(back.tensors[name], tensor), name
    x = torch.randn(5, 1, 4, 4)
    assert torch.equal(run(back, x), run(program, x))


def test_weights_are_stored_as_bytes(program: Program, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_program(tmp_path, program)
    assert load_file(tmp_path / "tensors.safetensors")["head.weight"].dtype == torch.int8


def damaged(folder: Path, change: Any) -> Path:
    content = json.loads((folder / "program.json").read_text())
    change(content)
    (folder / "program.json").write_text(json.dumps(content))
    return resummed(folder)


def _node(content: dict[str, Any], name: str) -> dict[str, Any]:
    return next(node for node in content["nodes"] if node["name"] == name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(version=99), "unknown version.*99.*allowed: 1"),
        (lambda c: c.update(format="onnx"), "not an integer program"),
        (lambda c: _node(c, "conv")["op"].update(op="Convolve"), "unknown operation.*Convolve"),
        (lambda c: _node(c, "conv")["op"].update(log2_g=1.5), r"\(conv\).*log2_g: a value of the wrong kind.*1.5"),
        (lambda c: _node(c, "conv")["op"].update(lo=True), "lo: a value of the wrong kind"),
        (lambda c: _node(c, "conv")["op"].pop("hi"), "a field is missing.*hi"),
        (lambda c: _node(c, "conv").update(colour="red"), "an unknown field.*colour"),
        (lambda c: _node(c, "conv")["op"]["geometry"].update(kind="conv9"), "kind: a value of the wrong kind.*conv9"),
        (lambda c: _node(c, "conv").update(inputs=["nowhere"]), "conv: a node reads an edge.*nowhere"),
        (lambda c: _node(c, "conv")["op"].update(weight_tensor="lost"), "conv: a node reads a tensor.*lost"),
        (lambda c: c.update(outputs=["lost"]), "an output is no edge.*lost"),
        (lambda c: c["nodes"].append(c["nodes"][0]), "two edges of one name"),
        (lambda c: c.update(nodes="none"), "nodes: a value of the wrong kind"),
        (lambda c: c["nodes"].append(3), r"nodes\[.*: a value of the wrong kind"),
        (lambda c: _node(c, "gru.l0")["op"].update(input=None), "input: a value of the wrong kind"),
        (lambda c: _node(c, "gru.l0")["op"]["input"].update(op="Relu"), "the wrong operation"),
        (
            lambda c: _node(c, "conv")["output"]["grid"].update(kind="even"),
            "grid, kind: a value of the wrong kind.*even",
        ),
        (lambda c: _node(c, "conv")["output"]["grid"].update(n=0), r"\(conv\), output, grid.*no codes a unit"),
        (lambda c: _node(c, "conv")["output"]["grid"].update(kind="odd", zero=1), "an odd grid has no zero"),
        (lambda c: _node(c, "conv")["output"].update(scale=1.0), "an unknown field.*scale"),
    ],
)
def test_damage_is_refused_with_its_place(program: Program, tmp_path: Path, change: Any, said: str) -> None:
    save_program(tmp_path, program)
    with pytest.raises(FileFormatError, match=said):
        load_program(damaged(tmp_path, change))


def test_missing_and_unreadable_files(program: Program, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot read the file"):
        load_program(tmp_path)
    for name, said in (("tensors.safetensors", "cannot read the tensors"), ("program.json", "cannot read the JSON")):
        save_program(tmp_path, program)
        (tmp_path / name).write_text("{")
        with pytest.raises(FileFormatError, match="the file was changed"):
            load_program(tmp_path)
        with pytest.raises(FileFormatError, match=said):
            load_program(resummed(tmp_path))


def test_a_program_checks_its_edges(program: Program) -> None:
    stray = Node("stray", Relu(), ("later",), program.nodes[0].output)
    with pytest.raises(FileFormatError, match="stray: a node reads an edge that no node before it makes"):
        Program(1, "wtm2101", (stray, *program.nodes), program.inputs, program.outputs, program.tensors)

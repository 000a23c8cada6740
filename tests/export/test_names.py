"""No name of a file runs, reaches an attribute, or opens another file: hostile names in everything that is read."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import fx, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.chips.witmem.mapper.side import SideEntry, side_text
from chipfit.errors import ChipfitError, FileFormatError, UnsupportedError
from chipfit.export import check_magik, check_mapper, export, export_golden, export_magik, read_magik, verify_golden
from chipfit.onnx_file import read_model
from chipfit.program import load_program, lower, run, save_program
from chipfit.program.types import Program
from support import kit_files
from support.ingenic import networks as known

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
Q8 = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8, "target_device": "T40"}

HOSTILE = (
    'x=(getattr(__import__("os"),"system")("touch PWNED"))',
    "x):\n    __import__('os').system('touch PWNED')\n    def f(y",
    '0"), __import__("os").system("touch PWNED"), ("',
    "x = __import__('os').system('touch PWNED')  #",
    "self",
    "torch",
    "getattr",
    "class",
    "__class__.__init__",
    "forward",
    "graph",
    "_modules",
    "../../PWNED",
    "/tmp/PWNED",
    "*/ int pwned(void) { return 1; } /*",
    "*\\\n/ int pwned(void) { return 1; } /*",
    "a" * 400,
    ".".join("a" * 400),
    "слой",
    "a\x00b\x1b[31m",
)
"""Names that would run, shadow, reach out or break, were they used as they are."""


class Small(nn.Module):
    """Preprocess, two convolutions, plain torch."""

    def __init__(self) -> None:
        super().__init__()
        self.pre = ops.Preprocess(0, 255.0, "T40")
        self.first = ops.Conv2D(3, 32, padding=1, first_layer=True, **Q8)
        self.last = ops.Conv2D(32, 4, 1, 1, 1, None, last_layer=True, **Q8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.flatten(self.last(self.first(self.pre(image))), 1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, where a command that runs leaves its file."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """Another name for what begins with a name: inputs, outputs, nodes, constants, fields of JSON texts."""

    def name(text: str) -> str:
        return new + text[len(old) :] if re.match(rf"{re.escape(old)}($|[./@])", text) else text

    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = name(value.name)
    for node in graph.node:
        node.name = name(node.name)
        node.input[:] = [name(edge) for edge in node.input]
        node.output[:] = [name(edge) for edge in node.output]
        for entry in node.attribute:
            if entry.name == "tensor_name":
                entry.s = name(entry.s.decode()).encode()
            if entry.name == "param_str":
                given = json.loads(entry.s)
                given |= {key: name(value) for key, value in given.items() if key.endswith("tensor_name")}
                entry.s = json.dumps(given).encode()
    return model


def magik_with(folder: Path, old: str, new: str) -> tuple[nn.Module, torch.Tensor, Path]:
    net, image = Small().eval(), known.pixels(2, 3, 4, 4)
    path = export_magik(net, image, folder / "model.onnx")
    path.write_bytes(renamed(onnx.load(path), old, new).SerializeToString())
    return net, image, path


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("old", ["image", "first", "torch.flatten"])
def test_magik(old: str, name: str, here: Path, tmp_path: Path) -> None:
    """Read, run, lowered, printed, exported again: nothing runs, and the numbers are those of the network."""
    name = name.replace("/", "-").replace("@", "-")  # which tell parts of a node's name apart
    new = f"torch.{name}" if old.startswith("torch.") else name
    net, image, path = magik_with(tmp_path, old, new)
    check_magik(path)
    again = read_magik(path)
    assert torch.equal(again(image), net(image))
    assert isinstance(again, fx.GraphModule) and "PWNED" not in again.code and "pwned" not in again.code
    lower(again, image)
    export_magik(again, image, tmp_path / "again.onnx")
    assert torch.equal(read_magik(tmp_path / "again.onnx")(image), net(image))
    assert not list(here.iterdir())


@pytest.mark.parametrize("name", ["x):\n    raise SystemExit\n    def f(y", "class", "forward", "a.b.training"])
def test_what_the_file_said_is_kept_as_data(name: str, tmp_path: Path) -> None:
    again = read_magik(magik_with(tmp_path, "first", name)[2])
    own = next(node.target for node in again.graph.nodes if node.op == "call_module" and "pre" not in node.target)
    assert re.fullmatch(r"unit_\d+", own)
    assert again.meta["file_names"] == {own: name}


def test_plain_names_stay(tmp_path: Path) -> None:
    again = read_magik(magik_with(tmp_path, "first", "model.0.conv")[2])
    assert "model.0.conv.Conv2d.weight" in again.state_dict() and again.meta["file_names"] == {}


def test_a_layer_inside_anothers_name_does_not_reach_into_it(tmp_path: Path) -> None:
    net, image, path = magik_with(tmp_path, "last", "first.Conv2d")
    assert torch.equal(read_magik(path)(image), net(image))


# --- tensors in other files


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


@pytest.mark.parametrize("place", ["initializer", "attribute", "inner graph"])
@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "/etc/passwd"])
def test_no_other_file_is_opened(place: str, location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\x00\x00\x80\x3f")
    tensor, nodes = external("w", location), []
    if place == "attribute":
        nodes = [helper.make_node("Constant", [], ["w"], value=tensor)]
    if place == "inner graph":
        inner = helper.make_graph([], "inner", [], [], [tensor])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    graph = helper.make_graph(nodes, "g", [], [], [tensor] if place == "initializer" else [])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    path.with_suffix(".txt").write_text("")
    np.save(path.with_suffix(".npy"), np.zeros((100, 1), np.float32))
    for read in (read_model, check_magik, read_magik, check_mapper):
        with pytest.raises(FileFormatError, match="takes a tensor from another file"):
            read(path)


# --- programs, golden vectors, the mapper's files


def program_with(program: Program, old: str, new: str) -> Program:
    """A program with another name for an edge."""

    def name(edge: str) -> str:
        return new if edge == old else edge

    nodes = tuple(
        replace(node, name=name(node.name), inputs=tuple(map(name, node.inputs)), layer=name(node.layer))
        for node in program.nodes
    )
    inputs = tuple(replace(given, name=name(given.name)) for given in program.inputs)
    return replace(program, nodes=nodes, inputs=inputs, outputs=tuple(map(name, program.outputs)))


@pytest.mark.parametrize("name", HOSTILE)
def test_programs_and_golden_vectors(name: str, two_layers: Any, here: Path, tmp_path: Path) -> None:
    """Written, read, run, exported: every file has a name of ours, in the folder that was named."""
    x = torch.rand(3, 6)
    for old in ("x0", "fc1", "fc2.real"):
        program = program_with(two_layers(), old, name)
        save_program(tmp_path / "program", program)
        again = load_program(tmp_path / "program")
        assert again.nodes == program.nodes and torch.equal(run(again, x), run(two_layers(), x))
        files = export_golden(again, x, tmp_path / old / "golden")
        assert all(re.fullmatch(r"[\w.]+", file.name, re.ASCII) and file.parent.name == "golden" for file in files)
        assert verify_golden(tmp_path / old / "golden", again) > 0
        export(again, tmp_path / old, ["onnx", "mapping"])
    assert not list(here.iterdir()) and not list(tmp_path.rglob("PWNED*"))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", [name for name in HOSTILE if "int pwned" in name])
def test_headers_hold_nothing_but_data(name: str, two_layers: Any, tmp_path: Path) -> None:
    """The compiler sees no function in a header, whatever an edge is called."""
    export_golden(program_with(two_layers(), "fc1", name), torch.rand(3, 6), tmp_path)
    (header,) = tmp_path.glob("e001_*.h")
    (tmp_path / "main.c").write_text(f'#include "{header.name}"\nint pwned(void) {{ return 0; }}\n')
    command = ["cc", "-c", "-std=c99", "-w", str(tmp_path / "main.c"), "-o", str(tmp_path / "main.o")]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


def test_inputs_whose_names_differ_in_signs_have_files_of_their_own(maker: Any, tmp_path: Path) -> None:
    made = maker(0)
    a, b = made.start((3,), 8), made.start((3,), 8)
    program = made.finish(a, b)
    for old, new in (("x0", "a.b"), ("x1", "a_b")):
        program = program_with(program, old, new)
    x = torch.arange(6.0).view(2, 3)
    files = export_golden(program, (x, -x), tmp_path)
    assert len(set(files)) == len(files) and {"inputs_a_b.npy", "inputs_a_b_.npy"} <= {file.name for file in files}
    assert verify_golden(tmp_path, program) >= 0


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_manifest_names_no_other_file(side: str, two_layers: Any, tmp_path: Path) -> None:
    """Not even one that could be read: only what the sums list."""
    x = torch.rand(3, 6)
    np.save(tmp_path / "outside.npy", x.numpy())
    export_golden(two_layers(), x, tmp_path / "golden")
    path = tmp_path / "golden" / "manifest.json"
    manifest = json.loads(path.read_text())
    for file in ("../outside.npy", str(tmp_path / "outside.npy")):
        manifest[side] = dict.fromkeys(manifest[side], file)
        text = json.dumps(manifest)
        sums = (tmp_path / "golden" / "SHA256SUMS").read_text().splitlines()
        digest = hashlib.sha256(text.encode()).hexdigest()
        kept = [line if not line.endswith("manifest.json") else f"{digest}  manifest.json" for line in sums]
        (tmp_path / "golden" / "SHA256SUMS").write_text("\n".join(kept) + "\n")
        path.write_text(text)
        with pytest.raises(FileFormatError, match="do not list an input's or output's file"):
            verify_golden(tmp_path / "golden", two_layers())


@pytest.mark.parametrize("name", HOSTILE)
def test_the_mappers_side_file_holds_one_entry_a_node(name: str, two_layers: Any, here: Path, tmp_path: Path) -> None:
    """A layer's name makes no other entry: it stands there as it is, or is refused."""
    program = program_with(two_layers(), "fc1", name)
    try:
        export(program, tmp_path, ["witin_mapper"], samples=torch.rand(100, 6))
    except ChipfitError as error:
        assert re.search(r"[\s{}]|^\s*$", name), error
    else:
        check_mapper(tmp_path / "witin_mapper" / "model.onnx")
    assert not list(here.iterdir())


def test_side_text_refuses_what_reads_as_something_else() -> None:
    for name in ("a b", "fc1 { } fc2", "a\nb", ""):
        with pytest.raises(UnsupportedError, match="cannot stand in the side file"):
            side_text({name: SideEntry()})


# --- files of the vendor's own kit


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("old", ["input", "first"])
def test_kit_files(old: str, name: str, here: Path, tmp_path: Path) -> None:
    net, image = Small().eval(), known.pixels(2, 3, 4, 4)
    model = kit_files.kit_file(magik_model(net, image), "2020")
    path = tmp_path / "kit.onnx"
    path.write_bytes(renamed(model, old, name).SerializeToString())
    again = read_magik(path)
    assert torch.equal(again(image), torch.unflatten(net(image), 1, again(image).shape[1:]))
    assert isinstance(again, fx.GraphModule) and "PWNED" not in again.code and "pwned" not in again.code
    lower(again, image)
    assert not list(here.iterdir())

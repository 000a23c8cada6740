"""Content that has the right types and makes no sense: refused within a second, in little memory."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import chipfit
from chipfit.cli import main
from chipfit.errors import ChipfitError, FileFormatError
from chipfit.export import check_mapper, export_golden, verify_golden
from chipfit.files import load_model
from chipfit.fit.data import mnist, read_idx
from chipfit.program import load_program, save_program
from support import fuzzing
from support.damage import resummed


@contextmanager
def refused(said: str) -> Iterator[None]:
    """An error of ours, within a second and 256 MiB."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ChipfitError, match=said):
        yield
    assert time.process_time() - started < 1.0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 256


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    fuzzing._golden(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def node(content: Any, name: str) -> Any:
    return next(entry for entry in content["nodes"] if entry["name"] == name)


def changed(path: Path, change: Callable[[Any], None]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return resummed(path.parent)


# --- programs

HUGE = 10**10
PROGRAMS: list[tuple[Callable[[Any], Any], str]] = [
    (lambda c: c.update(chip="wtm2110"), "unknown chip 'wtm2110'. Did you mean 'wtm2101'"),
    (lambda c: node(c, "conv")["op"].update(rounding="up"), "unknown rounding rule 'up'"),
    (lambda c: node(c, "conv")["output"]["grid"].update(n=0), "no codes a unit"),
    (lambda c: node(c, "conv")["output"]["grid"].update(n=-32), "no codes a unit"),
    (lambda c: node(c, "conv")["output"]["grid"].update(n=3), "the chip only shifts"),
    (lambda c: node(c, "conv.input")["op"].update(scale=0.0), "scale is 0.0"),
    (lambda c: node(c, "conv.input")["op"].update(scale=64.0), "it quantises to 64"),
    (lambda c: node(c, "conv")["op"].update(lo=5, hi=4), "lo is 5, above hi, 4"),
    (lambda c: node(c, "conv")["op"].update(hi=128), "codes from -128 to 128 on an edge of"),
    (lambda c: node(c, "conv")["op"].update(log2_g=HUGE), "log2_g is"),
    (lambda c: node(c, "conv")["op"]["geometry"].update(stride=[0, 1]), "stride is 0"),
    (lambda c: node(c, "conv")["op"]["geometry"].update(padding=[HUGE, HUGE]), "conv"),
    (lambda c: node(c, "conv")["output"].update(bits=HUGE), "a register of 10000000000 bits"),
    (lambda c: node(c, "conv")["output"].update(shape=[HUGE, HUGE]), "allowed: sizes from 1"),
    (lambda c: node(c, "conv")["output"].update(shape=[2, 4, 5]), "its edge says"),
    (lambda c: node(c, "conv")["op"].update(weight_tensor="conv.bias"), "conv"),
    (lambda c: node(c, "conv")["op"].update(negative_weight_tensor=None), "go with 'pn'"),
    (lambda c: node(c, "gelu")["op"].update(first=node(c, "gelu")["op"]["first"] + 1), "its table has"),
    (lambda c: node(c, "gru.l0")["op"].update(gate_table_tensor="conv.bias"), "allowed: .1024,"),
    (lambda c: node(c, "gru.l0")["op"].update(time_dim=7), "time_dim is 7"),
    (lambda c: c.update(outputs=[]), "there are none"),
    (lambda c: c.update(outputs=["conv"]), "no edge of real numbers"),
]


@pytest.mark.parametrize(("change", "said"), PROGRAMS, ids=[said for _, said in PROGRAMS])
def test_programs(folder: Path, change: Callable[[Any], None], said: str) -> None:
    program = changed(folder / "program" / "program.json", change)
    with refused(said):
        load_program(program)


def test_a_deep_document(folder: Path) -> None:
    (folder / "program" / "program.json").write_text("[" * 100_000)
    with refused("cannot read the JSON"):
        load_program(resummed(folder / "program"))


def test_tensors_that_are_no_numbers(folder: Path) -> None:
    path = folder / "program" / "tensors.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dtype.is_floating_point)
    save_file({**tensors, name: torch.full_like(tensors[name], math.nan)}, path)
    with refused("no number"):
        load_program(resummed(path.parent))


def test_a_table_that_lacks_an_entry(folder: Path) -> None:
    path = folder / "program" / "tensors.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("gelu"))
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, path)
    with refused("its table has"):
        load_program(resummed(path.parent))


def test_networks_of_nan(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    before = net.weight.detach().clone()
    save_file({"weight": torch.full((2, 2), math.nan), "bias": torch.zeros(2)}, tmp_path / "net.safetensors")
    with refused("a weight that is no number"):
        load_model(tmp_path / "net.safetensors", net)
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(3)}, tmp_path / "net.safetensors")
    with refused("cannot read the model file"):
        load_model(tmp_path / "net.safetensors", net)
    assert torch.equal(net.weight, before)


def test_programs_of_every_chip_make_sense(tmp_path: Path) -> None:
    """The examples of version 1 are of three chips; what is written anew loads again."""
    data = Path(__file__).parents[1] / "data" / "program_v1"
    for name in ("wtm2101", "t40", "t40_4bit", "txx"):
        program = load_program(data / name)
        save_program(tmp_path / name, program)
        assert load_program(tmp_path / name).nodes == program.nodes


# --- golden vectors

GOLDEN: list[tuple[Callable[[Any], Any], str]] = [
    (lambda m: m.update(edges={}), "the manifest does not say what a file is|lists nothing"),
    (lambda m: m.update(edges={}, layers=[]), "the manifest does not say what a file is"),
    (lambda m: m["edges"]["conv"].update(bits=HUGE), "the manifest is not that of the program"),
    (lambda m: m["edges"]["conv"].update(lo=-129), "the manifest is not that of the program"),
    (lambda m: m["layers"][0].update(g=3), "the manifest is not that of the program"),
    (lambda m: m.update(samples=7), "the manifest is not that of the program"),
    (lambda m: m.update(outputs={}), "does not say what a file is|lists nothing"),
]


@pytest.mark.parametrize(("change", "said"), GOLDEN)
def test_golden_vectors(folder: Path, change: Callable[[Any], None], said: str) -> None:
    golden, program = changed(folder / "golden" / "manifest.json", change), load_program(folder / "program")
    with refused(said):
        verify_golden(golden, program)


def test_golden_outputs_are_compared(folder: Path) -> None:
    path = folder / "golden" / "outputs_output.npy"
    np.save(path, np.load(path) + np.float32(1))
    with refused("differ from the program's"):
        verify_golden(resummed(folder / "golden"), load_program(folder / "program"))


def test_golden_export_of_a_lie_ends(folder: Path) -> None:
    program = load_program(folder / "program")
    with pytest.raises(ChipfitError):
        export_golden(program, torch.zeros(2, 1, 4, 5), folder / "again")
    assert not (folder / "again").exists()


def huge_npy() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (23 << 38,)})
    return file.getvalue()


def test_an_array_that_claims_terabytes(folder: Path, tmp_path: Path) -> None:
    (folder / "golden" / "e001_conv.npy").write_bytes(huge_npy())
    with refused("another length than its header says"):
        verify_golden(resummed(folder / "golden"))
    fuzzing._mapper(tmp_path)
    (tmp_path / "net.npy").write_bytes(huge_npy())
    with refused("another length than its header says"):
        check_mapper(resummed(tmp_path) / "net.onnx")


def test_objects_are_not_unpickled(folder: Path) -> None:
    np.save(folder / "golden" / "e001_conv.npy", np.array([print], dtype=object), allow_pickle=True)
    with refused(r"array of no numbers"):
        verify_golden(resummed(folder / "golden"))


# --- data sets


def idx(*shape: int, body: bytes) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + body


def digits_of(folder: Path, labels: bytes) -> Path:
    for name in ("train", "t10k"):
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(len(labels), 2, 2, body=bytes(4 * len(labels))))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(len(labels), body=labels))
    return folder


def test_labels_that_are_no_digits(tmp_path: Path) -> None:
    assert len(mnist(digits_of(tmp_path, bytes([0, 9])))[0]) == 2
    with refused("labels that are no digits"):
        mnist(digits_of(tmp_path, bytes([0, 10])))


@pytest.mark.parametrize("claimed", [4, 3_100_000_000])
def test_an_archive_that_unpacks_to_gigabytes(tmp_path: Path, claimed: int) -> None:
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as file:
        file.write(idx(claimed, body=b""))
        for _ in range(300):
            file.write(bytes(1 << 20))
    (tmp_path / "bomb.gz").write_bytes(packed.getvalue())
    with refused("too large|more than its header says"):
        read_idx(tmp_path / "bomb")


# --- pipes in place of files, and the command line


@pytest.mark.parametrize("name", ["program/program.json", "program/tensors.safetensors", "golden/manifest.json"])
def test_pipes(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    read = load_program if name.startswith("program") else verify_golden
    with refused("no plain file|no such file"):
        read(folder / name.partition("/")[0])


def test_pipes_for_networks_data_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with refused("no plain file"):
        load_model(tmp_path / "pipe", nn.Linear(1, 1))
    with refused("no plain file"):
        read_idx(tmp_path / "pipe")
    assert main(["--config", str(tmp_path / "pipe"), "chips"]) == 2
    assert "no plain file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"a: [", "ParserError"),
        (b"a: &a [1]\nb: *a", "refers to itself"),
        (b"[" * 1000, "nested too deep"),
        (b"a: !!python/object/apply:os.system [true]", "error|Error|Unknown|valid"),
    ],
)
def test_options_that_are_none(tmp_path: Path, text: bytes, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "given.yaml"
    path.write_bytes(text)
    try:
        status = main([f"--config={path}", "chips"])
    except SystemExit as stopped:
        status = stopped.code
    found = capsys.readouterr().err
    assert status == 2 and any(word in found for word in said.split("|")), found
    assert "Traceback" not in found


# --- what a user has in an output folder

NETWORK = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(64, 3))\n"


def test_a_user_s_files_are_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "out"
    given = ["export", str(folder / "program"), "--out", str(out), "--formats"]
    assert main([*given, "onnx"]) == 0 and main([*given, "mapping"]) == 0  # what chipfit wrote is not a user's
    assert {path.name for path in out.iterdir()} == {"mapping.json", "mapping.svg", "SHA256SUMS"}
    (out / "notes.txt").write_text("mine")
    assert main([*given, "onnx"]) == 2
    error = capsys.readouterr().err
    assert "notes.txt" in error and "--overwrite" in error and len(error.strip().splitlines()) == 1
    assert main([*given, "onnx", "--overwrite"]) == 0
    assert {path.name for path in out.iterdir()} == {"model.onnx", "notes.txt", "SHA256SUMS"}


def test_a_result_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "bits.json").write_text("mine")
    given = ["search", f"{tmp_path / 'net.py'}:net", "0.5", "--out", str(tmp_path / "bits.json")]
    assert main(given) == 2 and "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "bits.json").read_text() == "mine"


def test_errors_of_the_two_kinds() -> None:
    assert issubclass(chipfit.errors.WritingError, OSError) and issubclass(FileFormatError, ValueError)

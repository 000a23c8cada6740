from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chipfit.errors import FileFormatError, InvalidValueError
from chipfit.export.golden import export_golden, verify_golden
from chipfit.program import load_program
from chipfit.program.reference import trace


@pytest.fixture
def golden(two_layers, tmp_path):
    program, samples = two_layers(), torch.rand(7, 6, generator=torch.Generator().manual_seed(1)) * 20
    export_golden(program, samples, tmp_path)
    return program, samples, tmp_path


def rewrite_sums(folder):
    lines = []
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        name = line.split("  ")[1]
        lines.append(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_round_trip(golden):
    program, samples, folder = golden
    assert verify_golden(folder) == 7 * (6 + 5 + 5 + 3)
    assert verify_golden(folder, program) == 7 * (6 + 5 + 5 + 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [layer["name"] for layer in manifest["layers"]] == ["fc1", "fc2"]
    assert manifest["layers"][1]["inputs"] == ["relu"]
    assert manifest["layers"][1]["g"] == 1024
    edge = manifest["edges"]["fc1"]
    assert (edge["dtype"], edge["shape"], edge["grid"]) == ("int8", [7, 5], {"kind": "plain", "n": 16.0, "zero": 0})
    assert manifest["edges"]["x0.q"]["dtype"] == "uint8"
    stored = np.load(folder / edge["npy"])
    assert np.array_equal(stored, trace(program, samples)["fc1"].numpy())


def test_sums_are_those_of_sha256sum(golden):
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    assert subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=golden[2]).returncode == 0


@pytest.fixture(scope="session")
def compiler():
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("no C compiler here")
    return found


def printed_by(compiler, folder, tmp_path, headers, body):
    """What a C program prints that includes some headers."""
    source = tmp_path / "main.c"
    includes = "".join(f'#include "{header}"\n' for header in headers)
    source.write_text(f"#include <stdio.h>\n{includes}int main(void) {{ {body} return 0; }}\n")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-I", str(folder)]
    subprocess.run([compiler, *flags, "-o", str(tmp_path / "a"), str(source)], check=True)
    return subprocess.run([str(tmp_path / "a")], capture_output=True, text=True, check=True).stdout


def test_headers_compile_and_hold_the_codes(golden, compiler, tmp_path):
    program, samples, folder = golden
    entry = json.loads((folder / "manifest.json").read_text())["edges"]["fc2"]
    symbol = entry["symbol"]
    loop = f'for (int i = 0; i < {symbol.upper()}_SIZE; i++) printf("%d ", {symbol}[i]);'
    printed = printed_by(compiler, folder, tmp_path, [entry["header"]], loop)
    assert [int(v) for v in printed.split()] == trace(program, samples)["fc2"].flatten().tolist()


@pytest.mark.parametrize("name", ["wtm2101", "t40", "t40_4bit", "txx"])
def test_headers_say_what_every_edge_stands_for(name, compiler, tmp_path):
    """Kind, n and zero, on grids of 2^k, 255 and 15, with and without a zero; the value of every code, bit for bit."""
    folder = Path(__file__).parents[1] / "data" / "program_v1" / name
    program, recorded = load_program(folder), load_file(folder / "expected.safetensors")
    inputs = [recorded[given.name] for given in program.inputs]
    export_golden(program, inputs, tmp_path)
    assert verify_golden(tmp_path, program) > 0
    edges, body = json.loads((tmp_path / "manifest.json").read_text())["edges"], []
    for edge, entry in edges.items():
        upper = entry["symbol"].upper()
        if entry["grid"] is None:
            body.append(f"#if {upper}_GRID != CHIPFIT_NONE || defined {upper}_VALUE\n#error a sum\n#endif\n")
            continue
        each = f'printf("%a ", (double){upper}_VALUE({entry["symbol"]}[i]));'
        body.append(f'printf("{edge} %d ", {upper}_GRID); for (int i = 0; i < {upper}_SIZE; i++) {each} puts("");\n')
    headers = [entry["header"] for entry in edges.values()]
    lines = printed_by(compiler, tmp_path, tmp_path, headers, "\n".join(["", *body])).splitlines()
    assert len(lines) == sum(entry["grid"] is not None for entry in edges.values()) > 4
    for line in lines:
        edge, kind, *values = line.split()
        grid = program.type(edge).grid
        assert int(kind) == {"plain": 1, "odd": 2}[grid.kind], edge
        assert [float.fromhex(v) for v in values] == grid.value(recorded[edge]).flatten().tolist(), edge
        text = (tmp_path / edges[edge]["header"]).read_text()
        assert ("_LOG2_SCALE" in text) == (grid.kind == "plain" and math.frexp(grid.n)[0] == 0.5), edge


def test_a_changed_file_is_found(golden):
    folder = golden[2]
    path = folder / json.loads((folder / "manifest.json").read_text())["edges"]["fc1"]["npy"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match=r"SHA-256.*fc1"):
        verify_golden(folder)
    rewrite_sums(folder)
    with pytest.raises(FileFormatError, match="C header"):
        verify_golden(folder)


def test_a_missing_file_is_found(golden):
    folder = golden[2]
    next(folder.glob("*relu*.h")).unlink()
    with pytest.raises(FileFormatError, match="no such file"):
        verify_golden(folder)


def test_codes_outside_the_range_are_found(golden):
    folder = golden[2]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["edges"]["fc1"]["hi"] = 0
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rewrite_sums(folder)
    with pytest.raises(FileFormatError, match="outside"):
        verify_golden(folder)


def test_another_program_is_found(golden):
    program, _, folder = golden
    weights = dict(program.tensors) | {"fc2.weight": program.tensors["fc2.weight"] + 1}
    with pytest.raises(FileFormatError, match="fc2"):
        verify_golden(folder, dataclasses.replace(program, tensors=weights))


def test_no_samples(two_layers, tmp_path):
    with pytest.raises(InvalidValueError, match="samples"):
        export_golden(two_layers(), torch.zeros(0, 6), tmp_path)

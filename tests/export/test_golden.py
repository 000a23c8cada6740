from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess

import numpy as np
import pytest
import torch

from chipfit.errors import FileFormatError, InvalidValueError
from chipfit.export.golden import export_golden, verify_golden
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


def test_headers_compile_and_hold_the_codes(golden, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    program, samples, folder = golden
    entry = json.loads((folder / "manifest.json").read_text())["edges"]["fc2"]
    source = tmp_path / "main.c"
    source.write_text(
        f'#include <stdio.h>\n#include "{entry["header"]}"\nint main(void) {{ for (int i = 0; i < '
        f'{entry["symbol"].upper()}_SIZE; i++) printf("%d ", {entry["symbol"]}[i]); return 0; }}\n'
    )
    subprocess.run(
        [compiler, "-Wall", "-Werror", "-I", str(folder), "-o", str(tmp_path / "a"), str(source)], check=True
    )
    printed = subprocess.run([str(tmp_path / "a")], capture_output=True, text=True, check=True).stdout
    assert [int(v) for v in printed.split()] == trace(program, samples)["fc2"].flatten().tolist()


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

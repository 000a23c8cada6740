"""docs/add-a-chip.md, followed: a copy of the example chip is all that a new chip needs, in the tree or beside it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-chip.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "src" / "chipfit" / "chips" / "example"
pytestmark = pytest.mark.slow
NETWORK = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))

def odd():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU())
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def copied_tree(folder: Path) -> Path:
    """The source tree, with no edit of it going on."""
    shutil.copytree(ROOT / "src", folder / "tree" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "tree"


def sums(folder: Path) -> dict[str, str]:
    """Of every source file."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def called(arguments: list[str], path: list[Path], folder: Path, fails: bool = False) -> str:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def check_every_verb(path: list[Path], folder: Path) -> None:
    """The page's own code with the new name in it, then the command line."""
    (script,) = blocks("python")
    where = "import mychip" if path[0].name == "site" else "import chipfit.chips.mychip as mychip"
    script = f"import chipfit\n{where}\nprint(mychip.__file__, chipfit.__file__)\n" + script.replace(
        "example", "mychip"
    )
    printed = called(["-c", script], path, folder)
    assert str(path[0]) in printed.splitlines()[0] and str(path[-1]) in printed.splitlines()[0]
    assert re.search(r"codes of \d+ layers over 64 samples: all equal", printed)
    assert (folder / "out" / "model.onnx").is_file() and (folder / "out" / "golden" / "SHA256SUMS").is_file()
    (folder / "nets.py").write_text(NETWORK)
    assert "mychip" in called(["-m", "chipfit", "chips"], path, folder)
    options = ["1,3,8,8", "--chip", "mychip"]
    assert "NpuLinear" in called(["-m", "chipfit", "check", "nets.py:network", *options], path, folder)
    refused = called(["-m", "chipfit", "check", "nets.py:odd", *options], path, folder, fails=True)
    assert "the NPU has no such gelu" in " ".join(refused.split())
    assert "8.sum" in called(["-m", "chipfit", "certify", "program"], path, folder)
    export = ["export", "program", "--out", "files", "--formats", "onnx"]
    assert "model.onnx" in called(["-m", "chipfit", *export], path, folder)


def test_a_folder_under_chips(tmp_path: Path) -> None:
    tree = copied_tree(tmp_path)
    before = sums(tree)
    (commands,) = blocks("sh")
    subprocess.run(["sh", "-e", "-c", commands], cwd=tree, check=True)
    shutil.rmtree(tree / "src" / "chipfit" / "chips" / "mychip" / "__pycache__", ignore_errors=True)
    check_every_verb([tree / "src"], tmp_path / "user")
    after = sums(tree)
    added = {name for name in after if name not in before}
    assert added == {f"src/chipfit/chips/mychip/{path.name}" for path in EXAMPLE.glob("*.py")}
    assert {name: after[name] for name in before} == before


def test_a_package_of_its_own(tmp_path: Path) -> None:
    site = tmp_path / "site"
    package, info = site / "mychip", site / "mychip-0.1.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    for path in EXAMPLE.glob("*.py"):
        text = path.read_text(encoding="utf-8").replace("chipfit.chips.example", "mychip")
        (package / path.name).write_text(text.replace('"example"', '"mychip"'), encoding="utf-8")
    (entry,) = re.findall(r'^mychip = "(.*)"$', "".join(blocks("toml")), flags=re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[chipfit.chips]\nmychip = {entry}\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mychip\nVersion: 0.1\n")
    tree = copied_tree(tmp_path)
    before = sums(tree)
    check_every_verb([site, tree / "src"], tmp_path / "user")
    assert sums(tree) == before


def test_the_example_is_short_and_all_of_it_is_explained() -> None:
    files = sorted(EXAMPLE.glob("*.py"))
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 400
    assert all(f"chips/example/{path.name})" in PAGE for path in files if path.name != "__init__.py")

"""The command line: what it takes, what it says when something is wrong, and with which status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chipfit.cli import main
from chipfit.cli import main as _main
from chipfit.cli.main import COMMANDS

NETWORKS = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())

network = nn.Sequential(nn.Linear(4, 3))
number = 3

class Needs(nn.Module):
    def __init__(self, width):
        super().__init__()

def raises():
    raise KeyError("width")

def quits():
    raise SystemExit(0)

def a_number():
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets_of_a_user.py").write_text(NETWORKS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert len(text.strip().splitlines()) == 1
    return text


@pytest.mark.parametrize("model", ["nets_of_a_user:small", "nets_of_a_user.py:small", "nets_of_a_user.py:network"])
@pytest.mark.parametrize("shape", ["1,4", "[1, 4]", "1, 4"])
def test_networks_and_shapes_as_people_write_them(folder: Path, model: str, shape: str) -> None:
    assert main(["check", model, shape]) == 0


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("nets_of_a_user", "no name of a network"),
        ("nets_of_a_user:", "no name of a network"),
        ("no_such_module_at_all:small", "cannot import the network's module"),
        ("no_such_file.py:small", "no such file"),
        ("nets_of_a_user:smal", "small"),
        ("nets_of_a_user:number", "not a network"),
        ("nets_of_a_user:Needs", "building the network failed"),
        ("nets_of_a_user:raises", "KeyError: 'width'"),
        ("nets_of_a_user:quits", "SystemExit"),
        ("nets_of_a_user:a_number", "gave no nn.Module"),
    ],
)
def test_networks_that_are_none(folder: Path, model: str, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", model, "1,4"]) == 2
    assert what in said(capsys)


@pytest.mark.parametrize("shape", ["1,x", "", "0,4", "1.5"])
def test_shapes_that_are_none(folder: Path, shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "nets_of_a_user:small", shape]) == 2
    assert "shape" in said(capsys)


def test_a_module_that_raises_while_imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "broken.py").write_text("raise RuntimeError('no GPU here')", encoding="utf-8")
    assert main(["check", "broken.py:net", "1,4"]) == 2
    assert "RuntimeError: no GPU here" in said(capsys)


def test_names_with_brackets_are_no_markup(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "a[/b]"]) == 2
    assert "a[/b]" in said(capsys)


@pytest.mark.parametrize("command", [["demo", "--out"], ["search", "nets_of_a_user:small", "0.5", "--out"]])
def test_an_output_that_cannot_be_written_is_found_first(
    folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("", encoding="utf-8")
    assert main([*command, "file/inside/bits.json"]) == 2
    assert "cannot write to the output folder" in said(capsys)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> None:
        """Stop."""
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "chips", stopped)
    assert _main(["chips"]) == 130
    assert "stopped" in said(capsys)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["export", "--help"]])
def test_help_does_not_wait_for_torch(words: list[str]) -> None:
    code = (
        "import sys; from chipfit.cli import main\n"
        f"try: main({words!r})\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_python_m() -> None:
    shown = subprocess.run([sys.executable, "-m", "chipfit", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("chipfit ")


def test_chips(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chips"]) == 0
    assert "wtm2101" in capsys.readouterr().out

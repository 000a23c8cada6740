"""The reference shares no arithmetic with training: its rooms import none of it."""

import ast
from pathlib import Path

import pytest

import chipfit.program

ROOMS = ("ops", "program", "storage", "integers", "interpreter", "fast", "bounds")
ALLOWED = ("chipfit.errors", "chipfit.files", "chipfit.integer", "chipfit.arithmetic.bounds")
EXPORT = "chipfit.export"  # `Program.export` is its front door, and nothing of training comes in through it


@pytest.mark.parametrize("room", ROOMS)
def test_imports(room: str) -> None:
    tree = ast.parse((Path(chipfit.integer.__file__).parent / f"{room}.py").read_text(encoding="utf-8"))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    own = [name for name in imported if name.startswith("chipfit")]
    assert not [name for name in own if not name.startswith((*ALLOWED, EXPORT) if room == "program" else ALLOWED)]
    assert not [name for name in own if ".lower" in name or name.endswith("builder")]

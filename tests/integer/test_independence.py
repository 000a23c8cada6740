"""The reference shares no arithmetic with training: its rooms, and those of each dialect, import none of it."""

import ast
from pathlib import Path

import pytest

import chipfit

ROOT = Path(chipfit.__file__).parent
ROOMS = [
    *(f"program/{room}.py" for room in ("types", "grid", "dialect", "storage", "upgrade", "integers", "rows")),
    *(f"program/{room}.py" for room in ("ops", "reference", "fast", "ranges")),
    *(f"program/core/{room}.py" for room in ("base", "ops", "moves", "reference", "fast", "ranges", "rules")),
    *(
        f"chips/{vendor}/program/{room}.py"
        for vendor in ("ingenic", "witmem")
        for room in ("ops", "reference", "fast", "ranges")
    ),
]
ALLOWED = ("chipfit.errors", "chipfit.files", "chipfit.program", "chipfit.arithmetic.bounds")
MORE = {  # what these ask is who is meant, when they are called
    "program/types.py": ("chipfit.export", "chipfit.vendor"),
    "program/dialect.py": ("chipfit.export.onnx", "chipfit.vendor"),
}


@pytest.mark.parametrize("room", ROOMS)
def test_imports(room: str) -> None:
    tree = ast.parse((ROOT / room).read_text(encoding="utf-8"))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    own = [name for name in imported if name.startswith("chipfit")]
    dialect = f"chipfit.{room.rpartition('/')[0].replace('/', '.')}" if room.startswith("chips/") else "chipfit.program"
    allowed = (*ALLOWED, dialect, *MORE.get(room, ()))
    assert not [name for name in own if not name.startswith(allowed)]
    assert not [name for name in own if ".lower" in name or name.endswith(("builder", "proof"))]

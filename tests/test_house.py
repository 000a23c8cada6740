"""The house: no word of a vendor outside its folder, imports that run one way, no circle of folders."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "chipfit"
WORDS = re.compile("witmem|witin|wtm2101|ingenic|magik|t40|t41|txx", re.IGNORECASE)
ORDER = (
    ("errors", "version", "moved", "copying"),
    ("reading", "folders", "files", "onnx_file", "arithmetic"),
    ("noise",),
    ("vendor", "hardware"),
    ("modes",),
    ("convert",),
    ("program",),
    ("export",),
    ("engines",),
    ("fit",),
    ("report",),
    ("chips",),
    ("cli",),
)
"""Rooms from the bottom up; a room may import from its own level and from those below it."""
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


FILES = sorted(path for path in SOURCE.rglob("*.py") if room_of(path) not in ("__init__", "__main__"))


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of docstrings, and of strings that document a name."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                lines |= set(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    return lines


def imports(path: Path) -> Iterator[str]:
    """Modules of chipfit that a file imports when it is imported itself, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _run_at_import(tree.body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chipfit"):
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("chipfit"))


def _run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _run_at_import([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) != "chips"], ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_word_of_a_vendor(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    documented = docstring_lines(ast.parse(text))
    found = [
        f"line {token.start[0]}: {token.string}"
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type != tokenize.COMMENT and token.start[0] not in documented and WORDS.search(token.string)
    ]
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_one_way(path: Path) -> None:
    own = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if len(parts) < 2 or parts[1] not in LEVEL or parts[1] == own:
            continue
        assert LEVEL[parts[1]] <= LEVEL[own], f"{own} imports {name}"
        assert parts[1] != "chips", f"{own} imports {name}: a vendor is found by name"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) == "chips"], ids=lambda p: str(p.relative_to(SOURCE)))
def test_vendors_do_not_know_each_other(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[1]
    for name in imports(path):
        parts = name.split(".")
        assert parts[1] != "chips" or len(parts) < 3 or parts[2] == own, name


def folder_of(path: Path) -> tuple[str, ...]:
    """The room that a file belongs to: program, export, chips/<vendor>."""
    parts = path.relative_to(SOURCE).parts
    return parts[:2] if parts[0] == "chips" else parts[:1]


def test_no_circle_of_files_across_folders() -> None:
    """A circle may only be one inside a room."""
    names = {".".join(("chipfit", *p.relative_to(SOURCE).with_suffix("").parts)): p for p in SOURCE.rglob("*.py")}
    known = {name.removesuffix(".__init__"): path for name, path in names.items()}
    edges = {name: {found for found in imports(path) if found in known} for name, path in known.items()}
    for circle in _circles(edges):
        assert len({folder_of(known[name]) for name in circle}) == 1, circle


def _circles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """Strongly connected parts with more than one member (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in edges[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = []
            while not part or part[-1] != name:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(part)

    for name in edges:
        if name not in index:
            visit(name)
    return iter(found)

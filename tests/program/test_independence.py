"""The integer program shares no arithmetic with training: none of its rooms imports any.

Rooms are all files of `program/`, of `export/`, and of every vendor's `program/`. From elsewhere they may take what
computes nothing on tensors, `arithmetic.bounds` (which only counts), and the classes of layers, by which lowering finds
its rules. What a class's methods compute cannot be seen in imports: the mutants beside this file show that.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest
from torch import nn

import chipfit

ROOT = Path(chipfit.__file__).parent
ROOMS = {
    ".".join(("chipfit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for pattern in ("program/**/*.py", "export/**/*.py", "chips/*/program/**/*.py")
    for path in sorted(ROOT.glob(pattern))
}
COUNTING = (
    "chipfit.arithmetic.bounds",
    "chipfit.files",
    "chipfit.folders",
    "chipfit.onnx_file",
    "chipfit.reading",
)
"""Take part in no code: they say how large a sum can become, and read and write files."""
REGISTRY = ("chipfit.vendor", "chipfit.hardware")
"""Find a vendor, and say what a chip is; the vendor's rooms come in by name."""
RUNNING = ("chipfit.copying", "chipfit.convert.tracer", "chipfit.chips.ingenic.network")
"""Copy a network, run it, and say for which chip it is; no code comes from them."""
FIRST = (
    *(f"program.{room}" for room in ("reference", "fast", "ranges", "types", "ops", "grid", "dialect", "storage")),
    *(f"program.core.{room}" for room in ("ops", "moves", "reference", "fast", "ranges", "rules")),
    *(
        f"chips.{vendor}.program.{room}"
        for vendor in ("ingenic", "witmem")
        for room in ("ops", "reference", "fast", "ranges", "rules")
    ),
)
"""Rooms that are there when a program is read from its files, without any network: they know no lowering either."""


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None, str]]:
    """Module, name in it (None for the module itself) and alias of every import that happens when the code runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((entry.name, None, entry.asname or entry.name) for entry in node.names)
        elif isinstance(node, ast.ImportFrom):
            for entry in node.names:
                yield node.module or "", entry.name, entry.asname or entry.name
        else:
            yield from imports(node)


@functools.cache
def computes(module: str) -> bool:
    """Whether a module has anything to do with tensors: it, or what it imports of chipfit, imports torch or numpy."""
    path = ROOT.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = [name for name, _, _ in imports(tree_of(path))]
    return any(
        name.split(".")[0] in ("torch", "numpy") or (name.startswith("chipfit.") and computes(name)) for name in names
    )


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def only_names(thing: object) -> bool:
    """Whether a thing is the class of a layer, or a choice."""
    return isinstance(thing, type) and issubclass(thing, (nn.Module, Enum))


def taken_from_training(room: str) -> Iterator[str]:
    tree = tree_of(ROOMS[room])
    for module, name, alias in imports(tree):
        if not module.startswith("chipfit"):
            continue
        if name is not None and is_module(f"{module}.{name}"):
            module, name = f"{module}.{name}", None
        if module in (*ROOMS, *COUNTING, *REGISTRY, *RUNNING) or not computes(module):
            continue
        found = importlib.import_module(module)
        used = [name] if name else attributes(tree, alias)
        yield from (f"{module}.{entry}" for entry in used if not only_names(getattr(found, entry)))


def attributes(tree: ast.AST, alias: str) -> list[str]:
    """What is read of a module that was imported as a whole."""
    return [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == alias
    ]


def test_all_rooms_are_looked_at() -> None:
    for needed in ("program.lowering.engine", "program.reference", "program.fast", "program.ranges", "program.proof"):
        assert f"chipfit.{needed}" in ROOMS
    vendors = {name.split(".")[2] for name in ROOMS if name.startswith("chipfit.chips.")}
    assert vendors == {path.parent.name for path in ROOT.glob("chips/*/program")} and len(vendors) > 1
    for vendor in vendors:
        assert any(name.startswith(f"chipfit.chips.{vendor}.program.lowering.") for name in ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_takes_arithmetic_from_training(room: str) -> None:
    assert list(taken_from_training(room)) == []


@pytest.mark.parametrize("room", FIRST)
def test_a_program_is_computed_without_lowering(room: str) -> None:
    assert not [name for name, _, _ in imports(tree_of(ROOMS[f"chipfit.{room}"])) if ".lowering" in name]


def test_the_check_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "room.py"
    room.write_text(
        "from chipfit.chips import ingenic as chips\n"
        "from chipfit.chips.ingenic import quantizers\n"
        "from chipfit.arithmetic.rounding import half_even\n"
        "def f(): from chipfit.chips.ingenic.exact import weight_codes\n"
        "kinds = chips.Conv2D, chips.ReLU6\n"
        "codes = quantizers.tround\n"
    )
    monkeypatch.setitem(ROOMS, "room", room)
    found = ["chipfit.chips.ingenic.quantizers.tround", "chipfit.arithmetic.rounding.half_even"]
    assert sorted(taken_from_training("room")) == sorted([*found, "chipfit.chips.ingenic.exact.weight_codes"])

"""C text: kernels by name with what they need, and constants as initialisers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any

import numpy as np

from chipfit.export.c.views import Buffer, Table, View
from chipfit.export.c.words import Function, Row, Struct

_SECTION = re.compile(r"^/\*: (\w+)(?: needs ([\w, ]+))? \*/\n", re.MULTILINE)
_WRITTEN_FOR = {
    "dots8": ("DOTS", "int8_t"),
    "dots16": ("DOTS", "int16_t"),
    "taps8": ("TAPS", "int8_t"),
    "taps16": ("TAPS", "int16_t"),
    "look_up8": ("LOOK_UP", "int8_t"),
    "look_up16": ("LOOK_UP", "int16_t"),
    "look_up": ("LOOK_UP", "int32_t"),
}
"""Kernels that differ only in the type of the constants that they read: their section, and what ENTRY is there."""


@functools.cache
def sections(text: str) -> dict[str, tuple[tuple[str, ...], str]]:
    r"""The kernels of a text by name: what each needs, and its lines.

    Example:
        >>> sections("/*: one needs base, two */\nint one;\n")
        {'one': (('base', 'two'), 'int one;\n')}
    """
    found = {}
    parts = _SECTION.split(text)
    for name, needs, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        found[name] = (
            tuple(part.strip() for part in (needs or "").split(",") if part.strip()),
            body.strip("\n") + "\n",
        )
    return found


@functools.cache
def core_text() -> str:
    """The text of the core's kernels."""
    folder = resources.files("chipfit.export.c") / "kernels"
    return "\n".join((folder / name).read_text("utf-8") for name in ("base.c", "rows.c", "conv.c", "soft.c"))


def kernels(names: Iterable[str], texts: Iterable[str]) -> str:
    """The text of kernels and of all that they need, each once, what is needed first."""
    known: dict[str, tuple[tuple[str, ...], str]] = {}
    for text in (core_text(), *texts):
        known |= sections(text)
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name in done:
            return
        template, entry = _WRITTEN_FOR.get(name, (name, "ENTRY"))
        needs, body = known[template]
        for need in needs:
            add(need)
        done[name] = body.replace(template, name).replace("ENTRY", entry)

    add("base")
    for name in names:
        add(name)
    return "\n".join(done.values())


class Constants:
    """Structs of constants as C text, each once, in the order in which they are needed."""

    def __init__(self, rank: int) -> None:
        self.rank, self.lines, self.names = rank, list[str](), dict[str, str]()
        self.functions: dict[str, None] = {}
        self.tables: dict[str, Table] = {}

    def value(self, given: Any) -> str:
        """A field of a struct."""
        if given is None:
            return "0"
        if isinstance(given, (bool, int, np.integer)):
            return number(int(given))
        if isinstance(given, Function):
            self.functions.setdefault(given.name)
            return given.name
        if isinstance(given, Table):
            self.tables[given.name] = given
            return given.name
        if isinstance(given, Struct):
            if given.type == "view_t":
                return self.view(*given.fields)
            return "&" + self.named(given.type, self.fields(given.fields))
        if isinstance(given, tuple) and given and given[0] == "axes":
            return "{" + ", ".join(map(number, [*given[1], *[given[2]] * (self.rank - len(given[1]))])) + "}"
        if isinstance(given, tuple) and (not given or isinstance(given[0], Row)):
            return self.rows(given)
        return "{" + ", ".join(self.value(entry) for entry in given) + "}"

    def fields(self, fields: Iterable[Any]) -> str:
        """A struct's initialiser."""
        return "{" + ", ".join(self.value(entry) for entry in fields) + "}"

    def view(self, view: View | None, strides: tuple[int, ...], rows: tuple[Row, ...]) -> str:
        """A `view_t`."""
        steps = "{" + ", ".join(map(str, [*strides, *[0] * (self.rank - len(strides))])) + "}"
        if view is None:
            return "{0, 0, 0, " + steps + ", 0}"
        base = view.base
        data = "0" if isinstance(base, Buffer) else self.value(base)
        return f"{{{data}, {view.at}u, {held_as(base.type)}, {steps}, {self.rows(rows)}}}"

    def rows(self, rows: tuple[Row, ...]) -> str:
        """The name of an array of steps, which ends in an empty one."""
        if not rows:
            return "0"
        entries = []
        for row in rows:
            if row.kernel:
                self.functions.setdefault(row.kernel)
            numbers = ", ".join(number(v) for v in (row.a, row.b, row.c, row.lo, row.hi))
            entries.append(f"{{{row.kernel or '0'}, {numbers}, {self.value(row.t)}, {self.value(row.u)}}}")
        return self.named("op_t", "{\n    " + ",\n    ".join([*entries, "{0, 0, 0, 0, 0, 0, 0, 0}"]) + "}", "[]")

    def named(self, type_: str, text: str, array: str = "") -> str:
        """The name of a constant; equal ones are one."""
        key = f"{type_}{array} {text}"
        if key not in self.names:
            self.names[key] = f"s{len(self.names)}"
            self.lines.append(f"static const {type_} {self.names[key]}{array} = {text};")
        return self.names[key]


def number(value: int) -> str:
    """An integer as C has it.

    Example:
        >>> number(-5), number(-2**31)
        ('-5', '(-2147483647 - 1)')
    """
    return "(-2147483647 - 1)" if value == -(2**31) else str(value)


_C_TYPES = {"float32": "uint32_t", "extra_t": "extra_t"}


def c_type(type_: str) -> str:
    """C's name of a type."""
    return _C_TYPES.get(type_, f"{type_}_t")


def held_as(type_: str) -> str:
    """C's name of how a type's numbers lie in the arena."""
    return "NET_INT32" if type_ == "float32" else f"NET_{type_.upper()}"


def table_text(table: Table) -> Iterator[str]:
    """Lines that define a table."""
    values = table.values
    if table.type == "extra_t":
        entries = [f"{{{e['out']}, {e['at']}, {e['by']}}}" for e in values]
    elif table.type == "int64":
        low = "(-9223372036854775807 - 1)"
        entries = [low if v == -(2**63) else str(v) for v in values.tolist()]
    else:
        entries = [number(v) for v in values.tolist()]
    yield f"const {c_type(table.type)} {table.name}[{max(len(entries), 1)}] = {{"
    for i in range(0, len(entries), 24):
        yield "    " + ", ".join(entries[i : i + 24]) + ("," if i + 24 < len(entries) else "")
    yield "};"


def literal(text: str) -> str:
    r"""A string of C, whatever it holds: everything but plain letters, digits and a few signs is escaped.

    Example:
        >>> literal('a"b'), literal("conv.1")
        ('"a\\042b"', '"conv.1"')
    """
    plain = re.compile(r"[A-Za-z0-9_.,:@/ +-]")
    return '"' + "".join(c if plain.match(c) else "".join(f"\\{b:03o}" for b in c.encode()) for c in text) + '"'

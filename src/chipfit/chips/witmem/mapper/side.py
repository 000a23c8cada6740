"""The text file beside the compiler's ONNX file: how each array node is to be placed and driven.

The names of groups and fields are the vendor's (spec/wtm2101-silicon.md, section 3); the punctuation between them is
not published, so ours is the plainest that holds them:

    fc1 {
      inputOpti { shift: 0 num: 0 signed_input: 0 }
      weightOpti { shift: 0 num: 0 region: 0 }
      doubleWeightOpti { multiple: 0 }
      arrayOutputOpti { magnify: 0 repeat: 0 }
    }

The tool chain's manual makes all of these numbers exponents: `multiple: 1` writes the rows twice, `repeat: 1` runs the
operation twice, `magnify: 1` halves the layer's scale. So 0 asks for nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from chipfit.errors import FileFormatError, UnsupportedError

GROUPS: dict[str, dict[str, str]] = {
    "inputOpti": {"shift": "input_shift", "num": "input_num", "signed_input": "signed_input"},
    "weightOpti": {"shift": "weight_shift", "num": "weight_num", "region": "region"},
    "doubleWeightOpti": {"multiple": "multiple"},
    "arrayOutputOpti": {"magnify": "magnify", "repeat": "repeat"},
}
"""Groups and fields of the file, each with the attribute of `SideEntry` that holds it."""
_EXPONENTS = {"multiple": 10, "magnify": 13, "repeat": 10}
"""Fields whose number n stands for 2^n, each with the largest n that makes any sense."""


@dataclass(frozen=True)
class SideEntry:
    """One array node's entry. Everything but the signed input is left to the compiler.

    Args:
        signed_input: 1 where the input is int8, driven in two passes, 0 where it is uint8.
        region: 0 leaves the place to the compiler.
        multiple: How often the weights are stored, a power of two.
        input_shift: 1 where the input codes are multiplied by 2^`input_num`; 0, they are not.
        input_num: See `input_shift`.
        weight_shift: 1 where the weights are multiplied by 2^`weight_num`; 0, they are not.
        weight_num: See `weight_shift`.
        magnify: What the layer's scale is divided by, a power of two.
        repeat: How often the operation runs, a power of two.
    """

    signed_input: int = 0
    region: int = 0
    multiple: int = 1
    input_shift: int = 0
    input_num: int = 0
    weight_shift: int = 0
    weight_num: int = 0
    magnify: int = 1
    repeat: int = 1


_NAME = re.compile(r"[^\s{}]+")


def side_text(entries: dict[str, SideEntry]) -> str:
    """The file's text.

    Args:
        entries: Entry by the array node's name.

    Raises:
        UnsupportedError: a name that would read as something else.

    Example:
        >>> print(side_text({"fc1": SideEntry(signed_input=1)}))
        fc1 {
          inputOpti { shift: 0 num: 0 signed_input: 1 }
          weightOpti { shift: 0 num: 0 region: 0 }
          doubleWeightOpti { multiple: 0 }
          arrayOutputOpti { magnify: 0 repeat: 0 }
        }
        <BLANKLINE>
    """
    lines = []
    for name, entry in entries.items():
        if not _NAME.fullmatch(name):
            raise UnsupportedError(
                "the layer's name cannot stand in the side file", given=name, allowed="no spaces and no { or }"
            )
        lines.append(f"{name} {{")
        for group, names in GROUPS.items():
            values = " ".join(f"{field}: {_written(entry, attribute)}" for field, attribute in names.items())
            lines.append(f"  {group} {{ {values} }}")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _written(entry: SideEntry, attribute: str) -> int:
    value: int = getattr(entry, attribute)
    return value.bit_length() - 1 if attribute in _EXPONENTS else value


_NODE = re.compile(r"\s*([^\s{}]+)\s*\{((?:[^{}]*\{[^{}]*\})*)\s*\}\s*")
_GROUP = re.compile(r"\s*(\w+)\s*\{([^{}]*)\}")
_FIELD = re.compile(r"\s*(\w+)\s*:\s*(-?\d+)\s*")


def read_side_text(text: str, where: str = "side file") -> dict[str, SideEntry]:
    """Read what `side_text` wrote.

    Args:
        text: The file's text.
        where: Its name, for errors.

    Returns:
        Entry by the array node's name.

    Raises:
        FileFormatError: text that is no entry, an unknown or missing group or field, a number that no chip could
            follow, or a name twice.

    Example:
        >>> entries = {"fc1": SideEntry(signed_input=1), "fc2": SideEntry()}
        >>> read_side_text(side_text(entries)) == entries
        True
    """
    entries: dict[str, SideEntry] = {}
    position = 0
    while position < len(text):
        match = _NODE.match(text, position)
        if match is None:
            raise FileFormatError("this is no entry of a node", given=text[position : position + 60], where=where)
        name, body = match.groups()
        if name in entries:
            raise FileFormatError("a node has two entries", given=name, where=where)
        entries[name] = _read_entry(body, f"{where}, {name}")
        position = match.end()
    return entries


def _read_entry(body: str, where: str) -> SideEntry:
    values: dict[str, int] = {}
    for group, content in _GROUP.findall(body):
        if group not in GROUPS:
            raise FileFormatError("unknown group", given=group, allowed=", ".join(GROUPS), where=where)
        if _FIELD.sub("", content):
            raise FileFormatError("a group holds more than fields", given=content, allowed="name: integer", where=where)
        for field, value in _FIELD.findall(content):
            if field not in GROUPS[group]:
                allowed = ", ".join(GROUPS[group])
                raise FileFormatError(f"unknown field of {group}", given=field, allowed=allowed, where=where)
            attribute, number = GROUPS[group][field], int(value)
            if attribute in _EXPONENTS and not 0 <= number <= _EXPONENTS[attribute]:
                allowed = f"0 to {_EXPONENTS[attribute]}, the exponent of a power of two"
                raise FileFormatError(f"{group}.{field} out of range", given=number, allowed=allowed, where=where)
            values[attribute] = 1 << number if attribute in _EXPONENTS else number
    missing = {field.name for field in fields(SideEntry)} - set(values)
    if missing:
        paths = [f"{g}.{f}" for g, names in GROUPS.items() for f, a in names.items() if a in missing]
        raise FileFormatError("fields are missing", given=", ".join(paths), where=where)
    return SideEntry(**values)

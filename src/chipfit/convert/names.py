"""Names of our own for what a file names.

torch.fx writes Python source from names of arguments and modules. So a name of a file is used only where it is a plain
word that means nothing to Python or torch, and replaced elsewhere: `x1`, `unit_1`. What the file said stays as data.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable

from torch import fx, nn

_WORD = re.compile(r"[A-Za-z0-9_]{1,100}", re.ASCII)
_DEEPEST = 20
"""Parts of a qualified name; more are no network's."""
_MEANT = {"self", "torch", "inf", "nan", "device", "fx_pytree", "pytree", *vars(builtins)} - {"input"}
"""Words that source written by torch.fx may use; it does not call `input`, the usual name of a network's argument."""
_TAKEN = {"self", *dir(fx.GraphModule), *vars(nn.Module())}
"""Attributes that modules have."""


def plain_argument(name: str) -> bool:
    """Whether a name can be a function's argument as it is.

    Example:
        >>> plain_argument("image"), plain_argument("x=(print())"), plain_argument("getattr"), plain_argument("if")
        (True, False, False, False)
    """
    word = _WORD.fullmatch(name) is not None and name.isidentifier() and not keyword.iskeyword(name)
    return word and name not in _MEANT and not name.startswith("__")


def plain_path(name: str) -> bool:
    """Whether a name can be a module's qualified name as it is.

    Example:
        >>> plain_path("model.0.conv"), plain_path('0"]'), plain_path("model.__class__"), plain_path("a.forward")
        (True, False, False, False)
    """
    parts = name.split(".")
    return len(parts) <= _DEEPEST and all(
        _WORD.fullmatch(part) is not None
        and not part.startswith("__")
        and not keyword.iskeyword(part)
        and part not in _TAKEN
        for part in parts
    )


def arguments(names: Iterable[str]) -> dict[str, str]:
    """A name of an argument for each of a file's inputs.

    Example:
        >>> arguments(["image", "x=(print())", "0"])
        {'image': 'image', 'x=(print())': 'x2', '0': 'x3'}
    """
    given = list(names)
    taken = set(given)
    return {name: name if plain_argument(name) else _free(f"x{i}", taken) for i, name in enumerate(given, 1)}


def paths(names: Iterable[str]) -> dict[str, str]:
    """A qualified name for each of a file's layers; a layer inside another one's name gets a new one too.

    Example:
        >>> paths(["a.b", "a.b.weight", "import os"])
        {'a.b': 'a.b', 'a.b.weight': 'unit_2', 'import os': 'unit_3'}
    """
    given = list(dict.fromkeys(names))
    known = set(given)
    taken = {name.partition(".")[0] for name in given}
    found = {}
    for i, name in enumerate(given, 1):
        inside = any(name[:at] in known for at, letter in enumerate(name) if letter == ".")
        found[name] = name if plain_path(name) and not inside else _free(f"unit_{i}", taken)
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name

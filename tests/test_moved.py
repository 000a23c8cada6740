"""Old spellings work, and say what is new."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import chipfit
from chipfit.moved import MOVED, new_name


@pytest.mark.parametrize("old", [*MOVED, "chipfit.recipe.data", "chipfit.integer.storage"])
def test_an_old_name_is_the_new_room(old: str) -> None:
    new = new_name(old)
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        module = importlib.import_module(old)
    assert new is not None and module is importlib.import_module(new)


def test_what_never_existed_is_still_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("chipfit.recipe.no_such_room")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = chipfit.no_such_name


def test_public_names_are_functions_whatever_was_imported_before() -> None:
    code = "import chipfit.convert, chipfit.export; print(chipfit.convert.__name__, chipfit.export.__name__)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["convert", "export"]


@pytest.mark.parametrize("name", chipfit.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(chipfit, name) is not None

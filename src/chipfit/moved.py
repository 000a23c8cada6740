"""Rooms under the names that they once had: an import of one works, and says where the room is now."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "chipfit.integer.bounds": "chipfit.program.ranges",
    "chipfit.integer.builder": "chipfit.program.lowering.builder",
    "chipfit.integer.certify": "chipfit.program.certificate",
    "chipfit.integer.interpreter": "chipfit.program.reference",
    "chipfit.integer.lower": "chipfit.program.lowering.engine",
    "chipfit.integer.program": "chipfit.program.types",
    "chipfit.integer.verify": "chipfit.program.proof",
    "chipfit.integer": "chipfit.program",
    "chipfit.recipe.calibration": "chipfit.fit.calibrate",
    "chipfit.recipe.calibration_bias": "chipfit.fit.bias",
    "chipfit.recipe.calibration_equalise": "chipfit.fit.equalise",
    "chipfit.recipe.calibration_methods": "chipfit.fit.methods",
    "chipfit.recipe.calibration_quality": "chipfit.fit.quality",
    "chipfit.recipe.evaluation": "chipfit.fit.evaluate",
    "chipfit.recipe.training": "chipfit.fit.train",
    "chipfit.recipe": "chipfit.fit",
    "chipfit.chips.chip": "chipfit.hardware",
    "chipfit.chips.modes": "chipfit.modes",
    "chipfit.chips.registry": "chipfit.vendor",
    "chipfit.chips.conversion": "chipfit.convert.words",
}
"""New name by old name. A name that is not listed follows the longest one that it begins with."""


def new_name(name: str) -> str | None:
    """The name that a room has now; None for a room that never moved.

    Example:
        >>> new_name("chipfit.recipe.data"), new_name("chipfit.integer.verify"), new_name("chipfit.modes")
        ('chipfit.fit.data', 'chipfit.program.proof', None)
    """
    old = name
    while old:
        if old in MOVED:
            return MOVED[old] + name[len(old) :]
        old = old.rpartition(".")[0]
    return None


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = new_name(fullname)
        if new is None or importlib.util.find_spec(new) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = new_name(spec.name) or spec.name
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        return importlib.import_module(new)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the room has been executed under its new name."""


def install() -> None:
    """Let the old names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # before the finder of files, which would load a room a second time

"""chipfit fits PyTorch networks to edge-AI chips, with the chip's own arithmetic.

Bring a plain network, or an ONNX file with `load_onnx`; `check` and `convert` it, or write it with a chip's own layers;
then `calibrate` it (around that: `equalise`, `correct_bias`, `layer_quality`, and `search_bits` for widths), train it
in the modes that `set_mode` chooses, `evaluate` it on simulated chips, `lower` it to an integer program, `verify` that
the two are equal code for code, `certify` what the program needs, and `export` it.

Names are loaded when they are first used, so that `chipfit --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from chipfit import moved
from chipfit.version import __version__

if TYPE_CHECKING:
    from chipfit.convert.checking import check
    from chipfit.convert.onnx.load import load_onnx
    from chipfit.convert.replace import convert
    from chipfit.engines.verifying import verify
    from chipfit.export.writing import export
    from chipfit.fit.bias import correct_bias
    from chipfit.fit.calibrate import calibrate, restore
    from chipfit.fit.chaining import chain_scales
    from chipfit.fit.equalise import equalise
    from chipfit.fit.evaluate import evaluate
    from chipfit.fit.quality import layer_quality, quality_table
    from chipfit.fit.search import search, search_table
    from chipfit.fit.search_plain import search_bits
    from chipfit.hardware import Chip
    from chipfit.modes import freeze_scales, set_mode
    from chipfit.noise.chips import simulated_chip
    from chipfit.program.certificate import certify
    from chipfit.program.lowering.engine import lower
    from chipfit.program.storage import load_program, save_program
    from chipfit.program.types import Program
    from chipfit.vendor import chip

_PUBLIC = {
    "Chip": "hardware",
    "Program": "program.types",
    "calibrate": "fit.calibrate",
    "certify": "program.certificate",
    "chain_scales": "fit.chaining",
    "check": "convert.checking",
    "chip": "vendor",
    "convert": "convert.replace",
    "correct_bias": "fit.bias",
    "equalise": "fit.equalise",
    "evaluate": "fit.evaluate",
    "export": "export.writing",
    "freeze_scales": "modes",
    "layer_quality": "fit.quality",
    "load_onnx": "convert.onnx.load",
    "load_program": "program.storage",
    "lower": "program.lowering.engine",
    "quality_table": "fit.quality",
    "restore": "fit.calibrate",
    "save_program": "program.storage",
    "search": "fit.search",
    "search_bits": "fit.search_plain",
    "search_table": "fit.search",
    "set_mode": "modes",
    "simulated_chip": "noise.chips",
    "verify": "engines.verifying",
}
"""Where each public name is defined."""

__all__ = [
    "Chip",
    "Program",
    "__version__",
    "calibrate",
    "certify",
    "chain_scales",
    "check",
    "chip",
    "convert",
    "correct_bias",
    "equalise",
    "evaluate",
    "export",
    "freeze_scales",
    "layer_quality",
    "load_onnx",
    "load_program",
    "lower",
    "quality_table",
    "restore",
    "save_program",
    "search",
    "search_bits",
    "search_table",
    "set_mode",
    "simulated_chip",
    "verify",
]


class _Name:
    """A public name, kept on the package's class.

    There it is not hidden by the folder of the same name (convert/, export/), which import binds to the package.
    """

    def __init__(self, name: str) -> None:
        self.name, self.value = name, None

    def __get__(self, package: ModuleType, kind: type | None = None) -> Any:
        if self.value is None:
            self.value = getattr(importlib.import_module(f"chipfit.{_PUBLIC[self.name]}"), self.name)
        return self.value

    def __set__(self, package: ModuleType, value: Any) -> None:
        if not isinstance(value, ModuleType):
            self.value = value


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        """A room that was not imported yet, under its own name or an old one."""
        if not name.startswith("_") and importlib.util.find_spec(f"chipfit.{name}") is not None:
            return importlib.import_module(f"chipfit.{name}")
        raise AttributeError(f"module 'chipfit' has no attribute {name!r}")


for _name in _PUBLIC:
    setattr(_Package, _name, _Name(_name))
sys.modules[__name__].__class__ = _Package
moved.install()

"""The files that programs of Ingenic chips can be written as."""

from __future__ import annotations

from pathlib import Path

from chipfit.chips.ingenic.deployed.integers import CHIP
from chipfit.chips.ingenic.deployed.writer import export_txx_deployed
from chipfit.chips.ingenic.magik.write.writer import check_same_network, export_magik
from chipfit.chips.ingenic.targets import CHIPS
from chipfit.export.formats import Format, Request
from chipfit.program.types import Program


def _magik(program: Program, folder: Path, request: Request) -> list[Path]:
    assert request.model is not None  # the format needs it
    example = check_same_network(program, request.model, request.samples)
    return [export_magik(request.model, example, folder / "magik" / "model.onnx")]


def _txx_deployed(program: Program, folder: Path, request: Request) -> list[Path]:
    return export_txx_deployed(program, folder / "txx_deployed")


FORMATS = (
    Format("magik", _magik, ("model",), "its file holds the float weights", tuple(chip.name for chip in CHIPS)),
    Format("txx_deployed", _txx_deployed, chips=(CHIP,)),
)

FUNCTIONS = {
    "deployed": "chipfit.chips.ingenic.deployed.integers:deployed",
    "deployed_difference": "chipfit.chips.ingenic.deployed.integers:deployed_difference",
    "export_txx_deployed": "chipfit.chips.ingenic.deployed.writer:export_txx_deployed",
    "check_magik": "chipfit.chips.ingenic.magik.check.check:check_magik",
    "export_magik": "chipfit.chips.ingenic.magik.write.writer:export_magik",
    "read_magik": "chipfit.chips.ingenic.magik.read.read:read_magik",
}

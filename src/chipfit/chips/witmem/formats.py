"""The files that programs of the WTM2101 can be written as."""

from __future__ import annotations

from pathlib import Path

from chipfit.chips.witmem.mapper.check import check_mapper
from chipfit.chips.witmem.mapper.writer import export_witin_mapper
from chipfit.chips.witmem.mapping.report import export_mapping
from chipfit.chips.witmem.simulator.writer import export_witin_sim
from chipfit.chips.witmem.wtm2101 import WTM2101
from chipfit.errors import InvalidValueError
from chipfit.export.formats import Format, Request
from chipfit.program.types import Program
from chipfit.vendor import Option


def _witin_mapper(program: Program, folder: Path, request: Request) -> list[Path]:
    assert request.samples is not None  # the format needs them
    files = export_witin_mapper(program, request.samples, folder / "witin_mapper" / "model.onnx")
    check_mapper(files[0])
    return files


def _witin_sim(program: Program, folder: Path, request: Request) -> list[Path]:
    assert request.samples is not None  # the format needs them
    layers = request.options["layers"]
    if layers is None:
        raise InvalidValueError(
            "format 'witin_sim' needs the compiled placement",
            given=None,
            allowed="layers=, the path of layers.txt or its text",
            where="export",
        )
    return export_witin_sim(program, request.samples, folder / "witin_sim", layers)


def _mapping(program: Program, folder: Path, request: Request) -> list[Path]:
    return export_mapping(program, folder)


_CHIPS = (WTM2101.name,)
FORMATS = (
    Format("witin_mapper", _witin_mapper, ("samples",), "the compiler calibrates with them, at least 100", _CHIPS),
    Format("mapping", _mapping, chips=_CHIPS),
    Format(
        "witin_sim",
        _witin_sim,
        ("samples",),
        "the simulator computes them",
        _CHIPS,
        {"layers": Option(help="layers.txt of the compiled network, or its text")},
    ),
)

FUNCTIONS = {
    "arrays": "chipfit.chips.witmem.program.ops:arrays",
    "check_mapper": "chipfit.chips.witmem.mapper.check:check_mapper",
    "export_witin_sim": "chipfit.chips.witmem.simulator.writer:export_witin_sim",
    "export_witin_mapper": "chipfit.chips.witmem.mapper.writer:export_witin_mapper",
    "array_map": "chipfit.chips.witmem.mapping.report:array_map",
    "export_mapping": "chipfit.chips.witmem.mapping.report:export_mapping",
    "mapping_table": "chipfit.chips.witmem.mapping.report:mapping_table",
    "chain_scales": "chipfit.chips.witmem.chaining:chain_scales",
}

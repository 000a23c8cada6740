"""From an integer program to files that other tools read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from chipfit.errors import InvalidValueError, UnknownOptionError, UnsupportedError, nearest
from chipfit.export.golden import export_golden, verify_golden
from chipfit.export.magik.check import check_magik
from chipfit.export.magik.read import read_magik
from chipfit.export.magik.writer import check_same_network, export_magik
from chipfit.export.mapper_check import check_mapper
from chipfit.export.mapping import array_map, export_mapping, mapping_table
from chipfit.export.onnx_qdq import export_onnx
from chipfit.export.witin_mapper import export_witin_mapper
from chipfit.export.witin_sim.writer import export_witin_sim
from chipfit.integer.program import Program

__all__ = [
    "FORMATS",
    "array_map",
    "check_magik",
    "check_mapper",
    "export",
    "export_golden",
    "export_magik",
    "export_mapping",
    "export_onnx",
    "export_witin_mapper",
    "export_witin_sim",
    "mapping_table",
    "read_magik",
    "verify_golden",
]

Samples = Tensor | Sequence[Tensor]


def _onnx(program: Program, folder: Path, samples: Samples | None, model: nn.Module | None) -> list[Path]:
    return [export_onnx(program, folder / "model.onnx")]


def _golden(program: Program, folder: Path, samples: Samples | None, model: nn.Module | None) -> list[Path]:
    return export_golden(program, _needed(samples, "golden"), folder / "golden")


def _witin_mapper(program: Program, folder: Path, samples: Samples | None, model: nn.Module | None) -> list[Path]:
    _check_chip(program, "witin_mapper")
    files = export_witin_mapper(program, _needed(samples, "witin_mapper"), folder / "witin_mapper" / "model.onnx")
    check_mapper(files[0])
    return files


def _magik(program: Program, folder: Path, samples: Samples | None, model: nn.Module | None) -> list[Path]:
    if model is None:
        raise InvalidValueError(
            "format 'magik' needs the network: its file holds the float weights",
            given=None,
            allowed="model=, the network that the program was lowered from",
            where="export",
        )
    example = check_same_network(program, model, samples)
    return [export_magik(model, example, folder / "magik" / "model.onnx")]


def _mapping(program: Program, folder: Path, samples: Samples | None, model: nn.Module | None) -> list[Path]:
    return export_mapping(program, folder)


def _witin_sim(
    program: Program,
    folder: Path,
    samples: Samples | None,
    model: nn.Module | None,
    layers: str | Path | None = None,
) -> list[Path]:
    _check_chip(program, "witin_sim")
    if layers is None:
        raise InvalidValueError(
            "format 'witin_sim' needs the compiled placement",
            given=None,
            allowed="layers=, the path of layers.txt or its text",
            where="export",
        )
    return export_witin_sim(program, _needed(samples, "witin_sim"), folder / "witin_sim", layers)


FORMATS: dict[str, Callable[..., list[Path]]] = {
    "onnx": _onnx,
    "golden": _golden,
    "witin_mapper": _witin_mapper,
    "mapping": _mapping,
    "magik": _magik,
    "witin_sim": _witin_sim,
}
"""Writers by format: of program, folder, samples and network, and for 'witin_sim' the placement."""


def export(
    program: Program,
    out_dir: str | Path,
    formats: Iterable[str] = ("onnx",),
    *,
    samples: Samples | None = None,
    model: nn.Module | None = None,
    layers: str | Path | None = None,
) -> list[Path]:
    """Write a program in one or more formats.

    Args:
        program: From `chipfit.lower` or `load_program`.
        out_dir: Folder to write to; nothing is written elsewhere.
        formats: 'onnx' (model.onnx), 'golden' (golden/), 'witin_mapper' (witin_mapper/), 'mapping' (mapping.json and
            mapping.svg), 'magik' (magik/model.onnx), 'witin_sim' (witin_sim/: map.txt, frames, expected codes).
        samples: Inputs of the network, or a tuple of them: needed by 'golden', by 'witin_mapper' (at least 100), and by
            'witin_sim'.
        model: The network that the program was lowered from: needed by 'magik', whose file holds the float weights.
        layers: layers.txt of the compiled network, or its text: needed by 'witin_sim'.

    Returns:
        The files written, format by format. Each file is written whole or not at all; an error leaves what earlier
        formats wrote.

    Raises:
        UnknownOptionError: no such format; nothing is written then.
        InvalidValueError: a format needs samples, the network or the placement.
        FileFormatError: the placement is broken or another network's.
        UnsupportedError: the program cannot be said in a format, with the reason.

    Example:
        >>> import tempfile, torch
        >>> from chipfit.integer import ops
        >>> from chipfit.integer.program import VERSION, Input, Node, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> y = Node("y", ops.Dequantise(), ("q",), real)
        >>> program = Program(VERSION, "wtm2101", (q, y), (Input("x", real),), ("y",), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in export(program, folder, ["onnx", "mapping"])]
        ['model.onnx', 'mapping.json', 'mapping.svg']
    """
    chosen = [formats] if isinstance(formats, str) else list(formats)
    for name in chosen:
        if name not in FORMATS:
            raise UnknownOptionError(
                "unknown format", given=name, allowed=", ".join(FORMATS), where="export", hint=nearest(name, FORMATS)
            )
    more = {"witin_sim": {"layers": layers}}
    given = (program, Path(out_dir), samples, model)
    return [path for name in chosen for path in FORMATS[name](*given, **more.get(name, {}))]


def _needed(samples: Samples | None, name: str) -> Samples:
    if samples is None:
        raise InvalidValueError(
            f"format {name!r} needs samples", given=None, allowed="inputs of the network", where="export"
        )
    return samples


def _check_chip(program: Program, name: str) -> None:
    if program.chip != "wtm2101":
        raise UnsupportedError(f"format {name!r} is for another chip", given=program.chip, allowed="wtm2101")

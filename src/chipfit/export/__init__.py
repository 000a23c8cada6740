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
from chipfit.export.txx_deployed import export_txx_deployed
from chipfit.export.witin_mapper import export_witin_mapper
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
    "export_txx_deployed",
    "export_witin_mapper",
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


def _txx_deployed(program: Program, folder: Path, samples: Samples | None, model: nn.Module | None) -> list[Path]:
    return export_txx_deployed(program, folder / "txx_deployed")


FORMATS: dict[str, Callable[[Program, Path, Samples | None, nn.Module | None], list[Path]]] = {
    "onnx": _onnx,
    "golden": _golden,
    "witin_mapper": _witin_mapper,
    "mapping": _mapping,
    "magik": _magik,
    "txx_deployed": _txx_deployed,
}
"""Writers by format."""


def export(
    program: Program,
    out_dir: str | Path,
    formats: Iterable[str] = ("onnx",),
    *,
    samples: Samples | None = None,
    model: nn.Module | None = None,
) -> list[Path]:
    """Write a program in one or more formats.

    Args:
        program: From `chipfit.lower` or `load_program`.
        out_dir: Folder to write to; nothing is written elsewhere.
        formats: 'onnx' (model.onnx), 'golden' (golden/), 'witin_mapper' (witin_mapper/), 'mapping' (mapping.json and
            mapping.svg), 'magik' (magik/model.onnx), 'txx_deployed' (txx_deployed/).
        samples: Inputs of the network, or a tuple of them: needed by 'golden', and by 'witin_mapper' (at least 100).
        model: The network that the program was lowered from: needed by 'magik', whose file holds the float weights.

    Returns:
        The files written, format by format. Each file is written whole or not at all; an error leaves what earlier
        formats wrote.

    Raises:
        UnknownOptionError: no such format; nothing is written then.
        InvalidValueError: a format needs samples or the network.
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
    return [path for name in chosen for path in FORMATS[name](program, Path(out_dir), samples, model)]


def _needed(samples: Samples | None, name: str) -> Samples:
    if samples is None:
        raise InvalidValueError(
            f"format {name!r} needs samples", given=None, allowed="inputs of the network", where="export"
        )
    return samples


def _check_chip(program: Program, name: str) -> None:
    if program.chip != "wtm2101":
        raise UnsupportedError(f"format {name!r} is for another chip", given=program.chip, allowed="wtm2101")

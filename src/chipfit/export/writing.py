"""`export`: a program as files, in formats that are found by name, a vendor's own among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from chipfit.errors import InvalidValueError, UnknownOptionError, UnsupportedError, nearest
from chipfit.export.c.folder import write_c
from chipfit.export.formats import Format, Request, Samples
from chipfit.export.golden import export_golden
from chipfit.export.onnx.writer import export_onnx
from chipfit.folders import replacing_folder
from chipfit.program.types import Program
from chipfit.vendor import Option, vendors


def _onnx(program: Program, folder: Path, request: Request) -> list[Path]:
    return [export_onnx(program, folder / "model.onnx")]


def _golden(program: Program, folder: Path, request: Request) -> list[Path]:
    assert request.samples is not None  # `export` has seen to it
    return export_golden(program, request.samples, folder / "golden")


C_OPTIONS = {
    "layout": Option("auto", ("auto", "nhwc", "nchw"), "how what a convolution makes lies in memory"),
    "weights": Option("int8", ("int8", "int16"), "int16: faster on cores with vectors, twice the constants"),
    "ram": Option(None, None, "bytes of memory; a network that needs more is refused"),
    "target": Option("host", ("host", "riscv", "mips"), "riscv, mips: adds a linker fragment and a bare-metal main"),
    "unroll": Option(None, (None, True, False), "whether inner loops are written out; None: on RISC-V and MIPS"),
}
"""Options of the format 'c'."""
FORMATS = (
    Format("onnx", _onnx),
    Format("golden", _golden, ("samples",), "its vectors are their codes"),
    Format("c", write_c, options=C_OPTIONS),
)
"""Formats for the programs of every chip."""


def known_formats() -> dict[str, Format]:
    """Every format by name, those of vendors included.

    Example:
        >>> list(known_formats())[:2]
        ['onnx', 'golden']
    """
    every = (*FORMATS, *(entry for vendor in vendors().values() for entry in vendor.formats))
    return {entry.name: entry for entry in every}


def export(
    program: Program,
    out_dir: str | Path,
    formats: Iterable[str] = ("onnx",),
    *,
    samples: Samples | None = None,
    model: nn.Module | None = None,
    **options: Any,
) -> list[Path]:
    """Write a program in one or more formats.

    Args:
        program: From `chipfit.lower` or `load_program`.
        out_dir: Folder to write to; nothing is written elsewhere.
        formats: Names of formats: 'onnx' (model.onnx) and 'golden' (golden/) for every chip, others by chip;
            docs/export.md lists them.
        samples: Inputs of the network, or a tuple of them, for the formats that need them.
        model: The network that the program was lowered from, likewise.
        **options: Options of single formats.

    Returns:
        The files written, format by format: all of them or, on an error, none. Files of an earlier export that are
        not written anew go; what a user has in the folder stays. `SHA256SUMS` lists the files.

    Raises:
        UnknownOptionError: no such format or option; nothing is written then.
        InvalidValueError: a format needs samples or the network.
        WritingError: the folder cannot be written; it is as it was then.
        UnsupportedError: a format of another chip, or one that cannot say the program, with the reason.

    Example:
        >>> import tempfile, torch
        >>> from chipfit.program import ops
        >>> from chipfit.program.types import VERSION, Input, Node, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> y = Node("y", ops.Dequantise(), ("q",), real)
        >>> program = Program(VERSION, "wtm2101", (q, y), (Input("x", real),), ("y",), {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in export(program, folder, ["onnx", "mapping"])]
        ['model.onnx', 'mapping.json', 'mapping.svg']
    """
    chosen = _chosen([formats] if isinstance(formats, str) else list(formats))
    known = {name for entry in chosen for name in entry.options}
    for name in options:
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none for these formats"
            raise UnknownOptionError(
                "unknown option", given=name, allowed=allowed, where="export", hint=nearest(name, known)
            )
    given = {"samples": samples, "model": model}
    for entry in chosen:
        if entry.chips is not None and program.chip not in entry.chips:
            allowed = ", ".join(entry.chips)
            raise UnsupportedError(f"format {entry.name!r} is for another chip", given=program.chip, allowed=allowed)
        for need in entry.needs:
            if given[need] is None:
                raise InvalidValueError(
                    f"format {entry.name!r} needs {_NAMES[need]}: {entry.reason}",
                    given=None,
                    allowed=f"{need}=",
                    where="export",
                )
    out = Path(out_dir)
    with replacing_folder(out) as temporary:
        found = [path for entry in chosen for path in entry.write(program, temporary, _request(entry, given, options))]
        return [out / path.relative_to(temporary) for path in found]


_NAMES = {"samples": "samples, inputs of the network", "model": "the network that the program was lowered from"}


def _request(entry: Format, given: Mapping[str, Any], options: Mapping[str, Any]) -> Request:
    own = {name: options.get(name, option.default) for name, option in entry.options.items()}
    return Request(given["samples"], given["model"], own)


def _chosen(names: list[str]) -> list[Format]:
    known = known_formats()
    for name in names:
        if name not in known:
            raise UnknownOptionError(
                "unknown format", given=name, allowed=", ".join(known), where="export", hint=nearest(name, known)
            )
    return [known[name] for name in names]

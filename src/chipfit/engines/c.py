"""The C program, compiled and run: on this machine, or by another compiler and what runs its programs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.engines.engine import Engine
from chipfit.errors import FileFormatError, InvalidValueError, UnsupportedError
from chipfit.export.c.folder import files_of, golden_array
from chipfit.export.c.writer import CProgram, build, example_inputs
from chipfit.folders import writing
from chipfit.program.reference import trace
from chipfit.program.types import Program
from chipfit.reading import SUMS, check_sum, sums_of
from chipfit.vendor import Option

SOURCES = ("net.c", "net_weights.c", "net_test.c", "net_data.c", "net_main.c")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wcast-qual", "-Wpedantic", "-Werror")
_LIMIT = 600.0


class CompiledC:
    """A compiled folder.

    Args:
        made: The C program.
        executable: Where `net_main` is.
        runner: Words before it.
        version: Of the compiler.
    """

    def __init__(self, made: CProgram, executable: Path, runner: list[str], version: str) -> None:
        self.made, self.command, self.version = made, [*runner, str(executable)], version
        named = list(made.edges.values())
        self.order = sorted(named, key=lambda edge: (edge.last, named.index(edge)))

    def edges(
        self, inputs: tuple[Tensor, ...], reference: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every edge that lies in memory; see `Prepared`."""
        count = len(inputs[0])
        wanted = {edge.name: self._samples(edge.name, inputs, reference, count) for edge in self.order}
        arrays = {edge.name: golden_array(wanted[edge.name], edge) for edge in self.order}
        codes = b"".join(arrays[edge.name][i].tobytes() for i in range(count) for edge in self.made.inputs)
        output = _run([*self.command, "--edges"], codes)
        sizes = [arrays[edge.name][0].nbytes for edge in self.order]
        if len(output) != count * sum(sizes):
            given = f"{len(output)} bytes"
            raise UnsupportedError("the compiled program gave another number of codes", given=given, where="c")
        table = np.frombuffer(output, np.uint8).reshape(count, -1)
        at = 0
        for edge, size in zip(self.order, sizes, strict=True):
            own = arrays[edge.name]
            got = np.ascontiguousarray(table[:, at : at + size]).view(own.dtype).reshape(own.shape)
            at += size
            wide = np.float64 if own.dtype.kind == "f" else np.int64
            yield edge.name, torch.from_numpy(own.astype(wide)), torch.from_numpy(got.astype(wide))

    def _samples(self, name: str, inputs: tuple[Tensor, ...], reference: Mapping[str, Tensor], count: int) -> Tensor:
        """An edge sample by sample, each as C has it: with a batch of 1, wherever the batch stands."""
        shape = self.made.edges[name].view.shape
        value = reference[name]
        if shape[:1] == (1,) and value.shape == (count, *shape[1:]):
            return value[:, None]
        single = [trace(self.made.program, *(x[i : i + 1] for x in inputs))[name] for i in range(count)]
        return torch.stack(single)


def _run(command: list[str], given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(command, input=given, capture_output=True, timeout=_LIMIT, check=False)
    except FileNotFoundError as error:
        hint = "Install it, or name another with cc= or runner=."
        raise UnsupportedError("no such program on this machine", given=command[0], where="c", hint=hint) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnsupportedError("the compiled program cannot be run", given=str(error), where="c") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise UnsupportedError(
            f"{Path(command[0]).name} ended with {done.returncode}",
            given=said[0] if said else "",
            where="c",
            hint="A program of another machine needs runner=." if not said else None,
        )
    return done.stdout


def compiler_version(cc: list[str]) -> str:
    """First line of what a compiler says of itself, with the flags.

    Raises:
        UnsupportedError: there is none.
    """
    return " ".join([_run([cc[0], "--version"]).decode("utf-8", "replace").splitlines()[0], *cc[1:]])


def compile_folder(folder: Path, cc: list[str], flags: list[str], executable: Path) -> None:
    """Compile a folder.

    Raises:
        UnsupportedError: the compiler is missing, or fails.
    """
    _run([*cc, *STRICT, *flags, "-o", str(executable), *(str(folder / name) for name in SOURCES)])


def check_sums(folder: Path) -> None:
    """Compare a folder with its SHA256SUMS.

    Raises:
        FileFormatError: a file is missing or was changed.
    """
    sums = sums_of(folder)
    if sums is None:
        raise FileFormatError("no such file", given=SUMS, where=str(folder), hint="Export the program again.")
    for name in sums:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise FileFormatError("no such file", given=name, where=str(folder), hint="Export the program again.")
        check_sum(path.read_bytes(), sums, name, folder)


@contextmanager
def prepared(program: Program, options: Mapping[str, Any]) -> Iterator[CompiledC]:
    """Write a program, or take a folder that holds it, and compile it."""
    cc = shlex.split(options["cc"] or "cc")
    runner, flags = shlex.split(options["runner"] or ""), shlex.split(options["cflags"])
    if runner and shutil.which(runner[0]) is None:
        hint = "Install it, or leave runner= out."
        raise UnsupportedError("no such program on this machine", given=runner[0], where="runner", hint=hint)
    version = compiler_version(cc)
    made = build(program, options["layout"], options["weights"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = files_of(made, example_inputs(program, 1))
        if options["folder"] is not None:
            _same(Path(options["folder"]), files)
            folder = Path(options["folder"])
        else:
            with writing(folder):
                for name, text in files.items():
                    (folder / name).write_text(text, encoding="utf-8")
        executable = Path(temporary) / "net_main"
        compile_folder(folder, cc, flags, executable)
        yield CompiledC(made, executable, runner, " ".join([version, *flags]))


def _same(folder: Path, files: Mapping[str, str]) -> None:
    """Whether a folder holds this program's C, as it was written.

    Raises:
        FileFormatError: a file is missing or was changed.
        InvalidValueError: it is another program's, or was written with other options.
    """
    check_sums(folder)
    for name in ("net.c", "net_weights.c"):
        if (folder / name).read_text("utf-8") != files[name]:
            hint = "Give the options it was exported with (layout, weights), or export it again."
            raise InvalidValueError("the folder is not this program's C", given=name, where=str(folder), hint=hint)


ENGINE = Engine(
    "c",
    prepared,
    {
        "cc": Option(None, None, "the compiler and words behind it; default cc"),
        "runner": Option(None, None, "what runs its programs, such as qemu-mips"),
        "cflags": Option("-O2", None, "more flags"),
        "folder": Option(None, None, "a folder c/ that was exported; default a new one"),
        "layout": Option("auto", ("auto", "nhwc", "nchw"), "as for export"),
        "weights": Option("int8", ("int8", "int16"), "as for export"),
    },
)

"""What a user gives on the command line: networks by name, lists as people write them, folders to write to."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chipfit.errors import ChipfitError, InvalidValueError, UnknownOptionError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

_FORM = "module:callable or file.py:callable, which takes no arguments, the name of a network, or model.onnx"


def network(name: str) -> nn.Module:
    """Build a user's network.

    Args:
        name: 'package.module:attribute' or 'path/file.py:attribute'; the attribute is a class or function that takes no
            arguments and gives an `nn.Module`, or such a module itself. Or an ONNX file, 'path/model.onnx'.

    Raises:
        UnknownOptionError: there is no such module, file or attribute.
        InvalidValueError: it raises, or gives something else.
        FileFormatError: there is no such ONNX file, or it is damaged.
        UnsupportedError: it holds what is not read.
    """
    from torch import nn

    if Path(name).suffix.lower() == ".onnx":
        from chipfit.convert.onnx.load import load_onnx

        return load_onnx(name)
    source, colon, attribute = name.rpartition(":")
    if not colon or not source or not attribute:
        raise UnknownOptionError("no name of a network", given=name, allowed=_FORM, where="model")
    module = _imported(source, name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UnknownOptionError(
                "no such attribute", given=attribute, allowed=_FORM, where=source, hint=nearest(part, dir(found))
            )
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise InvalidValueError("not a network", given=type(found).__name__, allowed=_FORM, where=name)
        found = _called(found, name)
    if not isinstance(found, nn.Module):
        raise InvalidValueError("gave no nn.Module", given=type(found).__name__, allowed=_FORM, where=name)
    return found


def _imported(source: str, name: str) -> Any:
    path = Path(source)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise UnknownOptionError("no such file", given=source, allowed=_FORM, where="model")
            folder = str(path.resolve().parent)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None  # a .py file has both
            module = importlib.util.module_from_spec(spec)
            if folder not in sys.path:  # what lies beside the file is imported from there
                sys.path.insert(0, folder)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
            return module
        if str(Path.cwd()) not in sys.path:  # the user's module lies where the command is given
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(source)
    except ChipfitError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise UnknownOptionError(
            "cannot import the network's module", given=name, allowed=_FORM, hint=_said(error)
        ) from error


def _called(build: Any, name: str) -> Any:
    try:
        return build()
    except ChipfitError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidValueError("building the network failed", given=_said(error), allowed=_FORM, where=name) from error


def _said(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def words(given: str | Iterable[str]) -> list[str]:
    """A list of names as people write it: `onnx`, `onnx,golden` or `[onnx, golden]`.

    Example:
        >>> words("onnx"), words("onnx, golden"), words("[onnx, golden]")
        (['onnx'], ['onnx', 'golden'], ['onnx', 'golden'])
    """
    parts = given.strip().strip("[]()").split(",") if isinstance(given, str) else [str(part) for part in given]
    return [part.strip().strip("'\"") for part in parts if part.strip()]


def numbers(given: str | Iterable[int], where: str) -> list[int]:
    """A list of whole numbers as people write it: `1,3,32,32` or `[1, 3, 32, 32]`.

    Raises:
        InvalidValueError: something else.

    Example:
        >>> numbers("1,3,32,32", "shape")
        [1, 3, 32, 32]
    """
    try:
        return [int(part) for part in (words(given) if isinstance(given, str) else given)]
    except ValueError as error:
        raise InvalidValueError("no list of whole numbers", given=given, allowed="1,3,32,32", where=where) from error


def range_of(given: str | Iterable[float] | None, where: str) -> tuple[float, float]:
    """The smallest and the largest value of an input as people write them: `-1,1` or `[-1, 1]`; 0 to 1 for None.

    Raises:
        InvalidValueError: something else.

    Example:
        >>> range_of("-1,1", "--input-range")
        (-1.0, 1.0)
    """
    try:
        ends = [0.0, 1.0] if given is None else [float(x) for x in (words(given) if isinstance(given, str) else given)]
    except (TypeError, ValueError):
        ends = []
    if len(ends) != 2 or not ends[0] < ends[1]:
        raise InvalidValueError("no range", given=given, allowed="two numbers such as -1,1", where=where)
    return ends[0], ends[1]


def output_folder(folder: Path, overwrite: bool = False) -> Path:
    """Make sure, before any work, that a folder can be written to and that nothing of a user's is lost by it.

    Args:
        folder: Made where it is missing.
        overwrite: Whether files that chipfit did not write, or that were changed since, may lie there: those that are
            written anew are replaced, the others stay.

    Raises:
        InvalidValueError: it is a file, cannot be made or written to, or holds such files without `overwrite`.
    """
    from chipfit.folders import foreign_files

    _probed(folder)
    found = [] if overwrite else foreign_files(folder)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InvalidValueError(
            "the output folder holds what chipfit did not write, or what was changed since",
            given=", ".join(found[:3]) + more,
            allowed="an empty folder, or one that chipfit wrote",
            where=f"--out {folder}",
            hint="With --overwrite, files of the same names are replaced and all others stay.",
        )
    return folder


def output_file(path: Path, overwrite: bool = False) -> Path:
    """The same for a single file, which may not be there yet without `overwrite`."""
    _probed(path.parent)
    if os.path.lexists(path) and (path.is_dir() or not overwrite):
        raise InvalidValueError(
            "there is something of this name",
            given=str(path),
            allowed="a new file" if not path.is_dir() else "a file",
            where="--out",
            hint="Give another name, or --overwrite to replace a file.",
        )
    return path


def _probed(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise InvalidValueError(
            "cannot write to the output folder",
            given=str(folder),
            allowed="a folder that can be made and written to",
            where="--out",
            hint=str(error),
        ) from error


def images(data: str, root: Path | None, training: bool = False) -> Tensor:
    """Images of one of the data sets that come by name.

    Raises:
        UnknownOptionError: 'mnist' without the folder of its files.
    """
    from chipfit.fit.data import digits, mnist

    if data == "mnist" and root is None:
        raise UnknownOptionError(
            "no folder given", given=data, where="--root", hint="Give the folder of the IDX files."
        )
    sets = digits() if data == "digits" or root is None else mnist(root)
    found: Tensor = sets[0 if training else 1].tensors[0]
    return found

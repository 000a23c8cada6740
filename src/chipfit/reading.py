"""Reading files that may be damaged, cut, enormous or no files at all: whatever is wrong ends in an error of ours.

Nothing is unpickled, and nothing is believed before it was checked: a file's own sizes are compared with its length
before memory is taken, and the sums of a folder with what is read.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from chipfit.errors import ChipfitError, FileFormatError

SUMS = "SHA256SUMS"
"""A folder's sums, in the form that `sha256sum -c` reads: its files, and those of subfolders without sums."""
LARGEST_TEXT = 1 << 25
"""Bytes of a text file: thirty times those of any that chipfit writes for a network of 1,000 layers."""


@contextmanager
def reading(what: str, where: object) -> Iterator[None]:
    """Turn whatever is raised while a file is read into one error that names the file.

    Args:
        what: What is read, in a noun phrase.
        where: The file or folder.

    Raises:
        FileFormatError: anything was raised that is no error of chipfit's own.

    Example:
        >>> with reading("the figures", "figures.json"):
        ...     {}["accuracy"]
        Traceback (most recent call last):
            ...
        chipfit.errors.FileFormatError: figures.json: cannot read the figures; got "KeyError: 'accuracy'"
    """
    try:
        yield
    except ChipfitError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [""]
        given = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
        raise FileFormatError(f"cannot read {what}", given=given, where=str(where)) from error


def content(path: Path | str, most: int | None = None) -> bytes:
    """The bytes of a plain file; a pipe or a device is not waited for.

    Args:
        path: The file.
        most: Largest length to accept; None for any.

    Raises:
        FileFormatError: no such file, no plain file, or one longer than `most`.
    """
    path = Path(path)
    with reading("the file", path):
        # a pipe without a writer would wait for ever when it is opened the usual way
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise FileFormatError("this is no plain file", given=path.name, where=str(path))
            if most is not None and found.st_size > most:
                raise FileFormatError(
                    "the file is too large", given=found.st_size, allowed=f"up to {most} bytes", where=str(path)
                )
            return file.read()


def digest(raw: bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(raw).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a plain file, which is not held in memory."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def sums_of(folder: Path) -> dict[str, str] | None:
    """The sums of a folder: SHA-256 by name; None where it has none, as what was written before there were any.

    Raises:
        FileFormatError: lines that are none of sums, or that name a file outside the folder.
    """
    path = folder / SUMS
    if not os.path.lexists(path):
        return None
    with reading("the sums", path):
        found: dict[str, str] = {}
        for line in content(path, LARGEST_TEXT).decode("utf-8").splitlines():
            given, separator, name = line.partition("  ")
            parts = PurePosixPath(name)
            if not separator or not name or parts.is_absolute() or ".." in parts.parts or name in found:
                raise FileFormatError("this is no line of sums", given=line, where=str(path))
            found[name] = given
        return found


def checked(path: Path | str, listed: bool = False, most: int | None = None) -> bytes:
    """The bytes of a file, compared with the sums of its folder where these list it.

    Args:
        path: The file.
        listed: Whether sums that do not list the file are refused.
        most: As of `content`.

    Raises:
        FileFormatError: as of `content`; or the file was changed or is of another writing than the sums.
    """
    path = Path(path)
    sums = sums_of(path.parent)
    raw = content(path, most)
    if sums is not None and (listed or path.name in sums):
        check_sum(raw, sums, path.name, path.parent)
    return raw


def check_sum(raw: bytes, sums: dict[str, str], name: str, folder: Path) -> None:
    """Compare what was read with a folder's sums; errors as of `checked`."""
    if name not in sums:
        raise FileFormatError("the sums do not list the file", given=name, where=str(folder))
    if digest(raw) != sums[name]:
        raise FileFormatError(
            "the file was changed: its SHA-256 is another one",
            given=name,
            where=str(folder),
            hint="It was edited, is damaged, or a writing was interrupted: write it anew.",
        )


def json_in(raw: bytes, where: object) -> Any:
    """Plain data from JSON.

    Raises:
        FileFormatError: no JSON.
    """
    with reading("the JSON", where):
        return json.loads(raw.decode("utf-8"))


def npy_in(raw: bytes, where: object) -> Any:
    """A numpy array from the bytes of a .npy file; the size that it claims is compared with the file's length first.

    Raises:
        FileFormatError: no .npy file of numbers, or one of another length than it says.
    """
    with reading("the .npy file", where):
        file = io.BytesIO(raw)
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise FileFormatError("unknown version of .npy", given=version, allowed="1.0, 2.0", where=str(where))
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = header(file)
        count, rest = math.prod(shape), len(raw) - file.tell()
        if dtype.kind not in "biuf" or min(shape, default=0) < 0:
            raise FileFormatError("an array of no numbers", given=(dtype.str, shape), where=str(where))
        if count * dtype.itemsize != rest:
            raise FileFormatError(
                "the file has another length than its header says",
                given=f"{rest} bytes",
                allowed=f"{count * dtype.itemsize}, {dtype} of shape {shape}",
                where=str(where),
            )
        flat = np.frombuffer(raw, dtype, count, file.tell())
        return flat.reshape(shape, order="F" if by_columns else "C").copy()

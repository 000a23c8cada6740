"""Writing folders so that they are never half there: built beside, synced to disk, then swapped into place.

A folder carries sums of its files, so that what was changed later is refused when it is read. Where a folder cannot be
swapped (it is a mount point, or someone stands in it) its files are moved one by one, the sums first: a writing that is
killed in between leaves a folder that is refused, never one that mixes two.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chipfit.errors import ChipfitError, FileFormatError, WritingError
from chipfit.reading import SUMS, digest_of, reading, sums_of

try:
    import fcntl
except ImportError:  # no such locks on this system: what a killed writer left stays until someone removes it
    fcntl = None  # type: ignore[assignment]

_MOST_KEPT = 1000
"""Files of a user's in an output folder up to which it is swapped; each is linked into the new folder."""


@contextmanager
def writing(what: object) -> Iterator[None]:
    """Turn what a file system refuses into an error of ours that names the target.

    Raises:
        WritingError: the disk is full, there are no rights, a file stands where a folder should.
    """
    try:
        yield
    except ChipfitError:
        raise
    except Exception as error:
        # safetensors has an exception of its own for a full disk
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        said = getattr(error, "strerror", None) or str(error)
        raise WritingError("cannot write", given=str(said), where=str(what)) from error


@contextmanager
def staging(target: Path, inside: Path | None = None) -> Iterator[Path]:
    """An empty folder, on the same file system as a target, in which to build it; removed at the end.

    It is locked while its writer lives, so that the next writer of the target clears what a killed one left.

    Args:
        target: What is written.
        inside: Where to make the folder; by default beside the target.
    """
    parent = target.parent if inside is None else inside
    parent.mkdir(parents=True, exist_ok=True)
    stem = target.name[:100]
    _clear(parent, stem)
    path, lock = _locked(parent, stem)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(parent: Path, stem: str) -> tuple[Path, int | None]:
    while True:
        path = parent / f".{stem}.{secrets.token_hex(4)}.writing"
        path.mkdir()
        if fcntl is None:
            return path, None
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # another writer took it for litter before it was locked
            continue
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.lexists(path) and os.fstat(lock).st_ino == path.stat().st_ino:
                return path, lock
        os.close(lock)


def _clear(parent: Path, stem: str) -> None:
    """Remove what killed writers of a target left."""
    if fcntl is None:
        return
    form = re.compile(rf"\.+{re.escape(stem)}(\.[0-9a-f]{{8}}\.writing)+")  # also what was written beside such a folder
    for path in [entry for entry in parent.iterdir() if form.fullmatch(entry.name)]:
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def synced(path: Path) -> None:
    """Wait until a file's content or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems sync no folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing_folder(folder: Path | str, keep: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder`, whole, when the block ends without an error.

    Sums of all files are added. What an earlier writing left in the folder goes; what it never wrote, or was changed
    since, is a user's and stays.

    Args:
        folder: The folder to write.
        keep: Keep what earlier writings left too, but for the files that are written anew: for files that do not have
            a folder of their own.

    Yields:
        The folder to write to.

    Raises:
        WritingError: it cannot be written; it is as it was then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as room:
        ...     for names in (("a", "b"), ("b",)):
        ...         with replacing_folder(Path(room) / "out") as temporary:
        ...             sizes = [(temporary / name).write_text(name) for name in names]
        ...     sorted(path.name for path in (Path(room) / "out").iterdir())
        ['SHA256SUMS', 'b']
    """
    with writing(folder):
        target = Path(os.path.realpath(folder))
        if os.path.lexists(target) and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file stands where the folder should be")
        swapped = _swappable(target)
        if not swapped:
            target.mkdir(parents=True, exist_ok=True)
        with staging(target, None if swapped else target) as temporary:
            yield temporary
            _finish(temporary, target, keep, swapped)


def _finish(temporary: Path, target: Path, keep: bool, swapped: bool) -> None:
    written = _files(temporary)
    staying, stale = _earlier(target, written, keep)
    sums = {name: digest_of(temporary / name) for name in _summed(temporary, written)}
    if keep and (earlier := _sums(target)):
        sums = {name: sum_ for name, sum_ in earlier.items() if name in staying} | sums
    _write_sums(temporary, sums)
    for name in [*written, SUMS]:
        synced(temporary / name)
    for path, _, _ in os.walk(temporary, topdown=False):
        synced(Path(path))
    if not (swapped and _linked(staying, target, temporary) and _swap(temporary, target)):
        _move(temporary, target, [SUMS, *written], stale)
    synced(target.parent)


def _files(folder: Path) -> list[str]:
    """Every file below a folder, links to folders among them, by its name relative to it."""
    found = []
    for path, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        found += [(Path(path) / name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(name for name in found if name != SUMS and not re.match(r"\..*\.[0-9a-f]{8}\.writing/", name))


def _summed(folder: Path, names: list[str]) -> list[str]:
    """Those that the folder's own sums list: no subfolder above them has sums."""
    own = {name.removesuffix(f"/{SUMS}") for name in names if name.endswith(f"/{SUMS}")}
    return [name for name in names if not own & {parent.as_posix() for parent in Path(name).parents}]


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    (folder / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")


def _sums(folder: Path) -> dict[str, str]:
    try:
        return sums_of(folder) or {}
    except FileFormatError:
        return {}


def _earlier(folder: Path, written: list[str], keep: bool) -> tuple[list[str], list[str]]:
    """What of a folder stays, and what an earlier writing left there and goes."""
    present = [name for name in _files(folder) if name not in set(written)]
    if keep:
        return present, []
    left = {name for name in present if name.endswith(f"/{SUMS}")}
    for owner in (folder, *(folder / Path(name).parent for name in left)):
        for name, given in _sums(owner).items():
            path = owner / name
            if path.is_file() and digest_of(path) == given:
                left.add(path.relative_to(folder).as_posix())
    return [name for name in present if name not in left], sorted(left & set(present))


def foreign_files(folder: Path) -> list[str]:
    """Files in a folder that chipfit did not write, or that were changed since."""
    return _earlier(folder, [], keep=False)[0] if folder.is_dir() else []


def _swappable(folder: Path) -> bool:
    """Whether a folder can change places with another one: nobody stands in it, and its parent can be written to."""
    above = next(parent for parent in folder.parents if parent.exists())
    if not folder.exists():
        return True
    here = Path.cwd()
    if folder == here or folder in here.parents or folder.is_mount() or folder == folder.parent:
        return False
    if not os.access(above, os.W_OK | os.X_OK) or above.stat().st_dev != folder.stat().st_dev:
        return False
    count = 0
    for _, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > _MOST_KEPT and len(foreign_files(folder)) > _MOST_KEPT:
            return False
    return True


def _linked(names: list[str], source: Path, target: Path) -> bool:
    """Give a user's files a second place in the new folder; False where they cannot have one."""
    made: list[Path] = []
    try:
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(source / name, target / name, follow_symlinks=False)
            made.append(target / name)
    except OSError:
        for path in made:
            path.unlink()
        return False
    return True


def _swap(new: Path, folder: Path) -> bool:
    """Let two folders change places in one step, or move the new one to where nothing or an empty folder is."""
    if not folder.exists() or not any(folder.iterdir()):
        if folder.exists():
            shutil.copymode(folder, new)
        try:
            new.rename(folder)
            return True
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was faster
                raise
    shutil.copymode(folder, new)
    return _exchanged(new, folder)


def _exchanged(first: Path, second: Path) -> bool:
    """The system's own exchange of two names: Linux and macOS have one."""
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    at_here, exchange = -100, 2
    with suppress(AttributeError):
        return int(system.renameat2(at_here, names[0], at_here, names[1], exchange)) == 0
    with suppress(AttributeError):
        return int(system.renamex_np(*names, exchange)) == 0
    return False


def _move(source: Path, target: Path, names: list[str], stale: list[str]) -> None:
    """Move files one by one, the sums first."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(target / name)
        if name == SUMS:
            synced(target)
    for name in stale:
        (target / name).unlink(missing_ok=True)


def replace_file(temporary: Path, path: Path) -> None:
    """Let a written file take another's place; the folder's sums, where they list it, follow.

    The sums lose the line first and get the new one last: a kill in between leaves a file that no sum speaks of.
    """
    sums = _sums(path.parent)
    synced(temporary)
    if path.name not in sums:
        temporary.replace(path)
    else:
        new = digest_of(temporary)
        _rewrite_sums(path.parent, {name: given for name, given in sums.items() if name != path.name})
        temporary.replace(path)
        _rewrite_sums(path.parent, {**sums, path.name: new})
    synced(path.parent)


def _rewrite_sums(folder: Path, sums: dict[str, str]) -> None:
    with reading("the sums", folder), staging(folder / SUMS) as room:
        _write_sums(room, sums)
        synced(room / SUMS)
        (room / SUMS).replace(folder / SUMS)

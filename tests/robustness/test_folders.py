"""Folders are swapped whole: what is a user's stays, what is stale goes, what was changed is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from chipfit import folders
from chipfit.errors import FileFormatError, WritingError
from chipfit.files import write_text
from chipfit.folders import foreign_files, replacing_folder
from chipfit.reading import SUMS, checked, sums_of


def write(folder: Path, *names: str, keep: bool = False, text: str = "") -> None:
    with replacing_folder(folder, keep) as temporary:
        for name in names:
            write_text(temporary / name, text or name)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["swapped", "in place"])
def out(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder that can be swapped, and one that someone stands in."""
    folder = tmp_path / "out"
    folder.mkdir()
    if request.param == "in place":
        monkeypatch.chdir(folder)
    return folder


def test_stale_files_go_and_a_user_s_stay(out: Path) -> None:
    write(out, "a", "sub/b")
    (out / "notes.txt").write_text("mine")
    (out / "of_a_user").mkdir()
    (out / "of_a_user" / "net.py").write_text("mine")
    (out / "link").symlink_to("nowhere")
    write(out, "c")
    assert names(out) == {"c", SUMS, "notes.txt", "of_a_user/net.py"} and (out / "link").is_symlink()
    assert sums_of(out) is not None and set(sums_of(out) or {}) == {"c"}
    assert foreign_files(out) == ["link", "notes.txt", "of_a_user/net.py"]
    assert not list(out.parent.rglob("*.writing"))


def test_what_was_changed_is_a_user_s(out: Path) -> None:
    write(out, "a", "b")
    (out / "a").write_text("edited")
    assert foreign_files(out) == ["a"]
    write(out, "c")
    assert names(out) == {"a", "c", SUMS} and (out / "a").read_text() == "edited"


def test_sets_of_files_add_up(out: Path) -> None:
    write(out, "a.onnx", "a.npy", keep=True)
    write(out, "b.onnx", keep=True)
    assert set(sums_of(out) or {}) == {"a.onnx", "a.npy", "b.onnx"}
    assert subprocess.run(["sha256sum", "--quiet", "-c", SUMS], cwd=out).returncode == 0


def test_an_error_leaves_everything_as_it_was(out: Path) -> None:
    write(out, "a")
    with pytest.raises(RuntimeError, match="midway"), replacing_folder(out) as temporary:
        (temporary / "b").write_text("half")
        raise RuntimeError("midway")
    assert names(out) == {"a", SUMS} and not list(out.parent.rglob("*.writing"))


def test_changed_files_are_refused(out: Path) -> None:
    write(out, "a", "b")
    assert checked(out / "a") == b"a"
    (out / "a").write_text("b")
    with pytest.raises(FileFormatError, match="the file was changed"):
        checked(out / "a")
    (out / "b").unlink()
    with pytest.raises(FileFormatError, match="cannot read the file"):
        checked(out / "b")


def test_a_file_written_anew_takes_its_sum_along(out: Path) -> None:
    write(out, "a", "b")
    write_text(out / "a", "new")
    assert checked(out / "a", listed=True) == b"new"


def test_killed_writers_litter_is_cleared_and_that_of_living_ones_stays(tmp_path: Path) -> None:
    dead = tmp_path / ".out.0123abcd.writing"
    (dead / "sub").mkdir(parents=True)
    with replacing_folder(tmp_path / "out") as living:
        assert not dead.exists()
        write(tmp_path / "out", "a")
        assert living.exists()
        (living / "b").write_text("b")
    assert names(tmp_path) == {"out/b", f"out/{SUMS}"}


def test_without_an_exchange_files_are_moved_and_the_sums_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_exchanged", lambda *_: False)
    write(tmp_path / "out", "a", "b", text="old")
    moved = Path.replace
    left = [2]

    def stops(path: Path, target: Path) -> Path:
        left[0] -= target.parent == tmp_path / "out"
        if left[0] < 0:
            raise KeyboardInterrupt
        return moved(path, target)

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", "a", "b", text="new")
    for name in ("a", "b"):  # one of them is new; neither passes for the old set
        if (tmp_path / "out" / name).read_text() == "old":
            with pytest.raises(FileFormatError, match="the file was changed"):
                checked(tmp_path / "out" / name)
    monkeypatch.setattr(Path, "replace", moved)
    write(tmp_path / "out", "a", "b", text="new")
    assert checked(tmp_path / "out" / "b") == b"new"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "inside"):
        with pytest.raises(WritingError, match="cannot write"):
            write(folder, "a")
    assert (tmp_path / "out").read_text() == "mine"


def test_through_a_link_and_with_its_rights(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "out").symlink_to("real")
    write(tmp_path / "out", "a")
    write(tmp_path / "out", "b")
    assert (tmp_path / "out").is_symlink() and names(tmp_path / "real") == {"b", SUMS}
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    "line", ["no sum", "0" * 64 + "  /etc/passwd", "0" * 64 + "  ../a", "0" * 64 + "  ", "é" + "\0"]
)
def test_lines_that_are_none_of_sums(tmp_path: Path, line: str) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / SUMS).write_text(line + "\n")
    with pytest.raises(FileFormatError, match="line of sums"):
        checked(tmp_path / "a")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="no plain file"):
        checked(tmp_path / "pipe")
    (tmp_path / "a").write_text("a")
    os.mkfifo(tmp_path / SUMS)
    with pytest.raises(FileFormatError, match="no plain file"):
        checked(tmp_path / "a")

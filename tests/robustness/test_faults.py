"""Killed writers, full and read-only disks, two writers, no memory: old state or new. The long form: `make faults`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support import faults
from support.writers import DEMOS, WRITERS, large

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are killed in forked processes")


def mountable(tmp_path: Path) -> None:
    """Skip where no small file system can be had."""
    try:
        with faults.small_disk(tmp_path):
            pass
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"a file system of 2 MiB cannot be mounted: {error}")


@pytest.mark.parametrize("name", WRITERS)
def test_kills(name: str) -> None:
    counts = faults.kills(WRITERS[name], 8)
    assert counts.fine and counts.killed_while_writing > 0, counts


@pytest.mark.slow
@pytest.mark.parametrize("name", DEMOS)
def test_kills_of_a_demo(name: str) -> None:
    counts = faults.kills(DEMOS[name], 2, whole=False)
    assert counts.fine, counts


@pytest.mark.parametrize("name", ["save_program", "export_witin_mapper"])
def test_two_writers(name: str) -> None:
    counts = faults.two_writers(WRITERS[name], 3)
    assert counts.fine, counts


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    mountable(tmp_path)
    assert faults.full_disk(WRITERS[name], tmp_path) in ("old", "new")


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    mountable(tmp_path)
    assert faults.full_disk(large, tmp_path, WRITERS["save_program"]) == "old"


@pytest.mark.parametrize("name", ["save_program", "export: magik"])
def test_a_file_system_that_may_not_be_written(name: str, tmp_path: Path) -> None:
    mountable(tmp_path)
    assert faults.read_only(WRITERS[name], tmp_path) == "old"


@pytest.mark.parametrize("mib", [0.0, 16.0])
def test_no_memory(mib: float, tmp_path: Path) -> None:
    assert faults.out_of_memory(large, tmp_path, mib) in ("old", "new")

"""Folders changed as an attacker would, who computes the sums anew."""

from __future__ import annotations

from pathlib import Path

from chipfit.reading import SUMS, digest_of, sums_of


def resummed(folder: Path) -> Path:
    """Give a folder the sums of its files as they are now."""
    names = [name for name in sums_of(folder) or {} if (folder / name).is_file()]
    (folder / SUMS).write_text("".join(f"{digest_of(folder / name)}  {name}\n" for name in names), encoding="utf-8")
    return folder

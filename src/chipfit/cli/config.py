"""YAML files of the command line: looked at before the parser takes them, so that a damaged one ends in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chipfit.errors import FileFormatError

_OPTION = "--config"
_LARGEST = 1 << 20
_DEEPEST = 32


def check_config(arguments: list[str]) -> None:
    """Refuse YAML files that no command could take.

    Args:
        arguments: Words of the command line.

    Raises:
        FileFormatError: no such file, no plain file, no YAML; or one that refers to itself, or is nested so deep that
            no option is.
    """
    for path in _paths(arguments):
        _check(path)


def _paths(arguments: list[str]) -> Iterator[Path]:
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == _OPTION and following:
            yield Path(following)
        elif word.startswith(f"{_OPTION}="):
            yield Path(word.partition("=")[2])


def _check(path: Path) -> None:
    import yaml  # what the parser reads it with

    from chipfit.reading import content, reading

    with reading("the YAML file", path):
        depth = 0
        for event in yaml.parse(content(path, _LARGEST).decode("utf-8"), yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise FileFormatError("the file refers to itself", given=f"*{event.anchor}", where=str(path))
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise FileFormatError("the file is nested too deep", allowed=f"{_DEEPEST} levels", where=str(path))

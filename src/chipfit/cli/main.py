"""Running a command: what it prints when something is wrong, and its exit status."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from chipfit.cli import commands
from chipfit.cli.config import check_config
from chipfit.errors import ChipfitError
from chipfit.version import __version__

COMMANDS: dict[str, Any] = {
    "demo": commands.demo,
    "chips": commands.chips,
    "check": commands.check_network,
    "search": commands.search_widths,
    "verify": commands.verify_program,
    "certify": commands.certify_program,
    "export": commands.export_program,
}
_FLAG = "--overwrite"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after `chipfit`; None takes those of the process.

    Returns:
        Exit status: 0; 2 where something was wrong with what was given, said in one line on standard error; 130 after
        Ctrl-C.
    """
    from jsonargparse import auto_cli

    given = _model_by_name(_flags_spelt_out(sys.argv[1:] if arguments is None else arguments))
    try:
        check_config(given)
        auto_cli(COMMANDS, args=given, prog="chipfit", version=__version__)
    except ChipfitError as error:
        return _failed(f"{type(error).__name__}: {error}", 2)
    except KeyboardInterrupt:
        return _failed("stopped by the keyboard", 130)
    except MemoryError:
        return _failed("MemoryError: not enough memory", 2)
    except OSError as error:  # a full disk, no rights: of the file system's own words the last line says it
        return _failed(f"{type(error).__name__}: {error}", 2)
    except Exception as error:
        if _in_a_command(error):
            raise  # a mistake of chipfit's own, whose place we want to see
        lines = str(error).splitlines() or [""]
        return _failed(f"{type(error).__name__}: {lines[0]}", 2)
    return 0


def _model_by_name(arguments: list[str]) -> list[str]:
    """Give `verify PROGRAM MODEL` its model by name: the parser takes what may be left out by name alone."""
    if not arguments or arguments[0] != "verify":
        return arguments
    places = [
        place
        for place in range(1, len(arguments))
        if not arguments[place].startswith("-")
        and (not arguments[place - 1].startswith("--") or "=" in arguments[place - 1])
    ]
    if len(places) < 2:
        return arguments
    return [f"--model={word}" if place == places[1] else word for place, word in enumerate(arguments)]


def _flags_spelt_out(arguments: list[str]) -> list[str]:
    """Give `--overwrite` alone the value that the parser asks for."""
    following = [*arguments[1:], ""]
    return [
        f"{word}=true" if word == _FLAG and after not in ("true", "false") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _in_a_command(error: BaseException) -> bool:
    """Whether it was raised by a command, and not while the words of the command line were read."""
    return any(frame.f_code.co_filename == commands.__file__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _failed(text: str, status: int) -> int:
    """Say what went wrong, as text and not as markup: names of layers and extras have brackets."""
    from rich.console import Console
    from rich.text import Text

    name, colon, rest = text.partition(":")
    Console(stderr=True, soft_wrap=True).print(Text.assemble((name, "red"), colon + rest), highlight=False)
    return status


if __name__ == "__main__":
    sys.exit(main())

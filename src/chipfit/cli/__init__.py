"""The command line: the library's verbs, each with a YAML file and overrides."""

from chipfit.cli.main import main

__all__ = ["main"]

"""What a format of files is: a name, what writes it, and what it needs beside the program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from chipfit.program.types import Program
    from chipfit.vendor import Option

Samples = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Request:
    """What a user gave beside the program.

    Args:
        samples: Inputs of the network, or a tuple of them; None where the format does not need them.
        model: The network that the program was lowered from; likewise.
        options: The format's own options, all of them, defaults filled in.
    """

    samples: Samples | None = None
    model: nn.Module | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


Write = Callable[["Program", Path, Request], list[Path]]


@dataclass(frozen=True)
class Format:
    """A kind of file that a program can be written as.

    Args:
        name: What a user calls it.
        write: Writes a program below a folder; returns the files.
        needs: What it cannot do without: 'samples', 'model'.
        reason: Why it needs them, for the error.
        chips: Names of the chips whose programs it can say; None for all.
        options: Its own options.
    """

    name: str
    write: Write
    needs: tuple[str, ...] = ()
    reason: str = ""
    chips: tuple[str, ...] | None = None
    options: Mapping[str, Option] = field(default_factory=dict, hash=False)

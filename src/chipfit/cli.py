"""The command line: the library's verbs, each with a YAML file and overrides."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from chipfit.errors import ChipfitError, UnknownOptionError, nearest
from chipfit.version import __version__

DEMOS = ("wtm2101", "t40")


def demo(
    chip: str = "wtm2101",
    data: str = "digits",
    root: Path | None = None,
    out: Path = Path("out/demo"),
    seed: int = 0,
    epochs: tuple[int, int, int] | None = None,
    chips: int = 20,
    qat: Literal["auto", "always"] = "auto",
) -> None:
    """Train a small CNN on real handwritten digits for a chip, and show what survives.

    Args:
        chip: wtm2101 (float, PTQ, QAT, NAT) or t40 (float, 8 bit, 4 bit).
        data: digits (scikit-learn's 1,797 scans) or, for wtm2101, mnist (IDX files in --root).
        root: Folder of the four MNIST IDX files.
        out: Output folder; nothing is written elsewhere.
        seed: Seed of everything random.
        epochs: Epochs of the three stages; the recipe's own by default.
        chips: Simulated chips per noise level.
        qat: auto leaves quantisation-aware training out where calibration alone is good enough; always trains it.
    """
    known = {"wtm2101": "witmem_demo", "t40": "ingenic_demo"}
    if chip.lower() not in known:
        raise UnknownOptionError(
            "no demo for this chip", given=chip, allowed=", ".join(known), hint=nearest(chip, known)
        )
    # Imported here because torch and lightning take seconds, which --help and a mistyped option should not cost.
    if chip.lower() == "wtm2101":
        from chipfit.recipe import witmem_demo

        witmem_demo.run(out, data=data, root=root, seed=seed, epochs=epochs, chips=chips, qat=qat)
    else:
        from chipfit.recipe import ingenic_demo

        if data != "digits":
            raise UnknownOptionError("the t40 demo has one data set", given=data, allowed="digits", where="--data")

        ingenic_demo.run(out, seed=seed, epochs=epochs)


def chips() -> None:
    """List the chips that chipfit knows."""
    from chipfit.chips.registry import known_chips

    table = Table("name", "chip", "activations", "weights", "source")
    for chip in known_chips().values():
        bits = (f"{min(widths)} to {max(widths)} bit" for widths in (chip.activation_bits, chip.weight_bits))
        table.add_row(chip.name, chip.title, *bits, chip.source)
    Console().print(table)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after `chipfit`; None takes those of the process.

    Returns:
        Exit status: 0, or 2 where something was wrong with what was given.
    """
    commands: dict[str, Any] = {"demo": demo, "chips": chips}
    try:
        auto_cli(commands, args=arguments, prog="chipfit", version=__version__)
    except ChipfitError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]: {error}", markup=True, highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

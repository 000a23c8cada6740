"""`chipfit demo`: the demo that comes with a chip."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from chipfit.errors import UnknownOptionError, nearest
from chipfit.vendor import vendors


def run_demo(chip: str, out: Path, **options: Any) -> dict[str, Any]:
    """Run a chip's demo.

    Args:
        chip: Short name of the chip.
        out: Output folder.
        **options: What the user chose; those that this demo does not have must have a value that any demo has.

    Returns:
        Its figures.

    Raises:
        UnknownOptionError: the chip has no demo, or its demo has no such data.
    """
    demos = {name: demo for vendor in vendors().values() for name, demo in vendor.demos.items()}
    if chip.lower() not in demos:
        raise UnknownOptionError(
            "no demo for this chip", given=chip, allowed=", ".join(demos), hint=nearest(chip.lower(), demos)
        )
    module, _, name = demos[chip.lower()].partition(":")
    run = getattr(importlib.import_module(module), name)
    known = inspect.signature(run).parameters
    if "data" not in known and options.get("data", "digits") != "digits":
        raise UnknownOptionError("this demo has one data set", given=options["data"], allowed="digits", where="--data")
    return dict(run(out, **{key: value for key, value in options.items() if key in known}))

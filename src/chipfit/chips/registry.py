"""All chips by name. A vendor folder that lists `CHIPS` is found by itself; no other file names it."""

from __future__ import annotations

import importlib
import pkgutil

from chipfit import chips
from chipfit.chips.chip import Chip
from chipfit.errors import UnknownOptionError, nearest


def known_chips() -> dict[str, Chip]:
    """Every known chip by its name.

    Example:
        >>> "wtm2101" in known_chips()
        True
    """
    found: dict[str, Chip] = {}
    for folder in pkgutil.iter_modules(chips.__path__):
        if folder.ispkg:
            module = importlib.import_module(f"chipfit.chips.{folder.name}")
            found.update({chip.name: chip for chip in getattr(module, "CHIPS", ())})
    return found


def chip(name: str) -> Chip:
    """Look up a chip.

    Args:
        name: Short name, in any case.

    Raises:
        UnknownOptionError: no chip has this name.

    Example:
        >>> chip("WTM2101").weight_bits
        (8,)
    """
    known = known_chips()
    if name.lower() not in known:
        raise UnknownOptionError("unknown chip", given=name, where="chipfit.chip", hint=nearest(name.lower(), known))
    return known[name.lower()]

"""What a program runs on beside the reference, and is compared with in every code: engines, found by name.

A chip may bring its own. An engine is a name and a function that prepares it for a program; what is prepared turns the
codes of the program's inputs into those of every edge that it can show.
"""

from __future__ import annotations

from chipfit.engines.engine import Engine, Prepared
from chipfit.engines.verifying import compared, known_engines, verify

__all__ = ["Engine", "Prepared", "compared", "known_engines", "verify"]

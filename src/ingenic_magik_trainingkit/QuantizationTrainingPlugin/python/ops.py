"""The vendor's operators, from `chipfit.chips.ingenic`."""

from chipfit.chips.ingenic import *  # noqa: F403  # the names that __all__ lists
from chipfit.chips.ingenic import __all__ as __all__

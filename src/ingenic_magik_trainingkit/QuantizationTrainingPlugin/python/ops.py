"""The vendor's operators, from `chipfit.chips.ingenic`."""

from chipfit.chips.ingenic import *  # noqa: F403
from chipfit.chips.ingenic import __all__ as __all__

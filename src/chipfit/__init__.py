"""chipfit fits PyTorch networks to edge-AI chips, with the chip's own arithmetic.

Bring a network of chip layers (`witin_nn`); then `calibrate` it, train it in the modes that `set_mode` chooses, and
`evaluate` it on simulated chips.
"""

from chipfit.chips.chip import Chip
from chipfit.chips.modes import freeze_scales, set_mode
from chipfit.chips.registry import chip
from chipfit.noise.chips import simulated_chip
from chipfit.recipe.calibration import calibrate
from chipfit.recipe.evaluation import evaluate
from chipfit.version import __version__

__all__ = [
    "Chip",
    "__version__",
    "calibrate",
    "chip",
    "chips",
    "evaluate",
    "freeze_scales",
    "set_mode",
    "simulated_chip",
]

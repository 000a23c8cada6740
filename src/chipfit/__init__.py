"""chipfit fits PyTorch networks to edge-AI chips, with the chip's own arithmetic.

Bring a plain network, `check` and `convert` it, or write it with a vendor's layers (`witin_nn`); then `calibrate` it,
train it in the modes that `set_mode` chooses, `evaluate` it on simulated chips, `lower` it to an integer program,
`verify` that the two are equal code for code, `certify` what the program needs, and export it.
"""

from chipfit.chips.chip import Chip
from chipfit.chips.modes import freeze_scales, set_mode
from chipfit.chips.registry import chip
from chipfit.convert import check, convert
from chipfit.integer import Program, certify, load_program, lower, save_program, verify
from chipfit.noise.chips import simulated_chip
from chipfit.recipe.calibration import calibrate
from chipfit.recipe.evaluation import evaluate
from chipfit.version import __version__

__all__ = [
    "Chip",
    "Program",
    "__version__",
    "calibrate",
    "certify",
    "check",
    "chip",
    "convert",
    "evaluate",
    "freeze_scales",
    "load_program",
    "lower",
    "save_program",
    "set_mode",
    "simulated_chip",
    "verify",
]

"""chipfit fits PyTorch networks to edge-AI chips, with the chip's own arithmetic.

Bring a plain network, `check` and `convert` it, or write it with a vendor's layers (`witin_nn`); then `calibrate` it
(around that: `equalise`, `correct_bias`, `layer_quality`, `chain_scales` for the WTM2101's compiler, and `search_bits`
for widths), train it in the modes that `set_mode` chooses, `evaluate` it on simulated chips, `lower` it to an integer
program, `verify` that the two are equal code for code, `certify` what the program needs, and export it.
"""

from chipfit.chips.chip import Chip
from chipfit.chips.modes import freeze_scales, set_mode
from chipfit.chips.registry import chip
from chipfit.convert import check, convert
from chipfit.integer import Program, certify, load_program, lower, save_program, verify
from chipfit.noise.chips import simulated_chip
from chipfit.recipe.calibration import calibrate, restore
from chipfit.recipe.calibration_bias import correct_bias
from chipfit.recipe.calibration_equalise import equalise
from chipfit.recipe.calibration_quality import layer_quality, quality_table
from chipfit.recipe.chaining import chain_scales
from chipfit.recipe.evaluation import evaluate
from chipfit.recipe.search import search, search_table
from chipfit.recipe.search_plain import search_bits
from chipfit.version import __version__

__all__ = [
    "Chip",
    "Program",
    "__version__",
    "calibrate",
    "certify",
    "chain_scales",
    "check",
    "chip",
    "convert",
    "correct_bias",
    "equalise",
    "evaluate",
    "freeze_scales",
    "layer_quality",
    "load_program",
    "lower",
    "quality_table",
    "restore",
    "save_program",
    "search",
    "search_bits",
    "search_table",
    "set_mode",
    "simulated_chip",
    "verify",
]

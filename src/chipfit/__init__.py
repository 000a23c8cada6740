"""chipfit fits PyTorch networks to edge-AI chips, with the chip's own arithmetic.

Bring a plain network, `check` and `convert` it, or write it with a vendor's layers (`witin_nn`); then `calibrate` it
(around that: `equalise`, `correct_bias`, `layer_quality`, and `search_bits` for widths), train it in the modes that
`set_mode` chooses, `evaluate` it on simulated chips, `lower` it to an integer program, `verify` that the two are equal
code for code, `certify` what the program needs, and export it.
"""

from chipfit.chip import Chip
from chipfit.convert import check, convert
from chipfit.fit.bias import correct_bias
from chipfit.fit.calibrate import calibrate, restore
from chipfit.fit.equalise import equalise
from chipfit.fit.evaluate import evaluate
from chipfit.fit.quality import layer_quality, quality_table
from chipfit.fit.search import search, search_table
from chipfit.fit.search_plain import search_bits
from chipfit.modes import freeze_scales, set_mode
from chipfit.noise.chips import simulated_chip
from chipfit.program import Program, certify, load_program, lower, save_program, verify
from chipfit.vendor import chip
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

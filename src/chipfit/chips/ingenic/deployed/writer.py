"""The integers that a network's layers are predicted to be deployed with on Txx, as files; see `integers`."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from chipfit.chips.ingenic.deployed.integers import deployed
from chipfit.errors import ChipfitWarning
from chipfit.files import write_json
from chipfit.folders import replacing_folder
from chipfit.program.types import Program

LABEL = (
    "A prediction: the formulas were decoded from three compiled models of the vendor's, which they fit in 1119 of "
    "1136 multipliers and 1100 of 1136 biases. No proof of what the converter makes of this network."
)
LAYERS, WEIGHTS = "layers.json", "weights.safetensors"


def export_txx_deployed(program: Program, folder: str | Path) -> list[Path]:
    """Write `mul`, `shift`, `bias` and the weight codes of every layer that can be predicted.

    Args:
        program: Of a network for Txx.
        folder: Where to write; made where it is missing.

    Returns:
        `layers.json`, with the numbers by layer, why others are left out and how far each multiplier is off, and
        `weights.safetensors`, int8 weight codes by layer.

    Raises:
        UnsupportedError: another chip, or no layer can be predicted.
    """
    prediction, folder = deployed(program), Path(folder)
    layers = []
    for layer in prediction.layers:
        numbers = {name: value for name, value in asdict(layer).items() if name != "weight"}
        layers.append({name: list(v) if isinstance(v, tuple) else v for name, v in numbers.items()})
    content = {
        "format": "chipfit txx deployed prediction",
        "version": 1,
        "about": LABEL,
        "output": "clip((sum(weight * (x - offset)) + bias) * mul >> (15 + shift), 0, 2^output_bits - 1)",
        "layers": layers,
        "left_out": prediction.left_out,
    }
    files = [folder / LAYERS, folder / WEIGHTS]
    with replacing_folder(folder) as temporary:
        write_json(temporary / LAYERS, content)
        save_file({layer.name: layer.weight.contiguous() for layer in prediction.layers}, temporary / WEIGHTS)
    worst = max(prediction.layers, key=lambda layer: max(map(abs, layer.errors)))
    warnings.warn(
        f"on Txx multipliers keep about two digits: those of {worst.name} are off by up to "
        f"{max(map(abs, worst.errors)):.1%}, so that outputs shrink; predicted, not proven. "
        "chipfit.export.deployed_difference(program, loader) says how far that moves this network",
        ChipfitWarning,
        stacklevel=4,
    )
    return files

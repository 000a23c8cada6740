"""Spoken words on a bare-metal RISC-V core: train a small network, export it as C, hand it one WAV file's features.

    python examples/firmware/keyword_network.py --words DIR --wav FILE --out out/firmware
    make -C out/firmware            # compiles it for rv32imac and runs it under qemu, which prints the word

DIR holds a folder of mono WAV files for each word. What a microphone driver would compute on the core, log energies of
32 bands, is computed here and compiled in as codes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import wave
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.export.c.folder import golden_array
from chipfit.export.c.writer import build
from chipfit.files import write_text
from chipfit.program.reference import trace

BANDS, FRAMES = 32, 32
HERE = Path(__file__).parent


def features(path: Path) -> Tensor:
    """Log energies of a mono 16-bit WAV file, shape (1, FRAMES, BANDS), from 0 to 1."""
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    x = torch.from_numpy(sound)
    power = torch.stft(x, 256, 128, window=torch.hann_window(256), return_complex=True).abs().square()
    bands = F.adaptive_avg_pool1d(power.T[None], BANDS)[0]
    level = (torch.log10(bands + 1e-6) / 6 + 1).clamp(0, 1)
    return F.interpolate(level[None, None], (FRAMES, BANDS), mode="bilinear")[0]


def network(words: int) -> nn.Module:
    """A depthwise-separable network."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()]
    for before, after, stride in ((16, 24, 2), (24, 32, 2)):
        layers += [nn.Conv2d(before, before, 3, stride, 1, groups=before), nn.BatchNorm2d(before), nn.ReLU()]
        layers += [nn.Conv2d(before, after, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 4, words))


def trained(x: Tensor, y: Tensor, words: int, epochs: int) -> nn.Module:
    """The network, trained in float."""
    net = network(words)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
    return net.eval()


def main() -> None:
    """Train, export, write what the firmware needs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--wav", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/firmware"))
    parser.add_argument("--files", type=int, default=120, help="files of each word to train on")
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    words = sorted(folder.name for folder in given.words.iterdir() if folder.is_dir())
    held = given.wav.resolve()
    files = []
    for i, word in enumerate(words):
        own = [path for path in sorted((given.words / word).glob("*.wav")) if path.resolve() != held]
        files += [(path, i) for path in random.sample(own, min(given.files, len(own)))]
    x = torch.stack([features(path) for path, _ in files])
    y = torch.tensor([label for _, label in files])
    net = trained(x, y, len(words), given.epochs)

    model = chipfit.convert(net, "wtm2101", x[:8])
    chipfit.calibrate(model, [x[:256]])
    program = chipfit.lower(chipfit.set_mode(model, "quant"), x[:8])
    chipfit.export(program, given.out, ["c"], samples=x[:2], target="riscv")

    heard = features(given.wav)[None]
    edges, made = trace(program, heard), build(program)
    codes = golden_array(edges[made.inputs[0].name], made.inputs[0]).reshape(-1).tolist()
    names = ", ".join('"' + word.replace("\\", "").replace('"', "") + '"' for word in words)
    text = f"static const char *const words[] = {{{names}}};\n"
    text += f"static const int16_t heard[] = {{{', '.join(map(str, codes))}}};\n"
    write_text(given.out / "heard.h", text)
    for name in ("main.c", "Makefile"):
        shutil.copy(HERE / name, given.out / name)
    print(f"{given.out}: the C program, and what it will say: {words[int(chipfit_answer(edges, program))]}")


def chipfit_answer(edges: dict[str, Tensor], program: chipfit.Program) -> Tensor:
    """Index of the word that the program hears."""
    return edges[program.outputs[0]].argmax()


if __name__ == "__main__":
    main()

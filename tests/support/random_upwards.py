"""Random plain networks upwards: what quantisation makes of the network that was brought, beside a yardstick."""

from __future__ import annotations

import copy
import random
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import chipfit
from chipfit.errors import UnsupportedError
from chipfit.fit.methods import sqnr

ENOUGH_DB = 20.0
_SAMPLES = 32


class RandomNetwork(nn.Module):
    """A plain network of random depth, widths, biases, weight scales, norms, activations, branches and recurrence.

    Args:
        seed: The same seed gives the same network and data.
        recurrent: Whether sequences may have a GRU or LSTM.
    """

    def __init__(self, seed: int, recurrent: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        kind = self.rng.choice(("image", "image", "image", "vector", "sequence" if recurrent else "vector"))
        self.kind, self.blocks = kind, nn.ModuleList()
        channels = self.rng.choice((1, 2, 3, 5, 8))
        self.channels = self.rng.choice((6, 16, 24)) if kind != "image" else channels
        sizes = {"image": (self.rng.randint(7, 17), self.rng.randint(7, 17)), "vector": (), "sequence": ()}[kind]
        shape = (_SAMPLES, self.channels, *sizes)
        if kind == "sequence":
            shape = (_SAMPLES, self.rng.randint(5, 12), self.channels)
        self.data = torch.rand(shape) if self.rng.random() < 0.5 else torch.randn(shape)
        self.data *= 2.0 ** self.rng.randint(-3, 3)
        depth = self.rng.randint(1, 6)
        for _ in range(depth):
            self.blocks.append(self._block())
        self.head = nn.Linear(self.channels, self.rng.choice((2, 5, 10)), bias=self.rng.random() < 0.8)
        self._scale_weights()
        self.train()
        with torch.no_grad():
            for _ in range(20):  # statistics of the norms
                self(self.data)
        self.eval()

    def _act(self) -> nn.Module:
        made = (nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU6, lambda: nn.LeakyReLU(0.125), nn.Identity)
        return self.rng.choice(made)()

    def _conv(self, inputs: int, outputs: int, groups: int = 1, stride: int = 1) -> nn.Module:
        kernel = self.rng.choice((1, 3, 3, 5))
        bias = self.rng.random() < 0.7
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        norm = nn.BatchNorm2d(outputs) if self.rng.random() < 0.5 else nn.Identity()
        return nn.Sequential(conv, norm, self._act())

    def _block(self) -> nn.Module:
        inputs, rng = self.channels, self.rng
        outputs = rng.choice((3, 8, 12, 16, 24))
        if self.kind == "vector":
            self.channels = outputs
            norm = nn.BatchNorm1d(outputs) if rng.random() < 0.4 else nn.Identity()
            return nn.Sequential(nn.Linear(inputs, outputs, rng.random() < 0.8), norm, self._act())
        if self.kind == "sequence":
            if rng.random() < 0.5:
                self.channels = outputs
                return nn.Sequential(nn.Linear(inputs, outputs), self._act())
            cell = rng.choice((nn.GRU, nn.GRU, nn.LSTM))
            both = rng.random() < 0.4
            self.channels = outputs * (2 if both else 1)
            return Unpacked(cell(inputs, outputs, rng.choice((1, 1, 2)), batch_first=True, bidirectional=both))
        form = rng.choice(("conv", "conv", "separable", "residual", "cat", "pool"))
        if form == "pool":
            return rng.choice((nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True)))
        if form == "residual":
            return Residual(self._conv(inputs, inputs), self._act())
        if form == "cat":
            self.channels = inputs + outputs
            return Joined(self._conv(inputs, outputs))
        self.channels = outputs
        if form == "separable":
            return nn.Sequential(self._conv(inputs, inputs, inputs), nn.Conv2d(inputs, outputs, 1), self._act())
        return self._conv(inputs, outputs, 1, rng.choice((1, 1, 2)))

    @torch.no_grad()
    def _scale_weights(self) -> None:
        """Weights of any size, biases of another: a layer's output is brought back to about its size by neither."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                power = self.rng.randint(-6, 6) if self.rng.random() < 0.4 else 0
                module.weight *= 2.0**power
                if module.bias is not None and self.rng.random() < 0.7:
                    module.bias *= 2.0 ** (power + self.rng.randint(-2, 2))
            elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.copy_(0.5 + torch.rand_like(module.weight))
                module.bias.copy_(0.3 * torch.randn_like(module.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = block(x)
        if self.kind == "image":
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        y: Tensor = self.head(x)
        return y


class Residual(nn.Module):
    """A branch added to its input."""

    def __init__(self, branch: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.branch, self.act = branch, act

    def forward(self, x: Tensor) -> Any:
        """The sum, activated."""
        return self.act(x + self.branch(x))


class Joined(nn.Module):
    """A branch beside its input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        """Both, concatenated."""
        return torch.cat([x, self.branch(x)], 1)


class Unpacked(nn.Module):
    """The sequence that a recurrent layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        """The output without the last states."""
        return self.layer(x)[0]


@dataclass(frozen=True)
class Upwards:
    """What became of one network on one chip.

    Args:
        seed: Of the network.
        off: Largest difference of the converted network in float, over the largest output.
        sqnr_db: Of the quantised network against the one that was brought.
        yardstick_db: Of the same network under torch.fake_quantize at 8 bits.
        warnings: What calibration warned of.
        codes: Codes that were compared with the integer program; 0 where none was.
        equal: Whether all of them are; None where none was compared.
    """

    seed: int
    off: float
    sqnr_db: float
    yardstick_db: float
    warnings: tuple[str, ...]
    codes: int = 0
    equal: bool | None = None

    @property
    def silent(self) -> bool:
        """Whether it is below what is enough, or not equal in float, and nothing said so."""
        return (self.off > 1e-4 or not self.sqnr_db >= ENOUGH_DB) and not self.warnings


@torch.no_grad()
def upwards(
    net: nn.Module, chip: str, data: Tensor, seed: int = 0, correct: bool | None = None, proven: bool = False
) -> Upwards | None:
    """Convert, calibrate and compare a network; None where the chip does not take it.

    Args:
        net: The network, in evaluation.
        chip: Name of the chip.
        data: Its inputs, for calibration and comparison.
        seed: Kept in the result.
        correct: Whether biases are corrected; None for where the chip rounds weights downward.
        proven: Whether the quantised network is compared with its integer program.
    """
    clean = net(data)
    try:
        converted = chipfit.convert(copy.deepcopy(net), chipfit.chip(chip), data[:8])
    except UnsupportedError:
        return None
    off = ((converted(data) - clean).abs().max() / clean.abs().max().clamp(min=1e-30)).item()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = chipfit.calibrate(converted, [data])
        if correct if correct is not None else chip == "txx":
            chipfit.correct_bias(converted, [data])
    said = tuple(str(finding) for finding in report.findings) + tuple(
        str(w.message) for w in caught if "only zeros" in str(w.message)
    )
    quantised = chipfit.set_mode(converted, "quant").eval()(data)
    codes, equal = 0, None
    if proven:
        proof = chipfit.verify(converted, chipfit.lower(converted, data[:2]), [data[:8]])
        codes, equal = sum(proof.codes.values()), proof.equal
    yardstick = sqnr(clean, fake_quantised(net, data))
    return Upwards(seed, off, sqnr(clean, quantised), yardstick, said, codes, equal)


@torch.no_grad()
def fake_quantised(net: nn.Module, data: Tensor) -> Tensor:
    """The network with `torch.fake_quantize` at 8 bits on its input, each weight and each module's output.

    Ranges are those of the data, one a tensor: activations with a zero point, weights symmetric.
    """
    net = copy.deepcopy(net)

    def rounded(x: Tensor, symmetric: bool) -> Tensor:
        most = x.abs().max().item()
        low, high = (-most, most) if symmetric else (min(x.min().item(), 0.0), max(x.max().item(), 0.0))
        if not high > low:
            return x
        scale = (high - low) / 255
        zero = 0 if symmetric else round(-low / scale) - 128
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (rounded(output[0], False), *output[1:])
        return rounded(output, False)

    for module in net.modules():
        if next(module.children(), None) is None and not isinstance(module, nn.Identity):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight") and parameter.dim() > 1:
                    parameter.copy_(rounded(parameter, True))
            module.register_forward_hook(hook)
    result: Tensor = net(rounded(data, False))
    return result

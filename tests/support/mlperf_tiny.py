"""The reference networks of MLPerf Tiny in plain torch, with weights from files that are not part of this project."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

_EPS = 1e-3


class Same(nn.Module):
    """TensorFlow's "same" border of a convolution: at stride 2 and an even size more on the right and the bottom."""

    def __init__(self, conv: nn.Conv2d, pads: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.pad, self.conv = nn.ZeroPad2d(pads), conv

    def forward(self, x: Tensor) -> Any:
        """Pad and convolve."""
        return self.conv(self.pad(x))


class Residual(nn.Module):
    """A branch and a skip, added and activated."""

    def __init__(self, branch: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.branch, self.skip, self.act = branch, skip, nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        """The sum."""
        return self.act(self.branch(x) + self.skip(x))


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    border = stride == 1 or size == 1
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2 if border else 0, groups=groups)
    return conv if border else Same(conv, (0, 1, 0, 1))


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=_EPS)


def _ic01() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        first = (_conv(inputs, outputs, 3, stride), _norm(outputs), nn.ReLU())
        branch = nn.Sequential(*first, _conv(outputs, outputs, 3), _norm(outputs))
        return Residual(branch, nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride))

    blocks = block(16, 16, 1), block(16, 32, 2), block(32, 64, 2)
    first = _conv(3, 16, 3), _norm(16), nn.ReLU()
    return nn.Sequential(*first, *blocks, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


def _vww() -> nn.Module:
    parts: list[nn.Module] = [_conv(3, 8, 3, 2), _norm(8), nn.ReLU()]
    inputs = 8
    steps = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    for outputs, stride in steps:
        parts += [_conv(inputs, inputs, 3, stride, inputs), _norm(inputs), nn.ReLU()]
        parts += [nn.Conv2d(inputs, outputs, 1), _norm(outputs), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*parts, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(256, 2))


def _kws() -> nn.Module:
    parts: list[nn.Module] = [Same(nn.Conv2d(1, 64, (10, 4), 2), (1, 1, 4, 5)), nn.ReLU()]
    for _ in range(4):
        parts += [_conv(64, 64, 3, 1, 64), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU()]
    return nn.Sequential(*parts, nn.AvgPool2d((25, 5)), nn.Flatten(), nn.Linear(64, 12))


def _ad() -> nn.Module:
    widths = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128]
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, eps=_EPS), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(128, 640))


def _sww() -> nn.Module:
    parts: list[nn.Module] = []
    inputs = 40
    for outputs, size in ((128, 3), (128, 5), (128, 10), (32, 15)):
        parts += [nn.Conv1d(inputs, inputs, size, groups=inputs), nn.Conv1d(inputs, outputs, 1)]
        parts += [nn.BatchNorm1d(outputs, eps=_EPS), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float]] = {
    "ic01": (_ic01, (3, 32, 32), 255.0),
    "vww": (_vww, (3, 96, 96), 1.0),
    "kws": (_kws, (1, 49, 10), 0.0),
    "ad": (_ad, (640,), 0.0),
    "sww": (_sww, (40, 30), 0.0),
}
"""What builds each, the shape of an input, and its greatest value; 0 where it is about normal."""


def inputs_of(name: str, folder: Path, samples: int = 32) -> Tensor:
    """Random inputs of a network; the recorded clips of the wake word where they are there."""
    _, shape, top = NETWORKS[name]
    if name == "sww" and (folder / "sww_clips.npz").exists():
        with np.load(folder / "sww_clips.npz") as clips:
            return torch.from_numpy(clips["features"]).float()[:samples]
    x = torch.randn(samples, *shape)
    return torch.rand(samples, *shape) * top if top else x


def network_of(name: str, folder: Path) -> nn.Module:
    """A network with its weights, in evaluation."""
    build, shape, _ = NETWORKS[name]
    net = build().eval()
    net(torch.zeros(2, *shape))  # the sizes of lazy layers
    stored: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / f"{name}.safetensors").items():
        index, _, what = key.split(".", 2)
        stored.setdefault(int(index), {})[what] = value
    owners = list(_owners(net))
    assert len(owners) == len(stored), (name, len(owners), len(stored))
    for owner, (_, values) in zip(owners, sorted(stored.items()), strict=True):
        missing = owner.load_state_dict(values, strict=False)
        assert not missing.unexpected_keys, (name, owner, missing)
        if "bias" in missing.missing_keys and getattr(owner, "bias", None) is not None:
            nn.init.zeros_(owner.bias)  # type: ignore[arg-type]  # torch types it as a module too
    return net


def _owners(net: nn.Module) -> Iterator[nn.Module]:
    """The modules with parameters in order of execution: of a residual block the branch, then the skip."""
    return (
        m for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d))
    )

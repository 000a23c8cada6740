"""Widths for a plain network: the search beats equal widths at equal size, also from the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.cli import main
from chipfit.errors import UnsupportedError
from chipfit.files import save_model
from chipfit.fit.data import digits

T40 = chipfit.chip("t40")
NAMES = ("0", "4", "8", "10")
NETWORK = """
from torch import nn

def network():
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, stride=2, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 10),
    )
"""


def train() -> tuple[nn.Module, Tensor]:
    space: dict[str, object] = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    net = space["network"]()  # type: ignore[operator]
    images, labels = digits(seed=0)[0].tensors
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(4):
        for index in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(net(images[index]), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval(), images[:256]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor]:
    return train()


def noise(net: nn.Module, images: Tensor, bits: dict[str, int]) -> tuple[float, int]:
    """Noise over signal at the output, and bytes, of the quantised network."""
    converted = chipfit.convert(net, T40, images, weight_bits=bits)
    data = list(images.split(64))
    chipfit.calibrate(converted, data)
    chipfit.correct_bias(converted, data)
    chipfit.set_mode(converted, "quant").eval()
    with torch.no_grad():
        clean, got = net(images), converted(images)
    sizes = {name: net.get_submodule(name).weight.numel() for name in bits}
    relative = ((got - clean).square().sum() / clean.square().sum()).item()
    return relative, sum(sizes[name] * width // 8 for name, width in bits.items())


@pytest.mark.slow
def test_it_beats_4_bits_everywhere_at_equal_size(trained: tuple[nn.Module, Tensor]) -> None:
    net, images = trained
    before = copy.deepcopy(net.state_dict())
    uniform, size = noise(net, images, dict.fromkeys(NAMES, 4))
    found = chipfit.search_bits(net, T40, images.split(64), budget=size, bits=(2, 3, 4, 6, 8))
    assert set(found.bits) == set(NAMES)
    assert found.cost <= size
    chosen, cost = noise(net, images, found.bits)
    assert cost == found.cost
    assert chosen < 0.8 * uniform
    assert {entry.layer for entry in found.table} == set(NAMES)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_chip_whose_widths_are_fixed() -> None:
    with pytest.raises(UnsupportedError, match="search_bits: the widths are the chip's; got 'wtm2101'"):
        chipfit.search_bits(nn.Linear(4, 2), chipfit.chip("wtm2101"), [torch.rand(2, 4)])


def test_the_command_writes_what_convert_takes(
    trained: tuple[nn.Module, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    net, images = trained
    (tmp_path / "plain_search_net.py").write_text(NETWORK, encoding="utf-8")
    save_model(tmp_path / "weights.safetensors", net)
    monkeypatch.chdir(tmp_path)
    words = ["search", "plain_search_net:network", "0.5", "--weights", "weights.safetensors", "--samples", "64"]
    assert main([*words, "--bits", "[4, 8]", "--out", "bits.json"]) == 0
    bits = json.loads((tmp_path / "bits.json").read_text(encoding="utf-8"))
    assert set(bits) == set(NAMES) and set(bits.values()) <= {4, 8}
    assert "chosen" in capsys.readouterr().out
    converted = chipfit.convert(net, T40, images, weight_bits=bits)
    assert converted.get_submodule("8").weight_bitwidth == bits["8"]

"""Lines of users' forwards that ended in raw errors: masks, devices and types of other tensors, tuples of parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.errors import UnsupportedError
from support.conversion import CHIPS, quality


class Middle(nn.Module):
    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.conv, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.conv(x)).mean((2, 3)))


IDIOMS = {
    "x * (x > 0)": lambda _, x: x * (x > 0),
    "(x > 0).float() * x": lambda _, x: (x > 0).float() * x,
    "device": lambda self, x: F.relu(x.to(self.head.weight.device)),
    "dtype": lambda self, x: F.relu(x.to(self.head.weight.dtype)),
    "type_as": lambda self, x: F.relu(x.type_as(self.conv.weight)),
    "cat of chunks": lambda _, x: torch.cat(F.relu(x).chunk(2, 1), 1),
    "cat of split": lambda _, x: torch.cat(torch.split(F.relu(x), [16, 48], 1)[::-1], 1),
}


@pytest.mark.parametrize("name", IDIOMS)
@pytest.mark.parametrize("target", CHIPS)
def test_idioms(target: str, name: str) -> None:
    torch.manual_seed(0)
    assert quality(Middle(IDIOMS[name]), target, torch.rand(8, 3, 8, 8)) > 20


@pytest.mark.parametrize("target", ["t40", "txx"])
def test_reading_a_converted_layers_weight_is_a_clear_error(target: str) -> None:
    net = Middle(lambda self, x: x * self.conv.weight.mean())
    with pytest.raises(UnsupportedError, match=r"reads a parameter of a layer.*conv.weight"):
        chipfit.convert(net.eval(), target, torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("verb", ["lower", "calibrate", "set_mode", "layer_quality"])
def test_a_plain_network_is_sent_to_convert(verb: str) -> None:
    net, x = nn.Sequential(nn.Linear(4, 2)), torch.rand(2, 4)
    given: Any = {"lower": x, "set_mode": "quant"}.get(verb, [x])
    with pytest.raises(UnsupportedError, match=r"chipfit\.convert\(net, chip, example\)"):
        getattr(chipfit, verb)(net, given)

"""One convention of batches for every verb (row 14)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.errors import ShapeError
from support.conversion import CHIPS


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(F.relu(self.a(left) + self.b(right)))


SHAPES: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "(a, b, label)": lambda a, b, label: (a, b, label),
    "[a, b, label]": lambda a, b, label: [a, b, label],
    "((a, b), label)": lambda a, b, label: ((a, b), label),
    "names": lambda a, b, label: {"left": a, "right": b, "label": label},
    "names in any order": lambda a, b, label: {"target": label, "right": b, "left": a},
    "(names, label)": lambda a, b, label: ({"right": b, "left": a}, label),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", CHIPS)
def test_every_verb_takes_every_form(target: str, shape: str) -> None:
    torch.manual_seed(0)
    a, b, label = torch.rand(8, 32), torch.randn(8, 32), torch.randint(4, (8,))
    net = chipfit.convert(Two().eval(), target, (a, b))
    data = [SHAPES[shape](a, b, label)]
    chipfit.calibrate(net, data)
    chipfit.set_mode(net, "quant")
    chipfit.layer_quality(net, data)
    chipfit.correct_bias(net, data)
    program = chipfit.lower(net, (a, b))
    assert chipfit.verify(net, program, data)
    assert chipfit.certify(program, data).samples == 8
    result = chipfit.evaluate(net, data, chips=1)
    assert result.quantised.loss == pytest.approx(F.cross_entropy(net(a, b), label).item(), rel=1e-5)


@pytest.mark.parametrize("target", CHIPS)
def test_without_labels(target: str) -> None:
    a, b = torch.rand(8, 32), torch.rand(8, 32)
    net = chipfit.convert(Two().eval(), target, (a, b))
    for batch in ((a, b), [a, b], ((a, b),), {"left": a, "right": b}):
        chipfit.calibrate(net, [batch])
        chipfit.set_mode(net, "quant")
        assert chipfit.verify(net, chipfit.lower(net, (a, b)), [batch])
    with pytest.raises(ShapeError, match="no target"):
        chipfit.evaluate(net, [{"left": a, "right": b}], chips=1)


@pytest.mark.parametrize("batch", [torch.rand(2, 32), ("text", 1), {"left": torch.rand(2, 32)}, {}, ()])
def test_a_batch_that_is_none_is_a_clear_error(batch: Any) -> None:
    a, b = torch.rand(8, 32), torch.rand(8, 32)
    net = chipfit.convert(Two().eval(), "t40", (a, b))
    with pytest.raises(ShapeError, match=r"left, right|does not begin with the network's inputs"):
        chipfit.calibrate(net, [batch])

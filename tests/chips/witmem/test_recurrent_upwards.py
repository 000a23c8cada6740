"""Recurrent layers against the network that was brought: stacked, bidirectional, behind a ReLU, of any length."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chipfit
from chipfit.errors import ShapeError
from chipfit.fit.methods import sqnr

CHIP = "wtm2101"


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones, behind a ReLU."""

    def __init__(self, kind: Any, layers: int, bidirectional: bool, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(10, 16)
        self.middle = kind(16, 12, layers, bias=bias, batch_first=True, bidirectional=bidirectional)
        self.last = nn.Linear(12 * (1 + bidirectional), 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.middle(torch.relu(self.first(x)))[0])
        return y


def _calibrated(net: nn.Module, x: Tensor) -> nn.Module:
    converted = chipfit.convert(net.eval(), chipfit.chip(CHIP), x[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chipfit.calibrate(converted, [x])
    return chipfit.set_mode(converted, "quant").eval()


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize(("layers", "bidirectional"), [(1, True), (2, False), (2, True)])
@torch.no_grad()
def test_any_stack_behind_a_relu_survives(kind: Any, layers: int, bidirectional: bool) -> None:
    torch.manual_seed(0)
    net, x = Recurrent(kind, layers, bidirectional), torch.randn(16, 8, 10)
    quantised = _calibrated(net, x)
    assert sqnr(net(x), quantised(x)) > 28
    if kind is nn.GRU:
        assert chipfit.verify(quantised, chipfit.lower(quantised, x[:2]), [x]).equal


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@torch.no_grad()
def test_a_sequence_of_any_length(kind: Any) -> None:
    torch.manual_seed(1)
    net, x = Recurrent(kind, 2, True), torch.randn(16, 9, 10)
    quantised = _calibrated(net, x)
    for steps in (1, 7, 13):
        other = torch.randn(4, steps, 10)
        assert quantised(other).shape == (4, steps, 4)
        assert sqnr(net(other), quantised(other)) > 25
    floats = chipfit.set_mode(quantised, "float")
    assert torch.allclose(floats(other), net(other), atol=1e-5)


def test_an_lstm_refuses_what_is_no_sequence() -> None:
    torch.manual_seed(1)
    quantised: Any = _calibrated(Recurrent(nn.LSTM, 1, False), torch.randn(8, 5, 10))
    for shape in ((4, 0, 10), (5, 10)):
        with pytest.raises(ShapeError, match="sequence"):
            quantised(torch.randn(shape))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "rows"), [(1, False, 64), (1, True, 64), (2, False, 64), (2, True, 128)]
)
def test_the_row_estimate_counts_the_signed_states_of_later_layers(
    kind: Any, layers: int, bidirectional: bool, rows: int
) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Linear(4, 40), nn.ReLU(), kind(40, 32, layers, batch_first=True, bidirectional=bidirectional)
    )
    report = chipfit.check(net.eval(), chipfit.chip(CHIP), torch.randn(2, 6, 4))
    assert [row.rows for row in report.rows if row.kind == kind.__name__.lower()] == [rows]

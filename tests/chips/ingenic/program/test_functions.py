"""Functions on the CPU core between two operators of an Ingenic chip: tables over codes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chipfit
from chipfit.convert import convert
from chipfit.errors import UnsupportedError
from chipfit.program import lower, ops, verify
from chipfit.program.types import Program
from chipfit.vendor import chip


class Between(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, function: Callable[..., Tensor], channels: int = 3, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(2, channels, 1), nn.Conv2d(outputs, 2, 1)
        self.function, self.square = function, nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, self.a(x)))


X = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(3))


def lowered(net: nn.Module, target: str = "t40", **options: Any) -> tuple[nn.Module, Program]:
    converted = convert(net.eval(), chip(target), X, **options)
    chipfit.calibrate(converted, [X])
    chipfit.set_mode(converted, "quant")
    program = lower(converted, X[:1])
    proof = verify(converted, program, X.split(2))
    assert proof.equal, proof
    return converted, program


def tables(program: Program) -> list[Tensor]:
    return [program.tensors[node.op.table_tensor] for node in program.nodes if isinstance(node.op, ops.LookUp)]


@pytest.mark.parametrize(
    ("target", "bits", "codes"),
    [
        ("txx", 8, torch.arange(-128, 128)),
        ("txx", 4, torch.arange(-8, 8)),
        ("t40", 8, torch.arange(-255, 256)),  # the signed codes there are odd
        ("t41", 4, torch.arange(-15, 16)),
        ("t40", 2, torch.arange(-3, 4)),
    ],
)
def test_a_chain_of_functions_is_one_table_with_an_entry_a_code(target: str, bits: int, codes: Tensor) -> None:
    net = Between(lambda net, x: net.square(torch.sigmoid(x).pow(2)).sqrt())
    converted, program = lowered(net, target, bits=bits)
    (table,) = tables(program)
    assert converted.a.QuantizeFeature.signed and not converted.to_feature.QuantizeFeature.signed
    real = codes.float() / codes.abs().max() * converted.to_tensor.scale.unique()
    expected = converted.to_feature.QuantizeFeature(F.softplus(torch.sigmoid(real).pow(2)).sqrt())
    assert table.tolist() == [(expected * (2**bits - 1)).round().int().tolist()]


def test_a_function_of_joined_features_has_a_table_a_channel() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 2, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(F.silu(torch.cat([self.a(x), 3 * self.b(x)], 1)))

    torch.manual_seed(0)
    converted, program = lowered(Joined())
    assert converted.to_tensor.scale.unique().numel() == 2
    (table,) = tables(program)
    assert table.shape[0] == 5
    assert torch.equal(table[0], table[2]) and torch.equal(table[3], table[4]) and not torch.equal(table[2], table[3])


def test_two_functions_of_one_source_are_one_table() -> None:
    converted, program = lowered(Between(lambda net, x: torch.tanh(x) / torch.exp(x)))
    assert set(converted.meta["on_cpu"]) == {"tanh", "exp", "div"}
    assert len(tables(program)) == 1
    converted, program = lowered(Between(lambda net, x: x * torch.sigmoid(x)))
    assert set(converted.meta["on_cpu"]) == {"silu"} and len(tables(program)) == 1
    converted, program = lowered(Between(lambda net, x: torch.tanh(x) * torch.sigmoid(x)))
    assert set(converted.meta["on_cpu"]) == {"tanh", "sigmoid"} and len(tables(program)) == 2  # the chip multiplies


def test_functions_that_are_read_twice_have_a_table_each_way_back() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.a(x))
            return self.b(y) + self.c(y.abs())

    torch.manual_seed(0)
    assert len(tables(lowered(Forked())[1])) == 2


class TwoSources(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.pow(torch.sigmoid(self.a(x)), torch.tanh(self.b(x))))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (TwoSources(), r"pow_1: what sigmoid gives is real numbers, of which only a function value by value can be"),
        (Between(lambda net, x: torch.tanh(x).cumsum(1)), r"tanh: tanh has no integer form"),
        (Between(lambda net, x: torch.round(F.silu(x))), r"silu: silu has no integer form"),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sigmoid()), r"_1 \(layer 1\): Sigmoid has no integer form"),
        (
            nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Tanh()),
            "output: the network ends with real numbers of _3",
        ),
    ],
)
def test_what_is_no_function_from_codes_to_codes_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        lowered(net)

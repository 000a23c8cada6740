"""Which biases the bias rows cannot hold at the scales in force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chipfit.chips.witmem.array.layers import ArrayLayer
from chipfit.chips.witmem.array.numbers import BIAS_UNIT, ArraySpec, Geometry
from chipfit.chips.witmem.array.rule import held_bias
from chipfit.chips.witmem.gru.base import GruLayer
from chipfit.fit.contract import HeldBias

_ROUNDING = 1.01
"""Rounding moves a bias by half a unit at the most; what float32 adds to that."""


@dataclass(frozen=True)
class Bias(HeldBias):
    """The bias of one array operation.

    Args:
        wanted: The float bias, one value a channel, in units of the output.
        held: What the array adds in its place.
        clipped: Which channels lose more than rounding does.
        tensors: Short names of the two tensors whose scales decide: the input's (None where it is fixed) and the
            weight's.
    """

    tensors: tuple[str | None, str]


@torch.no_grad()
def biases(layer: nn.Module) -> list[Bias]:
    """The bias of each array operation of a layer at the scales in force in evaluation; empty where it has none."""
    return [_bias(*operation) for operation in _operations(layer)]


def _operations(layer: nn.Module) -> Iterator[tuple[Tensor, Tensor, Geometry, ArraySpec, tuple[str | None, str]]]:
    if isinstance(layer, ArrayLayer):
        kind = "conv_transpose" if isinstance(layer, nn.ConvTranspose2d) else "linear"  # the sum over inputs is equal
        yield layer.weight, layer.bias, Geometry(kind), layer.spec_in_force(), ("x", "weight")
    elif isinstance(layer, GruLayer):
        for suffix in getattr(layer, "suffixes", ("",)):
            numbers = layer.numbers_in_force(suffix)
            w_ih, w_hh, b_ih, b_hh = layer.cell_parameters(suffix)
            if b_ih is not None:
                yield w_ih, b_ih, Geometry("linear"), numbers.input, (f"x{suffix}", f"weight{suffix}")
                yield w_hh, b_hh, Geometry("linear"), numbers.hidden, (None, f"weight_hidden{suffix}")


def _bias(weight: Tensor, bias: Tensor, lin: Geometry, spec: ArraySpec, tensors: tuple[str | None, str]) -> Bias:
    wanted = bias.detach().double()
    held = held_bias(wanted, weight.detach().double(), lin, spec)
    unit = BIAS_UNIT if spec.splits else BIAS_UNIT / 2
    return Bias(wanted, held, (wanted - held).abs() * spec.product_scale > unit * _ROUNDING, tensors)

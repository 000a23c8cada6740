"""How large an accumulator can become, and whether floating point still counts it exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT32_EXACT = 1 << 24
"""float32 holds every integer up to this magnitude; sums that stay below it do not depend on their order."""


@dataclass(frozen=True)
class AccumulatorBound:
    """Largest magnitude that an accumulator of a layer can take for any input within range.

    Args:
        per_channel: Bound for each output channel, shape `(channels,)`, int64.
    """

    per_channel: Tensor

    @property
    def largest(self) -> int:
        """Bound over all channels."""
        return int(self.per_channel.max())

    @property
    def bits(self) -> int:
        """Width of a signed register that cannot overflow."""
        return self.largest.bit_length() + 1

    @property
    def exact_in_float32(self) -> bool:
        """Whether float32 arithmetic gives the integer result whatever the order of summation."""
        return self.largest <= FLOAT32_EXACT


def accumulator_bound(weight: Tensor, input_magnitude: int, bias: Tensor | None = None) -> AccumulatorBound:
    """Bound `max|x| * sum|w| + |b|` per output channel.

    Args:
        weight: Integer weight codes, output channels first, shape `(out, ...)`.
        input_magnitude: Largest magnitude of an input code.
        bias: Integer bias codes, shape `(out,)`.

    Returns:
        The bound of each channel.

    Example:
        >>> accumulator_bound(torch.tensor([[127., -128.], [1., 0.]]), 255).per_channel
        tensor([65025,   255])
        >>> accumulator_bound(torch.full((1, 600), 127.0), 255).exact_in_float32
        False
    """
    bound = weight.abs().flatten(1).to(torch.int64).sum(1) * input_magnitude
    if bias is not None:
        bound = bound + bias.abs().to(torch.int64)
    return AccumulatorBound(bound)

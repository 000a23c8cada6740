"""What a vendor says about comparing a network with its program; the proof knows no vendor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chipfit.program.types import Program, ValueType


@dataclass(frozen=True)
class Settled:
    """What is said of a network that was put in the state in which its program was made.

    Args:
        rounding: Rounding rules of the program.
        trained_otherwise: Layers that the network itself computes with another rule than the program.
    """

    rounding: tuple[str, ...] = ()
    trained_otherwise: tuple[str, ...] = ()


def nothing_to_settle(root: nn.Module, program: Program) -> Settled:
    """Leave a network as it is."""
    return Settled()


def times_scale(values: Tensor, edge: ValueType) -> Tensor:
    """Real values on a grid as codes, in float64, so that a value between two codes shows."""
    return values.to(torch.float64) * edge.scale + edge.zero


@dataclass(frozen=True)
class Comparing:
    """How a network is put in the program's state, and how a layer's output is read as codes.

    Args:
        settle: Puts a copy of the network, in evaluation, in the state that the program was made in (what a layer would
            find out from data, which of several rules is in force), and says what there is to say about it.
        scaled: A layer's output as codes in float64, not rounded, from the type of its edge.
        widens: Whether a layer runs in float64 where float32 is not sure to be exact; not so where layers sum their
            codes exactly by themselves.
        tolerance: Distance from a code, in codes, that float32 can put a value; anything farther is no code.

    Example:
        >>> codes = Comparing(tolerance=2e-3).codes(torch.tensor([0.1255, 0.13]), ValueType((2,), 8, False, 8.0))
        >>> codes.round(decimals=4).tolist()
        [1.004, 1.04]
        >>> Comparing(tolerance=1e-2).codes(torch.tensor([0.1255]), ValueType((1,), 8, False, 8.0)).tolist()
        [1.0]
    """

    settle: Callable[[nn.Module, Program], Settled] = nothing_to_settle
    scaled: Callable[[Tensor, ValueType], Tensor] = times_scale
    widens: bool = True
    tolerance: float = 0.0

    def codes(self, values: Tensor, edge: ValueType) -> Tensor:
        """A layer's output as the codes of its edge; what is no code stays between two, real numbers what they are."""
        values = values.detach().cpu()
        if edge.real:
            return values
        scaled = self.scaled(values, edge)
        if not self.tolerance:
            return scaled
        codes = scaled.round()
        return torch.where((scaled - codes).abs() <= self.tolerance, codes, scaled)

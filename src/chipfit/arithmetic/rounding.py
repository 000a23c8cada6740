"""How a chip turns the real quotient of an accumulator into an integer code.

Each rule is a pure function on a tensor, each has the gradient of the identity once it is wrapped in
`straight_through`, and none writes a gradient of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Rounding = Callable[[Tensor], Tensor]


def half_even(v: Tensor) -> Tensor:
    """Round to nearest, ties to the even neighbour.

    Args:
        v: Real-valued codes, any shape, floating dtype.

    Returns:
        Integral values in the dtype of `v`.

    Example:
        >>> half_even(torch.tensor([0.5, 1.5, -0.5, -1.5, 2.4]))
        tensor([ 0.,  2., -0., -2.,  2.])
    """
    return torch.round(v)


def floor(v: Tensor) -> Tensor:
    """Round toward minus infinity: what the digital unit's integer square root does.

    Example:
        >>> floor(torch.tensor([0.9, -0.1]))
        tensor([ 0., -1.])
    """
    return torch.floor(v)


class _StraightThrough(torch.autograd.Function):
    """Forward: any rounding rule. Backward: the identity."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, rule: Rounding) -> Tensor:
        return rule(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(rule: Rounding) -> Rounding:
    """Give a rounding rule the gradient of the identity.

    Args:
        rule: Any of the rules above.

    Returns:
        The same rule, differentiable.

    Example:
        >>> x = torch.tensor([0.3, 1.7], requires_grad=True)
        >>> straight_through(half_even)(x).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """

    def rounded(v: Tensor) -> Tensor:
        out: Tensor = _StraightThrough.apply(v, rule)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        return out

    return rounded

"""The rounding rules of the array: what the vendor's library trains, and what the silicon does."""

from __future__ import annotations

import torch
from torch import Tensor

from chipfit.arithmetic.rounding import Rounding, half_even
from chipfit.errors import UnknownOptionError, nearest


def wtm2101(v: Tensor) -> Tensor:
    """Round as the WTM2101 array does: half up above zero, and below zero outward only from a fraction of 0.75.

    Source: vendor simulator, 250,800 outputs, no mismatch (spec/wtm2101-silicon.md, section 1).

    Args:
        v: Accumulator divided by G, any shape, floating dtype.

    Returns:
        Integral values in the dtype of `v`.

    Example:
        >>> wtm2101(torch.tensor([0.5, 1.49, -0.5, -0.75, -1.74, -1.8]))
        tensor([ 1.,  1., -0., -1., -1., -2.])
    """
    return torch.where(v >= 0, torch.floor(v + 0.5), torch.trunc(v - 0.25))


RULES: dict[str, Rounding] = {"witin_nn": half_even, "wtm2101": wtm2101}
"""Rounding rules that a layer can be told to use, by the name a user writes."""


def rule_named(name: str) -> Rounding:
    """Look up a rounding rule.

    Raises:
        UnknownOptionError: `name` is none of `RULES`.

    Example:
        >>> rule_named("wtm2101") is wtm2101
        True
    """
    if name not in RULES:
        raise UnknownOptionError(
            "unknown rounding rule", given=name, allowed=", ".join(RULES), where="rounding", hint=nearest(name, RULES)
        )
    return RULES[name]

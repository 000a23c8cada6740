"""The fast path of the Ingenic operations: sums in float32 or float64, the rest in float32 on codes held in float32.

`Finish`, which follows every sum, has a form of its own that works in place; the others go through the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chipfit.integer import ops_ingenic as ops
from chipfit.integer.interpreter_ingenic import COMPUTE, Tensors, accumulate, activated, channels, value

Step = Callable[[list[Tensor]], Tensor]
_TIE = -0.5 + 16777 * 2.0**-24
"""Distance to the nearest code at which a fraction is 0.501: 0.001 in steps of 2^-24."""


def tround_(v: Tensor) -> Tensor:
    """`interpreter_ingenic.tround` of values that are not negative, as float32; may change its argument.

    Just above a tie, where rounding goes up, half a code less is a tie again, which rounding gives to the even code.

    Example:
        >>> tround_(torch.tensor([2.5009, 0.5005, 1.4999, 2.502, 1.5]))
        tensor([2., 0., 1., 3., 2.])
    """
    code = v.round()
    return code.sub_((v.sub_(code) <= _TIE).to(code.dtype).mul_(0.5)).round_()


def _requantise_(v: Tensor, op: ops.Requantise) -> Tensor:
    """Codes as float32 of real numbers that may be overwritten; every division is a division."""
    c, n = torch.tensor(op.clip, dtype=torch.float32), float(op.n)
    if op.divisor is not None:
        v.div_(torch.tensor(op.divisor, dtype=torch.float32))
    if op.kind == "unsigned":
        return tround_(v.clamp_(0.0, op.clip).div_(c).mul_(n))
    v.clamp_(-op.clip, op.clip)
    if op.kind == "odd":
        return tround_(v.add_(c).div_(2 * c).mul_(n)).mul_(2.0).sub_(n)
    v.div_(c).mul_(n)
    return tround_(v.abs()).copysign_(v.sign()).clamp_(-n, n - 1)


def _finish_step(op: ops.Finish, tensors: Tensors, exact: bool, dtype: torch.dtype) -> Step:
    def step(args: list[Tensor]) -> Tensor:
        def each(name: str) -> Tensor:
            return channels(tensors[name], args[0], op.axis)

        v = value(args[0], op.grid)
        if v is args[0]:
            v = v.clone()
        if op.affine is not None:
            v.mul_(each(op.affine.scale_tensor))
            if op.affine.bias_tensor is not None:
                v.add_(each(op.affine.bias_tensor))
        if op.norm is not None:
            v.sub_(each(op.norm.mean_tensor)).mul_(each(op.norm.gain_tensor)).add_(each(op.norm.shift_tensor))
        v = activated(v, op.activation, tensors, op.axis)
        return v if op.requantise is None else _requantise_(v, op.requantise).to(dtype)

    return step


def _sum_step(op: ops.Accumulate, tensors: Tensors, exact: bool, dtype: torch.dtype) -> Step:
    wide = torch.float32 if exact else torch.float64
    weight = tensors[op.weight_tensor].to(wide)
    return lambda args: accumulate(args[0].to(wide), op, weight)


def _other_step(op: Any, tensors: Tensors, exact: bool, dtype: torch.dtype) -> Step:
    compute = COMPUTE[type(op)]
    return lambda args: compute(op, args, tensors).to(dtype)


STEPS: dict[type[Any], Callable[[Any, Tensors, bool, torch.dtype], Step]] = {
    **dict.fromkeys(COMPUTE, _other_step),
    ops.Accumulate: _sum_step,
    ops.Finish: _finish_step,
}
"""What prepares the step of an operation: from its tensors, whether float32 counts its sums, and the result's dtype."""

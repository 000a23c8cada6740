"""The fast path of the Ingenic operations: sums in float32 or float64, the rest on codes held in floating point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chipfit.integer import ops_ingenic as ops
from chipfit.integer.interpreter_ingenic import COMPUTE, Tensors, accumulate

Step = Callable[[list[Tensor]], Tensor]


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
}
"""What prepares the step of an operation: from its tensors, whether float32 counts its sums, and the result's dtype."""

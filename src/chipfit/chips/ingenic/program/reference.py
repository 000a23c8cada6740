"""The reference of the operations that only Ingenic programs have: float32 in the order of `ops.py`, one step a line.

Written from spec/ingenic.md, sections 1.1 to 1.7; it shares no arithmetic with the training layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

from chipfit.chips.ingenic.program import ops
from chipfit.chips.ingenic.program.float_sums import positions_sum
from chipfit.errors import InvalidValueError
from chipfit.program.dialect import Context
from chipfit.program.grid import value
from chipfit.program.integers import half_even_quotient

Tensors = Mapping[str, Tensor]
_BAND_END = torch.tensor(0.501, dtype=torch.float32)
BELOW = float(_BAND_END) - 1.0
"""From the code above a tie to the end of the ties; float32 holds it."""
_OFF_GRID = 2e-3
"""Distance in codes that float32 can put a value off its grid; beyond it lies between two codes."""


def tround(v: Tensor) -> Tensor:
    """Round float32 values by magnitude to nearest, ties to the even neighbour; gives int64.

    A tie is what lies from `k + 0.5` up to, not including, the float32 sum of k and 0.501.

    Example:
        >>> tround(torch.tensor([2.5009, 0.5005, 1.4999, 2.502, -0.5005, -1.5, 116.50099945]))
        tensor([  2,   0,   1,   3,   0,  -2, 117])
    """
    magnitude = v.abs()
    floor = magnitude.floor()
    up = (magnitude >= floor + _BAND_END) | ((magnitude - floor >= 0.5) & (floor % 2 == 1))
    code = floor.to(torch.int64) + up.to(torch.int64)
    return torch.where(v < 0, -code, code)


def requantise(v: Tensor, op: ops.Requantise) -> Tensor:
    """Real numbers to codes; see `Requantise`.

    Example:
        >>> requantise(torch.tensor([-1.0, 1.5, 7.0]), ops.Requantise("unsigned", 3, 6.0))
        tensor([0, 1, 3])
    """
    c, n = torch.tensor(op.clip, dtype=torch.float32), float(op.n)
    if op.divisor is not None:
        v = v / torch.tensor(op.divisor, dtype=torch.float32)
    if op.kind == "unsigned":
        clipped = torch.minimum(torch.maximum(v, torch.zeros(())), c)
        return tround(clipped / c * n)
    clipped = torch.minimum(torch.maximum(v, -c), c)
    if op.kind == "signed":
        return tround(clipped / c * n).clamp(-op.n, op.n - 1)
    return 2 * tround((clipped + c) / (2 * c) * n) - op.n


def channels(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """View one value a channel so that it broadcasts over `like`."""
    return values if axis == -1 or values.numel() == 1 else values.view(-1, *[1] * (like.dim() - 2))


def activated(v: Tensor, op: ops.Activation, tensors: Tensors, axis: int = 1) -> Tensor:
    """Apply an activation; see `Activation`."""
    if op.kind == "none":
        return v
    if op.kind == "leaky":
        slope = channels(tensors[op.slope_tensor or ""], v, axis)
        return torch.where(v > 0, v, v * slope)
    if op.kind == "relu":
        return v.clamp(min=0.0)
    if op.kind == "relu6":
        return v.clamp(0.0, 6.0)
    moved = v + torch.tensor(op.offset, dtype=torch.float32)
    if op.kind == "shift":
        return moved
    gate = moved.clamp(0.0, op.top) / torch.tensor(op.top, dtype=torch.float32)
    return gate if op.kind == "hsigmoid" else v * gate


def rises(op: ops.Activation, tensors: Tensors) -> bool:
    """Whether an activation never gives less for more, in no channel."""
    slopes = None if op.slope_tensor is None else tensors[op.slope_tensor]
    return op.kind != "hswish" and (slopes is None or bool((slopes >= 0).all()))


def finish(op: ops.Finish, args: list[Tensor], context: Context) -> Tensor:
    """`Finish`."""
    tensors = context.tensors
    v = value(args[0], op.grid)
    if op.affine is not None:
        v = v * channels(tensors[op.affine.scale_tensor], v, op.axis)
        if op.affine.bias_tensor is not None:
            v = v + channels(tensors[op.affine.bias_tensor], v, op.axis)
    if op.norm is not None:
        v = v - channels(tensors[op.norm.mean_tensor], v, op.axis)
        v = v * channels(tensors[op.norm.gain_tensor], v, op.axis)
        v = v + channels(tensors[op.norm.shift_tensor], v, op.axis)
    v = activated(v, op.activation, tensors, op.axis)
    return v if op.requantise is None else requantise(v, op.requantise)


def combine(op: ops.Combine, args: list[Tensor], context: Context) -> Tensor:
    """`Combine`."""
    a, b = value(args[0], op.left), value(args[1], op.right)
    v = activated(a + b if op.kind == "add" else a * b, op.activation, context.tensors)
    return v if op.requantise is None else requantise(v, op.requantise)


def average_codes(op: ops.AverageCodes, args: list[Tensor], _: Context) -> Tensor:
    """`AverageCodes`."""
    total = torch.zeros((), dtype=torch.int64)
    for code, grid in zip(args, (op.left, op.right), strict=True):
        total = total + (value(code, grid) * float(op.n)).round().to(torch.int64)
    return half_even_quotient(total, 2)


def float_mean(op: ops.FloatMean, args: list[Tensor], _: Context) -> Tensor:
    """`FloatMean`."""
    x = value(args[0], op.grid)
    if not op.kernel:
        count = x.shape[2] * x.shape[3]
        total = positions_sum(count, x.flatten(2), lambda v, start, stop: v[:, :, start:stop], torch.add)
        total = total.unsqueeze(3) if op.keepdim else total.squeeze(2)
    else:
        count = op.kernel[0] * op.kernel[1]
        windows = x.unfold(2, op.kernel[0], op.stride[0]).unfold(3, op.kernel[1], op.stride[1])
        total = reduce(torch.add, windows.flatten(4).unbind(4))
    return total / torch.tensor(count, dtype=torch.float32)


def pixel_codes(op: ops.PixelCodes, args: list[Tensor], _: Context) -> Tensor:
    """`PixelCodes`."""
    scaled = args[0].to(torch.float32) * op.n
    codes = scaled.round()
    wrong = ~((scaled - codes).abs() <= _OFF_GRID) | (codes < op.lo) | (codes > op.hi)  # NaN is wrong too
    if bool(wrong.any()):
        raise InvalidValueError(
            "the input is not on the grid that the network gives it",
            given=float(args[0][wrong][0]),
            allowed=f"multiples of 1/{op.n:g} from {op.lo}/{op.n:g} to {op.hi}/{op.n:g}",
            where="program",
            hint="Feed (pixels - mean) / var with the mean and var that Preprocess names; without it, pixels / 255.",
        )
    return codes.to(torch.int64)


def enlarge(op: ops.Enlarge, args: list[Tensor], _: Context) -> Tensor:
    """`Enlarge`."""
    x, (down, across) = args[0], op.kernel
    if op.mode == "nearest":
        return x.repeat_interleave(down, 2).repeat_interleave(across, 3)
    patch = torch.full((*x.shape[:2], x.shape[2], down, x.shape[3], across), op.value, dtype=x.dtype)
    patch[:, :, :, 0, :, 0] = x
    return patch.reshape(*x.shape[:2], x.shape[2] * down, x.shape[3] * across)


def table_rows(op: ops.TableRows, args: list[Tensor], context: Context) -> Tensor:
    """`TableRows`."""
    table, index = context.tensors[op.table_tensor], args[0].trunc().to(torch.int64)
    if bool(((index < 0) | (index >= len(table))).any()):
        raise InvalidValueError("an index lies outside the table", allowed=f"0 to {len(table) - 1}", where="program")
    return table[index]

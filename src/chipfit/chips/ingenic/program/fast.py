"""The fast path of the operations that only Ingenic programs have, in float32 on codes held in float32.

A sum and what follows it are one step, in place and in pieces that stay in the cache; a max pooling behind it comes
before the rounding, which is monotone. What is not worth a form of its own goes through the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chipfit.chips.ingenic.program import ops
from chipfit.chips.ingenic.program.reference import BELOW, Tensors, activated, channels, rises
from chipfit.program.core.fast import dtype_of, float32_sums, max_pool
from chipfit.program.core.ops import Accumulate, MaxPool, Pad
from chipfit.program.dialect import Context, Step, following
from chipfit.program.grid import value
from chipfit.program.types import Node, Program

_CHUNK = 1 << 17
"""Numbers handled at a time: 512 KiB of float32 stay in the core's cache through all passes."""
_NARROW = 64
"""Positions a channel below which a number a channel is spread over them first: loops that short cost more."""


def tround_(v: Tensor) -> Tensor:
    """`reference.tround` of values that are not negative, as float32; may change its argument.

    In the band above a tie, where rounding may go up, half a code less is a tie again, which rounding gives to the even
    code.

    Example:
        >>> tround_(torch.tensor([2.5009, 0.5005, 1.4999, 2.502, 1.5]))
        tensor([2., 0., 1., 3., 2.])
    """
    code = v.round()
    return code.sub_(v.lt_(code + BELOW), alpha=0.5).round_()


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


def _spread(values: Tensor, v: Tensor, axis: int) -> Tensor:
    """Numbers a channel in a shape that broadcasts over `v`."""
    each = channels(values, v, axis)
    positions = v.shape[2:].numel()
    if each.dim() > 1 and positions < _NARROW:
        return each.expand(v.shape[1:]).contiguous()
    return each


def _finished_(v: Tensor, op: ops.Finish, tensors: Tensors) -> Tensor:
    """`Finish` without its grid, of float32 numbers that may be overwritten."""
    names = [op.affine.scale_tensor, op.affine.bias_tensor] if op.affine is not None else [None, None]
    names += [op.norm.mean_tensor, op.norm.gain_tensor, op.norm.shift_tensor] if op.norm is not None else [None] * 3
    scale, bias, mean, gain, shift = (None if name is None else _spread(tensors[name], v, op.axis) for name in names)
    done = []
    for part in torch.split(v, max(1, _CHUNK // max(v[:1].numel(), 1))):
        if scale is not None:
            part.mul_(scale)
        if bias is not None:
            part.add_(bias)
        if mean is not None and gain is not None and shift is not None:
            part.sub_(mean).mul_(gain).add_(shift)
        part = activated(part, op.activation, tensors, op.axis)
        done.append(part if op.requantise is None else _requantise_(part, op.requantise))
    return done[0] if len(done) == 1 else torch.cat(done)


def _made(context: Context) -> torch.dtype:
    return dtype_of(None if context.output is None else context.output.bits)


def finish(op: ops.Finish, context: Context) -> Step:
    """`Finish` by itself."""
    tensors, dtype = context.tensors, _made(context)

    def step(args: list[Tensor]) -> Tensor:
        v = value(args[0], op.grid)
        return _finished_(v.clone() if v is args[0] else v, op, tensors).to(dtype)

    return step


def fuse(node: Node, program: Program) -> tuple[Step, list[Node]] | None:
    """One step for a border of code 0, a sum, what turns it into codes, and a max pooling."""
    if not isinstance(node.op, (Pad, Accumulate)):
        return None
    nodes = following(node, program, Accumulate, ops.Finish, MaxPool)
    pad = nodes[0].op if isinstance(nodes[0].op, Pad) else None
    at = 0 if pad is None else 1
    if len(nodes) < at + 2:
        return None
    total, last, tensors = nodes[at].op, nodes[at + 1].op, program.tensors
    if not isinstance(total, Accumulate) or not isinstance(last, ops.Finish) or last.grid is not None:
        return None
    if total.bias_tensor is not None:
        return None
    border = (0,) * len(total.stride) if pad is None else _border(pad)
    if border is None or len(border) != len(total.stride):
        return None
    signed = program.type(nodes[at].inputs[0]).signed
    sums = float32_sums(total, tensors[total.weight_tensor], -total.largest if signed else 0, border)
    pool = nodes[at + 2].op if len(nodes) > at + 2 else None
    if isinstance(pool, MaxPool) and _rising(last, tensors):
        return lambda args: _finished_(max_pool(sums(args[0]), pool), last, tensors), nodes[: at + 3]
    return lambda args: _finished_(sums(args[0]), last, tensors), nodes[: at + 2]


def _border(pad: Pad) -> tuple[int, ...] | None:
    """The border of code 0 that a convolution can add by itself, first spatial axis first; None for any other."""
    before, after = pad.pads[0::2], pad.pads[1::2]
    return before[::-1] if pad.mode == "constant" and pad.value == 0 and before == after and min(before) >= 0 else None


def _rising(op: ops.Finish, tensors: Tensors) -> bool:
    """Whether a greater sum never leads to a lower code."""
    factors = [op.affine.scale_tensor] if op.affine is not None else []
    factors += [op.norm.gain_tensor] if op.norm is not None else []
    return rises(op.activation, tensors) and all(bool((tensors[name] >= 0).all()) for name in factors)


def combine(op: ops.Combine, context: Context) -> Step:
    """`Combine`."""
    tensors, dtype = context.tensors, _made(context)

    def step(args: list[Tensor]) -> Tensor:
        a, b = value(args[0], op.left), value(args[1], op.right)
        v = activated(a + b if op.kind == "add" else a * b, op.activation, tensors)
        return (v if op.requantise is None else _requantise_(v, op.requantise)).to(dtype)

    return step


def average(op: ops.AverageCodes, context: Context) -> Step:
    """`AverageCodes`."""
    dtype = _made(context)

    def step(args: list[Tensor]) -> Tensor:
        a, b = (
            value(code, grid).mul(float(op.n)).round_() for code, grid in zip(args, (op.left, op.right), strict=True)
        )
        return a.add_(b).mul_(0.5).round_().to(dtype)

    return step

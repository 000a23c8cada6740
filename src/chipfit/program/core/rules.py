"""The core dialect's table: one row an operation. What writes them as ONNX stands in `chipfit.export.onnx.core`."""

from __future__ import annotations

import torch

from chipfit.program.core import certificate, fast, ops, ranges, reference
from chipfit.program.dialect import Dialect, Meaning

CORE = Dialect(
    "core",
    (
        # numbers in and out
        Meaning(ops.Quantise, reference.quantise, fast.quantise, ranges.limits),
        Meaning(ops.Dequantise, reference.dequantise, fast.dequantise),
        # codes to codes
        Meaning(ops.Rescale, reference.rescale, fast.rescale, ranges.at_the_ends),
        Meaning(ops.Accumulate, reference.accumulate, fast.accumulate, ranges.accumulate, row=certificate.accumulate),
        Meaning(ops.Relu, lambda op, args, _: args[0].clamp(min=0), fast.relu, ranges.at_the_ends),
        Meaning(ops.Clamp, lambda op, args, _: args[0].clamp(op.lo, op.hi), fast.clamp, ranges.at_the_ends),
        Meaning(ops.LookUp, reference.look_up, ranges=ranges.look_up),
        Meaning(ops.Constant, reference.constant, ranges=ranges.of_tensor("codes_tensor")),
        Meaning(ops.Add, reference.closed(torch.add), ranges=ranges.at_the_ends),
        Meaning(ops.Mul, reference.closed(torch.mul), ranges=ranges.limits),
        Meaning(ops.MatMul, reference.closed(torch.matmul), ranges=ranges.limits),
        Meaning(ops.MultiplyAdd, reference.multiply_add, ranges=ranges.limits),
        Meaning(ops.Mean, reference.mean, ranges=ranges.mean),
        # moving and selecting
        Meaning(ops.MaxPool, reference.max_pool, fast.pooled),
        Meaning(ops.SumPool, reference.sum_pool, ranges=ranges.total),
        Meaning(ops.Sum, lambda op, args, _: args[0].sum(op.dims, keepdim=op.keepdim), ranges=ranges.total),
        Meaning(ops.Max, lambda op, args, _: args[0].amax(op.dims, op.keepdim), fast.moving),
        Meaning(ops.Pad, reference.pad, fast.moving, ranges.pad),
        Meaning(ops.Reshape, lambda op, args, _: args[0].reshape(op.shape), fast.moving),
        Meaning(ops.Permute, lambda op, args, _: args[0].permute(op.dims), fast.moving),
        Meaning(ops.Slice, reference.slice_, fast.moving),
        Meaning(ops.Select, lambda op, args, _: args[0].select(op.dim, op.index), fast.moving),
        Meaning(ops.Flip, lambda op, args, _: args[0].flip(op.dims), fast.moving),
        Meaning(ops.Cat, lambda op, args, _: torch.cat(args, op.dim), fast.moving),
    ),
)

"""The table of Witmem's dialect: one row an operation that only its programs have."""

from __future__ import annotations

from typing import Any

from chipfit.chips.witmem.program import c, certificate, fast, onnx, ops, ranges, reference
from chipfit.chips.witmem.program.sense import array_problems, gru_problems, scale_problems
from chipfit.program.core.ranges import limits
from chipfit.program.dialect import Dialect, Meaning


def _array_facts(op: ops.Array) -> dict[str, Any]:
    return {"g": op.g, "rounding": op.rounding}


def _gru_facts(op: ops.Gru) -> dict[str, Any]:
    return {"g_input": op.input.g, "g_hidden": op.hidden.g, "rounding": op.input.rounding}


DIALECT = Dialect(
    "witmem",
    (
        Meaning(
            ops.Array,
            lambda op, args, context: reference.array(args[0], op, context.tensors),
            fast.array,
            limits,
            onnx.array,
            c.ARRAY,
            row=certificate.of_array,
            facts=_array_facts,
            problems=array_problems,
        ),
        Meaning(
            ops.Gru,
            lambda op, args, context: reference.gru_states(op, args, context.tensors),
            fast.gru,
            ranges.states,
            onnx.gru,
            c.GRU,
            row=certificate.of_gru,
            facts=_gru_facts,
            problems=gru_problems,
        ),
        Meaning(ops.Divide, reference.divide, ranges=limits, onnx=onnx.divide, c=c.DIVIDE),
        Meaning(ops.Hypot, reference.hypot, ranges=limits, onnx=onnx.hypot, c=c.HYPOT),
        Meaning(ops.LayerNorm, reference.layer_norm, ranges=limits, onnx=onnx.layer_norm, c=c.LAYER_NORM),
    ),
    fuse=fast.fuse,
    columns=certificate.COLUMNS,
    problems=scale_problems,
)

"""The fast path of array operations: float32 where the signs of the codes bound the sums, float64 beyond."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chipfit.chips.witmem.program import fast, ops
from chipfit.chips.witmem.program.ranges import array_bounds
from chipfit.program import FastProgram, Input, Node, Program, ValueType, run
from chipfit.program.types import VERSION


def program(weight: Tensor, negative: ops.Negative, rounding: str) -> Program:
    signed = negative == "signed"
    lo, hi = (-128, 127) if signed else (0, 255)
    codes, real = ValueType((weight.shape[1],), 8, signed, 1.0), ValueType((weight.shape[1],), None)
    array = ops.Array(ops.Geometry("linear"), "w", None, "b", "e", negative, 0, 16, rounding, -128, 127, 1, 8)
    nodes = (
        Node("q", ops.Quantise(1.0, 0, lo, hi), ("x",), codes),
        Node("y", array, ("q",), ValueType((weight.shape[0],), 8)),
        Node("out", ops.Dequantise(), ("y",), ValueType((weight.shape[0],), None)),
    )
    tensors = {"w": weight, "b": torch.tensor([0, 128 * 99, -128 * 99]), "e": torch.zeros(3, dtype=torch.float64)}
    return Program(VERSION, "wtm2101", nodes, (Input("x", real),), ("out",), tensors)


@pytest.mark.parametrize("rounding", ["witin_nn", "wtm2101"])
@pytest.mark.parametrize(
    ("negative", "inputs", "mixed", "dtype"),
    [
        ("unsigned", 1020, True, torch.float32),
        ("unsigned", 1030, True, torch.float64),
        ("unsigned", 1020, False, torch.float64),
        ("signed", 1020, False, torch.float32),
        ("signed", 1100, True, torch.float64),
    ],
)
def test_the_signs_of_the_codes_bound_the_sums(
    negative: ops.Negative,
    inputs: int,
    mixed: bool,
    dtype: torch.dtype,
    rounding: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,020 products of 8 bits can pass 2^24, but not if half of them cannot be positive and half not negative."""
    weight = torch.full((3, inputs), 127)
    if mixed:
        weight[:, ::2] = -128
    given = program(weight, negative, rounding)
    array = given.node("y").op
    assert isinstance(array, ops.Array)
    assert array_bounds(array, given.tensors).exact_in_float32 == (negative == "signed" and inputs == 1020)
    used = []
    linear_map = fast.linear_map
    monkeypatch.setattr(fast, "linear_map", lambda x, *rest: used.append(x.dtype) or linear_map(x, *rest))
    x = torch.randint(
        -128 if negative == "signed" else 0, 256, (40, inputs), generator=torch.Generator().manual_seed(0)
    )
    x = x.float()
    x[0], x[1] = 255.0 * (weight[0] > 0), 255.0 * (weight[0] < 0)
    assert torch.equal(FastProgram(given)(x), run(given, x))
    assert used == [dtype]

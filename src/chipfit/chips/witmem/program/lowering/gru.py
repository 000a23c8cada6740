"""Lowering rules of the Witmem GRU layers: one `Gru` a layer and direction, and what moves codes between them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chipfit.chips.witmem.gru.layers import WitinGru, WitinGruCell
from chipfit.chips.witmem.program import ops
from chipfit.chips.witmem.program.lowering.array import array_op, on_input_grid
from chipfit.chips.witmem.program.lowering.codes import scales_of, with_scales
from chipfit.errors import UnsupportedError
from chipfit.program.lowering.builder import Builder, Call, Value, grid, log2_of
from chipfit.program.lowering.torch_moves import Zeros

if TYPE_CHECKING:
    from chipfit.chips.witmem.array.numbers import ArraySpec

STATE = grid(8, True, 128.0)
"""Type of the state: 8 bits, 128 codes per unit."""
GATE_INDEX, CANDIDATE_INDEX = 6, 7
"""log2 of the table indices per unit: the sigmoid's table covers ±8 at 64, the tanh's ±4 at 128."""


def gate_tables() -> tuple[Any, Any]:
    """Sigmoid and tanh at 128 codes per unit, limited to int8, for the indices -512 to 511.

    Example:
        >>> gate, candidate = gate_tables()
        >>> gate[[0, 512, 1023]], candidate[[0, 512, 1023]]
        (array([ 0, 64, 127]), array([-128,    0,  127]))
    """
    index = np.arange(-512, 512, dtype=np.float64)
    gate = 128.0 / (1.0 + np.exp(-index / 2.0**GATE_INDEX))
    candidate = 128.0 * np.tanh(index / 2.0**CANDIDATE_INDEX)
    first, second = (np.clip(np.rint(table), -128, 127).astype(np.int64) for table in (gate, candidate))
    return first, second


def _cell(
    b: Builder, call: Call, layer: Any, name: str, suffix: str, x: Value, h: Value | None, time_dim: int
) -> Value:
    """One cell over its sequence."""
    halves = _halves(layer, suffix)
    logs = [log2_of(part.scale_y, f"scale_y of the {which} operation") for which, part in halves]
    finest = max(logs)
    operations, exact = [], True
    for (which, spec), weight, bias in zip(halves, *_parameters(layer, suffix), strict=True):
        half, in_float32 = array_op(
            b, f"{name}.{which}", weight, bias, spec, ops.Geometry("linear"), call.options["rounding"]
        )
        operations.append(half)
        exact = exact and in_float32
    gate, candidate = gate_tables()
    op = ops.Gru(
        operations[0],
        operations[1],
        finest - logs[0],
        finest - logs[1],
        GATE_INDEX - finest,
        CANDIDATE_INDEX - finest,
        b.keep("gru.gate_table", gate),
        b.keep("gru.candidate_table", candidate),
        time_dim,
        suffix.endswith("_reverse"),
    )
    sequence = on_input_grid(b, f"{name}.x", x, halves[0][1])
    inputs = (sequence,) if h is None else (sequence, h)
    return b.add(name, op, inputs, STATE, exact_in_float32=exact)


def _halves(layer: Any, suffix: str) -> tuple[tuple[str, ArraySpec], tuple[str, ArraySpec]]:
    """The numbers of a cell's two array operations in force in evaluation."""
    numbers, scales = layer.numbers_in_force(suffix), scales_of(layer)
    of_input = (scales[f"{name}{suffix}"] for name in ("x", "weight", "y"))
    of_hidden = (scales[f"{name}_hidden{suffix}"] for name in ("weight", "y"))
    return (
        ("input", with_scales(numbers.input, *of_input)),
        ("hidden", with_scales(numbers.hidden, STATE.scale, *of_hidden)),
    )


def _parameters(layer: Any, suffix: str) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    w_ih, w_hh, b_ih, b_hh = layer.cell_parameters(suffix)
    none = torch.zeros(3 * layer.hidden_size)
    return (w_ih, w_hh), (none if b_ih is None else b_ih, none if b_hh is None else b_hh)


def _given(hx: Value | Zeros | None) -> Value | None:
    """The first state, None where it is zero."""
    return None if isinstance(hx, Zeros) else hx


def gru_cell(b: Builder, call: Call, layer: WitinGruCell, input: Value, hx: Value | Zeros | None = None) -> Value:
    """WitinGruCell: a sequence of one step."""
    state = _given(hx)
    if len(call.shapes[0]) != 2:
        raise UnsupportedError("an unbatched input", given=call.input_shapes[0][0], allowed="(batch, input_size)")
    x = b.add(f"{call.name}.step", ops.Reshape((-1, 1, layer.input_size)), (input,), input.type, input.lo, input.hi)
    h = None if state is None else b.on_grid(f"{call.name}.h", state, STATE)
    states = _cell(b, call, layer, f"{call.name}.cell", "", x, h, 1)
    return b.add(call.name, ops.Select(1, 0), (states,), STATE, layer=call.layer)


def gru(b: Builder, call: Call, layer: WitinGru, input: Value, hx: Value | Zeros | None = None) -> tuple[Value, Value]:
    """WitinGru: its cells in the order of `h_n`, and the outputs of both directions joined."""
    state = _given(hx)
    if len(call.input_shapes[0][0]) != 3:
        raise UnsupportedError("an unbatched input", given=call.input_shapes[0][0], allowed="three axes")
    time_dim = 1 if layer.batch_first else 0
    if call.input_shapes[0][0][time_dim] != call.input_shapes[0][1][time_dim]:
        raise UnsupportedError(
            "axis 0 is time, but the example's axis 0 must be the batch",
            hint="Build the layer with batch_first=True, or transpose its input and output in the network.",
        )
    x, last, index = input, [], 0
    for number in range(layer.num_layers):
        outputs: list[Value] = []
        cells = [suffix for suffix in layer.suffixes if suffix.removesuffix("_reverse") == f"_l{number}"]
        for suffix in cells:
            name = f"{call.name}.{suffix.lstrip('_')}"
            h = None
            if state is not None:
                first = b.add(f"{name}.h0", ops.Select(0, index), (state,), state.type, state.lo, state.hi)
                h = b.on_grid(f"{name}.h", first, STATE)
            states = _cell(b, call, layer, name, suffix, x, h, time_dim)
            if number + 1 == layer.num_layers:
                b.nodes[-1] = replace(b.nodes[-1], layer=call.layer, share=(len(outputs), len(cells)))
            outputs.append(states)
            at = 0 if suffix.endswith("_reverse") else -1
            last.append(b.add(f"{name}.last", ops.Select(time_dim, at), (outputs[-1],), STATE))
            index += 1
        x = outputs[0] if len(outputs) == 1 else b.add(f"{call.name}.l{number}", ops.Cat(2), tuple(outputs), STATE)
    stacked = [b.add(f"{part.name}.stacked", ops.Reshape((1, -1, layer.hidden_size)), (part,), STATE) for part in last]
    h_n = stacked[0] if len(stacked) == 1 else b.add(f"{call.name}.h_n", ops.Cat(0), tuple(stacked), STATE)
    return x, h_n


LAYERS: dict[type[Any], Any] = {WitinGruCell: gru_cell, WitinGru: gru}
"""Rules by class of layer."""

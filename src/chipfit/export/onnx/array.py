"""Array operations and GRU cells of an integer program in ONNX.

A sum that may pass 2^24 is computed in float64; a convolution, which onnxruntime has in float32 only, in slices of its
input's bits that each stay below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.export.onnx.arithmetic import (
    FLOAT32_LIMIT,
    Edge,
    added,
    clip,
    codes_constant,
    held,
    multiplied,
    needs_wide,
    requantise,
    scalar,
)
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program.ops import Array, Geometry, Gru

Tensors = Mapping[str, Tensor]


def emit_array(b: GraphBuilder, op: Array, x: Edge, tensors: Tensors) -> Edge:
    """Codes of an array operation's output.

    Args:
        b: The graph.
        op: The operation.
        x: Input codes, in the operation's range.
        tensors: The program's tensors.
    """
    x = Edge(x.name, min(x.largest, max(-op.x_range[0], op.x_range[1])), x.wide)
    passes = [(x, op.weight_tensor)]
    if op.negative_weight_tensor is not None:
        mirrored = b.add("Neg", x.name)
        passes = [
            (Edge(b.add("Relu", x.name), x.largest, x.wide), op.weight_tensor),
            (Edge(b.add("Relu", mirrored), x.largest, x.wide), op.negative_weight_tensor),
        ]
    if op.split is None:
        total = _accumulated(b, op.geometry, passes, tensors, op.bias_tensor)
        return requantise(b, total, op.log2_g, op.lo, op.hi, op.rounding)
    high_passes, low_passes = [], []
    for codes, weight in passes:
        high, low = _split_bits(b, codes, 8)
        high_passes.append((high, weight))
        low_passes.append((low, weight))
    analog = requantise(
        b,
        _accumulated(b, op.geometry, low_passes, tensors, op.bias_tensor),
        op.log2_g,
        op.split.analog_lo,
        op.split.analog_hi,
        op.rounding,
    )
    # The digital half's own range is open; what passes this bound saturates the sum anyway.
    bound = max(-op.lo, op.hi) + max(-op.split.analog_lo, op.split.analog_hi)
    high_sum = _accumulated(b, op.geometry, high_passes, tensors, "")
    digital_sum = multiplied(b, high_sum, Edge(scalar(b, 256), 256))
    digital_bias = _shaped_bias(b, op.geometry, tensors[op.split.digital_bias_tensor])
    digital = requantise(b, added(b, digital_sum, digital_bias), op.log2_g, -bound, bound)
    both = added(b, analog, digital)
    return Edge(clip(b, both.name, op.lo, op.hi, both.wide), max(abs(op.lo), abs(op.hi)), both.wide)


def _split_bits(b: GraphBuilder, x: Edge, bits: int) -> tuple[Edge, Edge]:
    """`floor(x / 2^bits)` and the rest, which lies in `[0, 2^bits)`."""
    scaled = b.add("Mul", x.name, scalar(b, 2.0**-bits, x.wide))
    high = Edge(b.add("Floor", scaled), (x.largest >> bits) + 1, x.wide)
    back = b.add("Mul", high.name, scalar(b, 2.0**bits, x.wide))
    return high, Edge(b.add("Sub", x.name, back), (1 << bits) - 1, x.wide)


def _accumulated(
    b: GraphBuilder, geometry: Geometry, passes: list[tuple[Edge, str]], tensors: Tensors, bias_tensor: str
) -> Edge:
    """Sum of the passes' linear maps and the bias ('' has none)."""
    total: Edge | None = None
    for x, weight_tensor in passes:
        part = linear_map(b, geometry, x, tensors[weight_tensor], weight_tensor)
        total = part if total is None else added(b, total, part)
    if total is None:
        raise UnsupportedError("an array operation without a pass", where=b.scope)
    return added(b, total, _shaped_bias(b, geometry, tensors[bias_tensor])) if bias_tensor else total


def _shaped_bias(b: GraphBuilder, geometry: Geometry, bias: Tensor) -> Edge:
    """Bias codes that broadcast over the operation's output."""
    values = bias.numpy()
    shaped = values if geometry.kind == "linear" else values.reshape(-1, *[1] * len(geometry.stride))
    largest = int(np.abs(values).max()) if values.size else 0
    wide = needs_wide(largest)
    return Edge(b.constant(shaped.astype(np.float64 if wide else np.float32)), largest, wide)


def linear_map(b: GraphBuilder, geometry: Geometry, x: Edge, weight: Tensor, name: str) -> Edge:
    """The bias-free linear map of integer codes, exact.

    Args:
        b: The graph.
        geometry: The map.
        x: Input codes.
        weight: Weight codes, torch's layout.
        name: What the weight's initializer is called.
    """
    codes = weight.numpy()
    reach = _largest_sum(geometry, codes)
    largest = reach * x.largest
    if geometry.kind == "linear":
        wide = needs_wide(largest, x.largest)
        matrix = codes_constant(b, np.ascontiguousarray(codes.T), _once(b, name))
        return Edge(b.add("MatMul", held(b, x, wide), held(b, matrix, wide)), largest, wide)
    stored = codes_constant(b, codes, _once(b, name))
    if not needs_wide(largest, x.largest):
        return Edge(_convolution(b, geometry, x.name, stored.name, codes), largest)
    bits = (FLOAT32_LIMIT // max(reach, 1)).bit_length() - 1
    if bits < 1:
        raise UnsupportedError(
            "the weights of one output alone pass 2^24, and onnxruntime convolves in float32",
            given=reach,
            where=b.scope,
        )
    high, low = _split_bits(b, x, bits)
    upper = linear_map(b, geometry, Edge(held(b, high, needs_wide(high.largest)), high.largest), weight, name)
    lower = _convolution(b, geometry, held(b, low, False), stored.name, codes)
    shifted = multiplied(b, upper, Edge(scalar(b, 2.0**bits), 1 << bits))
    total = added(b, shifted, Edge(lower, reach * low.largest))
    return Edge(total.name, largest, total.wide)


def _once(b: GraphBuilder, name: str) -> str:
    """The tensor's name for its first initializer; later ones are shared by their content."""
    return "" if f"codes/{name}" in b.constants else f"codes/{name}"


def _largest_sum(geometry: Geometry, codes: Any) -> int:
    """Largest `sum |w|` over the inputs of one output."""
    if not codes.size:
        return 0
    if geometry.kind == "conv_transpose":
        return int(np.abs(codes).sum(axis=(0, *range(2, codes.ndim))).max())
    return int(np.abs(codes).reshape(len(codes), -1).sum(axis=1).max())


def _convolution(b: GraphBuilder, geometry: Geometry, x: str, weight: str, codes: Any) -> str:
    attributes: dict[str, Any] = {
        "kernel_shape": list(codes.shape[2:]),
        "strides": list(geometry.stride),
        "pads": [*geometry.padding, *geometry.padding],
        "dilations": list(geometry.dilation),
        "group": geometry.groups,
    }
    if geometry.kind == "conv_transpose":
        output_padding = geometry.output_padding or (0,) * len(geometry.stride)
        return b.add("ConvTranspose", x, weight, output_padding=list(output_padding), **attributes)
    return b.add("Conv", x, weight, **attributes)


def emit_gru(b: GraphBuilder, op: Gru, inputs: list[Edge], tensors: Tensors) -> Edge:
    """States of a GRU cell over a sequence, as a Scan over time."""
    from onnx import TensorProto, helper

    x = inputs[0]
    size = tensors[op.hidden.weight_tensor].shape[1]
    steps = emit_array(b, op.input, x, tensors)
    steps = Edge(held(b, steps, False), steps.largest)
    if len(inputs) == 2:
        first = held(b, inputs[1], False)
    else:
        batch = b.add("Shape", steps.name, start=1 - op.time_dim, end=2 - op.time_dim)
        shape = b.add("Concat", batch, b.constant(np.array([size], dtype=np.int64)), axis=0)
        first = b.add("ConstantOfShape", shape, value=helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]))
    body = b.body()
    state, step = body.fresh("state"), body.fresh("step")
    h = _gru_step(body, op, Edge(step, steps.largest), Edge(state, 128), tensors, size)
    kept, shown = body.add("Identity", h), body.add("Identity", h)
    carried = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (state, step)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (kept, shown)]
    graph = helper.make_graph(body.nodes, f"{b.scope} step", carried, made)
    outputs = (b.fresh("last"), b.fresh("states"))
    b.add_many(
        "Scan",
        first,
        steps.name,
        outputs=outputs,
        body=graph,
        num_scan_inputs=1,
        scan_input_axes=[op.time_dim],
        scan_output_axes=[op.time_dim],
        scan_input_directions=[int(op.reverse)],
        scan_output_directions=[int(op.reverse)],
    )
    return Edge(outputs[1], 128)


def _gru_step(b: GraphBuilder, op: Gru, a: Edge, h: Edge, tensors: Tensors, size: int) -> str:
    """One step; the formulas are those of `Gru` in `chipfit.program.ops`."""
    hidden = emit_array(b, op.hidden, h, tensors)

    def part(edge: Edge, start: int, stop: int) -> Edge:
        bounds = [b.constant(np.array([v], dtype=np.int64)) for v in (start * size, stop * size, -1)]
        return Edge(b.add("Slice", edge.name, *bounds), edge.largest, edge.wide)

    def looked_up(mine: Edge, other: Edge, shift: int, table_tensor: str) -> Edge:
        total = added(b, _lifted(b, mine, op.input_shift), _lifted(b, other, op.hidden_shift))
        index = requantise(b, total, -shift, -512, 511)
        return gathered(b, index, tensors[table_tensor].numpy(), -512)

    r = looked_up(part(a, 0, 1), part(hidden, 0, 1), op.gate_shift, op.gate_table_tensor)
    z = looked_up(part(a, 1, 2), part(hidden, 1, 2), op.gate_shift, op.gate_table_tensor)
    product = multiplied(b, r, part(hidden, 2, 3))
    reset = requantise(b, product, 7, -product.largest, product.largest)
    n = looked_up(part(a, 2, 3), reset, op.candidate_shift, op.candidate_table_tensor)
    rest = added(b, Edge(scalar(b, 128), 128), z, "Sub")
    state = requantise(b, added(b, multiplied(b, rest, n), multiplied(b, z, h)), 7, -128, 127)
    return state.name


def _lifted(b: GraphBuilder, edge: Edge, shift: int) -> Edge:
    return edge if not shift else multiplied(b, edge, Edge(scalar(b, 2.0**shift), 1 << shift))


def gathered(b: GraphBuilder, codes: Edge, table: Any, first: int) -> Edge:
    """`table[code - first]` for a table of one row."""
    from onnx import TensorProto

    index = b.add("Sub", codes.name, scalar(b, first, codes.wide))
    positions = b.add("Cast", index, to=TensorProto.INT64)
    entries = table.reshape(-1)
    largest = int(np.abs(entries).max())
    wide = needs_wide(largest)
    stored = b.constant(entries.astype(np.float64 if wide else np.float32))
    return Edge(b.add("Gather", stored, positions, axis=0), largest, wide)

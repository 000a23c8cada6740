"""The operations of the Witmem array and digital unit in ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from chipfit.chips.witmem.program import ops
from chipfit.errors import UnsupportedError
from chipfit.export.onnx.arithmetic import Edge, added, clip, gathered, held, multiplied, requantise, scalar
from chipfit.export.onnx.core import mean_code, quotient, root
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.export.onnx.linear import linear_map, shaped_bias, split_bits
from chipfit.program.dialect import Context

Tensors = Mapping[str, Tensor]


def array(b: GraphBuilder, op: ops.Array, args: list[Edge], context: Context) -> Edge:
    """`Array`."""
    return array_codes(b, op, args[0], context.tensors)


def array_codes(b: GraphBuilder, op: ops.Array, x: Edge, tensors: Tensors) -> Edge:
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
        return requantise(b, total, op.log2_g, op.lo, op.hi, _rule(op))
    high_passes, low_passes = [], []
    for codes, weight in passes:
        high, low = split_bits(b, codes, 8)
        high_passes.append((high, weight))
        low_passes.append((low, weight))
    analog = requantise(
        b,
        _accumulated(b, op.geometry, low_passes, tensors, op.bias_tensor),
        op.log2_g,
        op.split.analog_lo,
        op.split.analog_hi,
        _rule(op),
    )
    # The digital half's own range is open; what passes this bound saturates the sum anyway.
    bound = max(-op.lo, op.hi) + max(-op.split.analog_lo, op.split.analog_hi)
    high_sum = _accumulated(b, op.geometry, high_passes, tensors, "")
    digital_sum = multiplied(b, high_sum, Edge(scalar(b, 256), 256))
    digital_bias = shaped_bias(b, op.geometry, tensors[op.split.digital_bias_tensor])
    digital = requantise(b, added(b, digital_sum, digital_bias), op.log2_g, -bound, bound)
    both = added(b, analog, digital)
    return Edge(clip(b, both.name, op.lo, op.hi, both.wide), max(abs(op.lo), abs(op.hi)), both.wide)


def _accumulated(
    b: GraphBuilder, geometry: ops.Geometry, passes: list[tuple[Edge, str]], tensors: Tensors, bias_tensor: str
) -> Edge:
    """Sum of the passes' linear maps and the bias ('' has none)."""
    total: Edge | None = None
    for x, weight_tensor in passes:
        part = linear_map(b, geometry, x, tensors[weight_tensor], weight_tensor)
        total = part if total is None else added(b, total, part)
    if total is None:
        raise UnsupportedError("an array operation without a pass", where=b.scope)
    return added(b, total, shaped_bias(b, geometry, tensors[bias_tensor])) if bias_tensor else total


def _half_up_from_three_quarters(b: GraphBuilder, v: str, wide: bool) -> str:
    """The silicon's rounding: half up above zero, below zero outward from a fraction of 0.75."""
    above = b.add("Floor", b.add("Add", v, scalar(b, 0.5, wide)))
    below = b.add("Ceil", b.add("Sub", v, scalar(b, 0.25, wide)))
    return b.add("Where", b.add("GreaterOrEqual", v, scalar(b, 0.0, wide)), above, below)


_ROUNDED: dict[str, Callable[[GraphBuilder, str, bool], str] | None] = {
    "witin_nn": None,
    "wtm2101": _half_up_from_three_quarters,
}
"""What rounds an array's quotient, by its rule; None is half to even."""


def _rule(op: ops.Array) -> Callable[[GraphBuilder, str, bool], str] | None:
    if op.rounding not in _ROUNDED:
        raise UnsupportedError("unknown rounding rule", given=op.rounding, allowed=", ".join(_ROUNDED))
    return _ROUNDED[op.rounding]


def gru(b: GraphBuilder, op: ops.Gru, inputs: list[Edge], context: Context) -> Edge:
    """`Gru`: states of a GRU cell over a sequence, as a Scan over time."""
    from onnx import TensorProto, helper

    x, tensors = inputs[0], context.tensors
    size = tensors[op.hidden.weight_tensor].shape[1]
    steps = array_codes(b, op.input, x, tensors)
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
    # onnxruntime up to 1.23 wants a rank here, and takes any for a size that has no name
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name in (kept, shown)]
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


def _gru_step(b: GraphBuilder, op: ops.Gru, a: Edge, h: Edge, tensors: Tensors, size: int) -> str:
    """One step; the formulas are those of `Gru`."""
    hidden = array_codes(b, op.hidden, h, tensors)

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


def hypot(b: GraphBuilder, op: ops.Hypot, args: list[Edge], context: Context) -> Edge:
    """`Hypot`."""
    total = added(b, multiplied(b, args[0], args[0]), multiplied(b, args[1], args[1]))
    return requantise(b, root(b, total, op.root_shift), -op.shift, op.lo, op.hi)


def divide(b: GraphBuilder, op: ops.Divide, args: list[Edge], context: Context) -> Edge:
    """`Divide`."""
    first, second = args
    zero, one = scalar(b, 0.0, True), scalar(b, 1.0, True)
    a, d = held(b, first, True), held(b, second, True)
    by_zero = b.add("Equal", d, zero)
    # The quotient of magnitudes and signs: the tie goes to the even neighbour either way.
    safe = b.add("Where", by_zero, one, b.add("Abs", d))
    signed = Edge(b.add("Mul", a, b.add("Sign", d)), first.largest, True)
    result = requantise(b, quotient(b, signed, safe), -op.shift, op.lo, op.hi)
    highest, lowest = scalar(b, op.hi, result.wide), scalar(b, op.lo, result.wide)
    below = b.add("Where", b.add("Less", a, zero), lowest, scalar(b, 0.0, result.wide))
    limit = b.add("Where", b.add("Greater", a, zero), highest, below)
    return Edge(b.add("Where", by_zero, limit, result.name), result.largest, result.wide)


def layer_norm(b: GraphBuilder, op: ops.LayerNorm, args: list[Edge], context: Context) -> Edge:
    """`LayerNorm`."""
    x = deviation = args[0]
    if not op.simple:
        mean = mean_code(b, x, (1, 3), True, op.sum_lo, op.sum_hi)
        deviation = added(b, Edge(held(b, x, True), x.largest, True), mean, "Sub")
    wide = Edge(held(b, deviation, True), deviation.largest, True)
    square = Edge(b.add("Mul", wide.name, wide.name), deviation.largest**2, True)
    variance = mean_code(b, square, (1, 3), True, op.sum_lo, op.sum_hi)
    deviation_root = root(b, variance, op.root_shift)
    power = op.root_shift // 2 + op.log2_scale
    left, right = max(power, 0), max(-power, 0)
    dividend = Edge(b.add("Mul", wide.name, scalar(b, 2.0**left, True)), wide.largest << left, True)
    is_zero = b.add("Equal", deviation_root.name, scalar(b, 0.0, True))
    safe = b.add("Where", is_zero, scalar(b, 1.0, True), deviation_root.name)
    divisor = b.add("Mul", safe, scalar(b, 2.0**right, True))
    clipped = clip(b, quotient(b, dividend, divisor).name, op.lo, op.hi, wide=True)
    result = Edge(b.add("Where", is_zero, scalar(b, 0.0, True), clipped), max(abs(op.lo), abs(op.hi)), True)
    return Edge(held(b, result, False), result.largest, False)

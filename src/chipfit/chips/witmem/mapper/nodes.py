"""From the nodes of an integer program to those of the WTM2101's compiler, each equal in codes or refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from chipfit.chips.witmem.mapper.array import attribute_tensor, emit_array, emit_gru
from chipfit.chips.witmem.mapper.layout import Layout
from chipfit.chips.witmem.mapper.rules import OUTPUT_RANGE
from chipfit.chips.witmem.program import ops
from chipfit.errors import UnsupportedError
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program.types import Node


def emit_node(m: Layout, node: Node) -> None:
    """Add one node of the program, or note why it cannot be."""
    op = node.op
    inputs = [m.edges.get(name, "input") for name in node.inputs]
    ranges = [m.ranges.get(name, OUTPUT_RANGE) for name in node.inputs]
    m.b.scope = node.name
    try:
        if isinstance(op, ops.Array):
            name, codes = emit_array(m, node, op, inputs[0], ranges[0])
        elif isinstance(op, ops.Gru):
            name, codes = emit_gru(m, node, op, inputs, ranges[0])
        elif isinstance(op, ops.Rescale):
            name, codes = _rescale(m, node, op, inputs[0], ranges[0])
        elif isinstance(op, ops.LookUp):
            name, codes = _act_lut(m, node, op, inputs[0], ranges[0])
        elif isinstance(op, (ops.Add, ops.Mul)):
            name, codes = _elementwise(m, node, op, inputs)
        else:
            name, codes = _move(m, node, inputs, ranges)
    except UnsupportedError as error:
        m.problem(node.name, error.problem + (f". {error.hint}" if error.hint else ""))
        name, codes = node.name, (node.output.lo, node.output.hi)
    if node.output.shape is not None:
        m.made(node, name, codes)
    else:
        m.problem(node.name, "the batch is not the first axis here")
        m.edges[node.name], m.ranges[node.name] = name, codes


def _rescale(m: Layout, node: Node, op: ops.Rescale, x: str, codes: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Nothing, or a Relu; a change of scale is refused with the scale that chains."""
    if op.zero:
        raise UnsupportedError("handle_neg_in=Shift: how the compiler wants it is not published", hint="Use PN.")
    if op.shift:
        made, wanted = m.program.type(node.inputs[0]).scale, node.output.scale
        readers = m.program.readers(node.name)
        names = ", ".join(reader.name for reader in readers)
        divisors = [2.0 ** (r.op.log2_g - op.shift) for r in readers if isinstance(r.op, ops.Array)]
        becomes = f" (G becomes {', '.join(f'{g:g}' for g in divisors)}; allowed: 256 to 8192)" if divisors else ""
        raise UnsupportedError(
            f"{names} takes {wanted:g} codes a unit, but {node.inputs[0]} gives {made:g}: the scales do not chain, "
            "and the layout has none",
            hint=f"Set scale_x={made:g} of {names}{becomes}, or scale_y={wanted:g} of the layer before, and train so; "
            "chipfit.chain_scales(model, example) sets all of them.",
        )
    if op.lo <= codes[0] and codes[1] <= op.hi:
        return x, codes
    if op.lo == 0 and codes[1] <= op.hi:
        return m.b.add("Relu", x, output=node.name), (0, max(codes[1], 0))
    raise UnsupportedError(
        f"codes from {codes[0]} to {codes[1]} are clipped to {op.lo} to {op.hi}, which no node does",
        hint="Lower scale_y of the layer before.",
    )


def _act_lut(m: Layout, node: Node, op: ops.LookUp, x: str, codes: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    if op.function not in ("sigmoid", "tanh"):
        raise UnsupportedError(f"ActLut knows sigmoid and tanh, not {op.function}")
    table = m.program.tensors[op.table_tensor].numpy().reshape(-1)
    if codes[0] < -128 or codes[1] > 127 or op.first > -128 or op.first + table.size < 128:
        raise UnsupportedError(f"codes from {codes[0]} to {codes[1]}; ActLut takes int8", hint="Set x_quant_bits=8.")
    entries = table[-128 - op.first : 128 - op.first]
    in_order = np.roll(entries, -128)[None]  # index 0 to 127, then -128 to -1
    params = attribute_tensor(in_order, "table_params")
    name = m.b.add("ActLut", x, output=node.name, name=node.name, act_type=op.function, table_params=params)
    return name, (int(entries.min()), int(entries.max()))


def _elementwise(m: Layout, node: Node, op: ops.Add | ops.Mul, inputs: list[str]) -> tuple[str, tuple[int, int]]:
    kind = type(op).__name__
    if any(isinstance(m.program.node(name).op, ops.Constant) for name in node.inputs):
        raise UnsupportedError(f"{kind} with a constant operand")
    if (op.lo, op.hi) != OUTPUT_RANGE:
        raise UnsupportedError(
            f"{kind} saturates at {op.lo} and {op.hi}; the chip at -128 and 127", hint="Set y_quant_bits=8."
        )
    if len({m.shapes[name] for name in inputs}) > 1:
        raise UnsupportedError(f"{kind} of different shapes")
    return m.b.add(kind, *inputs, output=node.name, name=node.name, shift_bit=op.shift), OUTPUT_RANGE


def _move(m: Layout, node: Node, inputs: list[str], ranges: list[tuple[int, int]]) -> tuple[str, tuple[int, int]]:
    op, b = node.op, m.b
    codes = (min(lo for lo, _ in ranges), max(hi for _, hi in ranges)) if ranges else OUTPUT_RANGE
    if isinstance(op, ops.Relu):
        return b.add("Relu", inputs[0], output=node.name), (max(codes[0], 0), max(codes[1], 0))
    if isinstance(op, ops.MaxPool) and len(op.kernel) == 2:
        if op.ceil_mode or any(step != 1 for step in op.dilation):
            raise UnsupportedError("max pooling with ceil_mode or dilation")
        windows: dict[str, Any] = {
            "kernel_shape": list(op.kernel),
            "strides": list(op.stride),
            "pads": [*op.padding, *op.padding],
        }
        return b.add("MaxPool", inputs[0], output=node.name, **windows), codes
    if isinstance(op, ops.Reshape):
        shape = m.shape(node)
        if len(shape) == 1:
            return b.add("Flatten", inputs[0], output=node.name, axis=1), codes
        sizes = b.constant(np.array([1, *shape], dtype=np.int64))
        return b.add("Reshape", inputs[0], sizes, output=node.name), codes
    if isinstance(op, ops.Permute) and op.dims[0] == 0:
        return b.add("Permute", inputs[0], output=node.name, dims=list(op.dims)), codes
    if isinstance(op, ops.Slice):
        if (op.start, op.stop, op.step) == (0, None, 1):
            return inputs[0], codes
        stop = np.iinfo(np.int64).max if op.stop is None else op.stop
        return _sliced(b, inputs[0], (op.start, stop, op.dim, op.step), node.name), codes
    if isinstance(op, ops.Select):
        stop = np.iinfo(np.int64).max if op.index == -1 else op.index + 1
        one = _sliced(b, inputs[0], (op.index, stop, op.dim, 1), f"{node.name}.slice")
        sizes = b.constant(np.array([1, *m.shape(node)], dtype=np.int64))
        return b.add("Reshape", one, sizes, output=node.name), codes
    if isinstance(op, ops.Cat) and op.dim == 1:
        return b.add("Concat", *inputs, output=node.name, axis=1), codes
    if isinstance(op, ops.Pad):
        m.pads[node.name] = _pads(m, node, op)
        return inputs[0], (min(codes[0], 0), max(codes[1], 0))
    if isinstance(op, (ops.SumPool, ops.Sum)):
        raise UnsupportedError(
            "an average: how the chip rounds it is not published",
            hint="Use max pooling or a convolution with a stride.",
        )
    raise UnsupportedError(f"{type(op).__name__} as it stands here has no node in the compiler's layout")


def _sliced(b: GraphBuilder, x: str, bounds: tuple[int, ...], output: str) -> str:
    return b.add("Slice", x, *(b.constant(np.array([v], dtype=np.int64)) for v in bounds), output=output)


def _pads(m: Layout, node: Node, op: ops.Pad) -> tuple[int, int, int, int]:
    """Zeros around an edge as the convolutions that read it can add them.

    Raises:
        UnsupportedError: they cannot, or something else reads it.
    """
    readers = [reader.op for reader in m.program.readers(node.name)]
    if not all(isinstance(reader, ops.Array) and reader.geometry.kind == "conv" for reader in readers):
        raise UnsupportedError("padding that is not a convolution's own")
    if op.mode != "constant" or op.value or len(op.pads) > 4 or min(op.pads) < 0:
        raise UnsupportedError(f"padding of mode {op.mode} with {op.value}; Conv pads with zeros")
    left, right, top, bottom = (*op.pads, 0, 0)[:4]
    return top, left, bottom, right

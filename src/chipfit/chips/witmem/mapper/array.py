"""Array operations and GRU cells of an integer program in the WTM2101's compiler's layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from chipfit.chips.witmem.mapper.layout import Layout
from chipfit.chips.witmem.mapper.rules import GATES, INPUT_RANGE, OUTPUT_RANGE, SIGNED_INPUT_RANGE
from chipfit.chips.witmem.mapper.side import SideEntry
from chipfit.chips.witmem.program import ops
from chipfit.errors import UnsupportedError
from chipfit.program.types import Node


def _signed_input(op: ops.Array, codes: tuple[int, int]) -> int:
    """The side file's `signed_input`; refuses input codes that the array cannot take.

    Raises:
        UnsupportedError: it cannot take them.
    """
    given = f"its input has codes from {codes[0]} to {codes[1]}"
    if op.split is not None:
        raise UnsupportedError(f"{op.x_bits}-bit input; the compiler reads 8 bits", hint="Set x_quant_bits=8.")
    if op.negative == "shift":
        raise UnsupportedError(
            "handle_neg_in=Shift: how the compiler wants it in the side file is not published", hint="Use PN."
        )
    if op.negative == "pn" and codes[0] >= 0 and SIGNED_INPUT_RANGE[1] < codes[1] <= INPUT_RANGE[1]:
        return 0  # no code is negative, so that the pass on the positive parts is all
    if op.negative == "pn":
        if codes[0] < SIGNED_INPUT_RANGE[0] or codes[1] > SIGNED_INPUT_RANGE[1]:
            raise UnsupportedError(
                f"{given}; a signed input is int8, -128 to 127",
                hint="Halve scale_x, as chipfit.chain_scales(model, example) does, or clip the data.",
            )
        return 1
    if codes[0] < INPUT_RANGE[0]:
        raise UnsupportedError(
            f"{given}; without PN the array takes 0 to 255", hint="Set handle_neg_in=PN, or put a ReLU before it."
        )
    if codes[1] > INPUT_RANGE[1]:
        raise UnsupportedError(f"{given}; the array takes 0 to 255", hint="Lower scale_x.")
    return 0


def _check_output(op: ops.Array) -> None:
    if (op.lo, op.hi) != OUTPUT_RANGE:
        raise UnsupportedError(
            f"its output saturates at {op.lo} and {op.hi}; the array's at -128 and 127",
            hint="Set y_quant_bits=8, and no output_fp_clip inside that range.",
        )


def emit_array(m: Layout, node: Node, op: ops.Array, x: str, codes: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Gemm, Conv or ConvTranspose, then Scale.

    Args:
        m: The layout so far.
        node: The program's node.
        op: Its operation.
        x: Edge of the input codes.
        codes: Lowest and highest of them.

    Returns:
        Edge of the output codes, lowest and highest of them.

    Raises:
        UnsupportedError: the chip or its compiler cannot do it.
    """
    signed = _signed_input(op, codes)
    _check_output(op)
    weight = m.program.tensors[op.weight_tensor].numpy()
    if op.negative_weight_tensor is not None:
        mirrored = m.program.tensors[op.negative_weight_tensor].numpy()
        if not np.array_equal(mirrored, -weight):
            raise UnsupportedError(
                "the second pass has 127 where the first has -128; the chip stores W and -W",
                hint="Set w_clip so that no weight reaches -128 codes.",
            )
    shape = m.shape(node)
    flat = op.geometry.kind == "conv" and weight.ndim == 3  # one spatial axis: an image of height 1
    kind = "Gemm"
    attributes: dict[str, Any] = {}
    if op.geometry.kind == "linear":
        if len(shape) != 1:
            raise UnsupportedError(
                "a linear layer over more than one axis; Gemm takes one row", hint="Flatten its input."
            )
        weight = weight.T
    else:
        kind, attributes = _convolution(op.geometry, weight, m.pads.get(node.inputs[0], (0, 0, 0, 0)), flat)
    if flat:
        weight, shape = weight[:, :, None], (shape[0], 1, shape[1])
        x = _reshaped(m, x, (m.shapes[x][0], 1, m.shapes[x][1]), f"{node.name}.image")
    m.side[node.name] = SideEntry(signed_input=signed)
    constants = [
        m.b.constant(weight.astype(np.float32), f"{node.name}.weight"),
        m.b.constant(m.program.tensors[op.bias_tensor].numpy().astype(np.float32), f"{node.name}.bias"),
    ]
    total = m.b.add(kind, x, *constants, output=f"{node.name}.sum", name=node.name, **attributes)
    scaled = f"{node.name}.scaled" if flat else node.name
    m.b.add("Scale", total, output=scaled, name=f"{node.name}.scale", scale=math.ldexp(1.0, -op.log2_g))
    m.shapes[total] = m.shapes[scaled] = shape
    return (_reshaped(m, scaled, m.shape(node), node.name) if flat else scaled), OUTPUT_RANGE


def _convolution(
    geometry: ops.Geometry, weight: Any, pads: tuple[int, int, int, int], flat: bool
) -> tuple[str, dict[str, Any]]:
    """Kind and attributes of a convolution's node; those of one spatial axis get a second one of size 1."""
    one: tuple[int, ...] = (1,) if flat else ()
    padding = (0,) * len(one) + geometry.padding
    attributes: dict[str, Any] = {
        "kernel_shape": [*one, *weight.shape[2:]],
        "strides": [*one, *geometry.stride],
        "pads": [own + given for own, given in zip((*padding, *padding), pads, strict=True)],
    }
    dilated = any(step != 1 for step in geometry.dilation)
    if geometry.kind == "conv":
        attributes |= {"dilations": [*one, *geometry.dilation]} if dilated else {}
        return "Conv", attributes | ({"group": geometry.groups} if geometry.groups != 1 else {})
    if dilated or geometry.groups != 1:
        raise UnsupportedError("a transposed convolution with dilation or groups")
    return "ConvTranspose", attributes | {"output_padding": list(geometry.output_padding or (0, 0))}


def _reshaped(m: Layout, x: str, shape: tuple[int, ...], output: str) -> str:
    m.shapes[output] = shape
    sizes = m.b.constant(np.array([1, *shape], dtype=np.int64))
    return m.b.add("Reshape", x, sizes, output=output, name=f"{output}.reshape")


def emit_gru(
    m: Layout, node: Node, op: ops.Gru, inputs: list[str], codes: tuple[int, int]
) -> tuple[str, tuple[int, int]]:
    """Gru2Array; arguments, results and errors as of `emit_array`."""
    signed = _signed_input(op.input, codes)
    for part in (op.input, op.hidden):
        _check_output(part)
    _check_gru(op, len(inputs) > 1)
    tensors = m.program.tensors
    m.side[node.name] = SideEntry(signed_input=signed)
    operands = []
    for name, part in (("ih", op.input), ("hh", op.hidden)):
        weight = tensors[part.weight_tensor].numpy().T.astype(np.float32)
        operands.append(m.b.constant(weight, f"{node.name}.W_{name}"))
    for name, part in (("ih", op.input), ("hh", op.hidden)):
        operands.append(m.b.constant(tensors[part.bias_tensor].numpy().astype(np.float32), f"{node.name}.b_{name}"))
    tables = [tensors[name].numpy() for name in (op.gate_table_tensor, op.candidate_table_tensor)]
    ordered = np.stack([np.roll(table, -512) for table in tables])  # 0 to 511, then -512 to -1
    name = m.b.add(
        "Gru2Array",
        inputs[0],
        *operands,
        output=node.name,
        name=node.name,
        input_offset=0,
        hidden_shift_bit=op.hidden_shift,
        scale_input=int(op.input.g),
        scale_hidden=int(op.hidden.g),
        scale_ones=128,
        activate_type=list(GATES),
        activate_table=attribute_tensor(ordered, "activate_table"),
        shift_bits=[op.gate_shift, -7, op.candidate_shift, -7],
        clean_ht=0,
    )
    return name, OUTPUT_RANGE


def _check_gru(op: ops.Gru, has_state: bool) -> None:
    """Refuse what Gru2Array has no input or attribute for."""
    if has_state:
        raise UnsupportedError(
            "it starts from a state that is given, and Gru2Array has no input for one",
            hint="Leave hx out: it starts at zero.",
        )
    if op.reverse:
        raise UnsupportedError(
            "it reads the sequence from its end, and Gru2Array from its beginning", hint="Use bidirectional=False."
        )
    if op.time_dim != 1:
        raise UnsupportedError(
            "it takes time first, and Gru2Array the batch", hint="Build the layer with batch_first=True."
        )
    if op.input_shift:
        raise UnsupportedError(
            "the input's half has a coarser scale than the hidden one, and Gru2Array shifts only the hidden one",
            hint=f"Lower scale_y of the hidden operation by {1 << op.input_shift}, as "
            "chipfit.chain_scales(model, example) does, or raise the input's.",
        )


def attribute_tensor(values: Any, name: str) -> Any:
    """A float32 tensor as the value of an attribute."""
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)

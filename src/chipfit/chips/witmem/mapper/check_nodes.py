"""The rules of single nodes: shapes and ranges of weights, biases, tables and divisors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from chipfit.chips.witmem.mapper.rules import (
    ACT_TABLE,
    BIAS_LIMIT,
    BIAS_UNIT,
    G_RANGE,
    GATES,
    GRU_TABLE,
    LSTM_GATES,
    NODES,
    ROWS_PER_OPERATION,
    WEIGHT_RANGE,
    is_allowed_g,
)
from chipfit.chips.witmem.mapper.side import SideEntry

_G_ALLOWED = f"powers of two from {G_RANGE[0]} to {G_RANGE[1]}"
_TRUE_OR_FALSE = (0, 1)
_FINE_ONES = 4096
"""`scale_ones` of gates with 12 bits after the point: one of the vendor's files has it."""


def node_problems(node: Any, graph: Any, constants: dict[str, Any], side: dict[str, SideEntry]) -> list[str]:
    """All rules of its kind that a node breaks; its attributes are known to be there.

    Args:
        node: `onnx.NodeProto` of a known kind.
        graph: `onnx.GraphProto` that it is in.
        constants: Initializers by name.
        side: Entries of the side file.
    """
    from onnx import helper, numpy_helper

    rule = NODES[node.op_type]
    if len(node.input) not in rule.inputs or any(not name for name in node.input):
        hint = "; a layer without bias has a bias of zeros" if node.op_type in ("Gemm", "Conv", "ConvTranspose") else ""
        return [f"{len(node.input)} inputs; allowed: {' or '.join(map(str, rule.inputs))}, none left out{hint}"]
    missing = [node.input[p] for p in rule.constants if p < len(node.input) and node.input[p] not in constants]
    if missing:
        return [f"inputs {', '.join(missing)} must be initializers"]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes = {
        name: numpy_helper.to_array(value) if hasattr(value, "raw_data") else value
        for name, value in attributes.items()
    }
    tensors = [numpy_helper.to_array(constants[node.input[p]]) for p in rule.constants if p < len(node.input)]
    found = _CHECKS[node.op_type](attributes, tensors) if node.op_type in _CHECKS else []
    if node.op_type == "ReduceMean" and ("axes" in attributes) == (len(node.input) == 2):
        found.append("axes: one attribute, or from opset 18 on one input")
    if rule.scaled:
        found += _scale_follows(node, graph)
    if node.op_type == "Scale":
        makers = [other for other in graph.node if node.input[0] in other.output]
        if not makers or not NODES.get(makers[0].op_type, NODES["Scale"]).scaled:
            found.append("does not follow directly after Gemm, Conv or ConvTranspose")
    if rule.array and node.name in side:
        found += _rows_problems(node.op_type, tensors, side[node.name])
    if rule.array:
        found += _width_problems(node, graph, tensors[0])
    return found


def _scale_follows(node: Any, graph: Any) -> list[str]:
    readers = [other.op_type for other in graph.node if node.output[0] in other.input]
    readers += ["the graph's output"] * sum(value.name == node.output[0] for value in graph.output)
    return [] if readers == ["Scale"] else [f"read by {readers or 'nothing'}; allowed: one Scale, directly after it"]


def _rows_problems(kind: str, tensors: list[Any], entry: SideEntry) -> list[str]:
    """Rows that one operation drives; the operations of a recurrent node are counted one by one."""
    matrices = tensors[:2] if kind in ("Gru2Array", "Gru", "Lstm") else tensors[:1]
    per_copy = max(rows_of(kind, weight.shape) for weight in matrices)
    rows = per_copy * (2 if entry.signed_input else 1) * entry.multiple
    if rows <= ROWS_PER_OPERATION:
        return []
    parts = f"{per_copy} x {2 if entry.signed_input else 1} for the input's sign x {entry.multiple} copies"
    return [f"needs {rows} rows ({parts}); allowed: {ROWS_PER_OPERATION}. Split the layer over its inputs"]


def rows_of(kind: str, shape: tuple[int, ...]) -> int:
    """Array rows of a weight as the compiler's node holds it.

    Example:
        >>> rows_of("Gemm", (896, 10)), rows_of("Conv", (64, 32, 3, 3)), rows_of("ConvTranspose", (8, 4, 2, 2))
        (896, 288, 32)
    """
    if kind == "Conv":
        return int(np.prod(shape[1:]))
    return shape[0] * int(np.prod(shape[2:]))


def _width_problems(node: Any, graph: Any, weight: Any) -> list[str]:
    """The weight fits the input's channels, where the graph says what shape the input has."""
    values = [*graph.input, *graph.value_info]
    sizes = next((shape_of(value) for value in values if value.name == node.input[0]), [])
    if not sizes or node.op_type in ("Tdnn", "Gru", "Lstm"):
        return []
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    wanted = weight.shape[1] * group if node.op_type == "Conv" else weight.shape[0]
    given = sizes[1] if node.op_type in ("Conv", "ConvTranspose") and len(sizes) > 1 else sizes[-1]
    return [] if given == wanted else [f"the input has {given} channels, the weight takes {wanted}"]


def shape_of(value: Any) -> list[int]:
    """Sizes of one of a graph's values; 0 where a size is not fixed."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _weight_problems(weight: Any, dims: int, name: str = "weight") -> list[str]:
    found = []
    if weight.ndim != dims:
        found.append(f"{name} of shape {weight.shape}; allowed: {dims} dimensions")
    if weight.size and (weight.min() < WEIGHT_RANGE[0] or weight.max() > WEIGHT_RANGE[1]):
        found.append(f"{name} codes from {weight.min():g} to {weight.max():g}; allowed: -128 to 127")
    return found


def _bias_problems(bias: Any, outputs: int, name: str = "bias") -> list[str]:
    if bias.shape != (outputs,):
        return [f"{name} of shape {bias.shape}; allowed: ({outputs},)"]
    found = []
    if np.any(bias % BIAS_UNIT):
        found.append(f"{name} holds {bias[bias % BIAS_UNIT != 0][0]:g}; allowed: multiples of {BIAS_UNIT}")
    if np.any(np.abs(bias) > BIAS_LIMIT):
        found.append(f"{name} holds {bias[np.abs(bias).argmax()]:g}; allowed: -{BIAS_LIMIT} to {BIAS_LIMIT}")
    return found


def _gemm(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    weight, bias = tensors
    return _weight_problems(weight, 2) or [*_bias_problems(bias, weight.shape[1])]


def _conv(attributes: dict[str, Any], tensors: list[Any], transposed: bool = False) -> list[str]:
    weight, bias = tensors
    found = _weight_problems(weight, 4)
    if found:
        return found
    found += _bias_problems(bias, weight.shape[1] if transposed else weight.shape[0])
    if tuple(attributes["kernel_shape"]) != weight.shape[2:]:
        found.append(f"kernel_shape {attributes['kernel_shape']}; allowed: the weight's {weight.shape[2:]}")
    lengths = {"strides": (2,), "pads": (4,), "dilations": (2,), "output_padding": (2, 4)}
    for name in lengths.keys() & attributes.keys():
        if len(attributes[name]) not in lengths[name]:
            found.append(f"{name} {attributes[name]}; allowed: {' or '.join(map(str, lengths[name]))} numbers")
    if weight.shape[0] % attributes.get("group", 1):
        found.append(f"group {attributes['group']} does not divide {weight.shape[0]} outputs")
    return found


def _conv_transpose(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    return _conv(attributes, tensors, transposed=True)


def _tdnn(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    found = _weight_problems(tensors[0], 2)
    offsets = np.asarray(attributes["time_offsets"])
    if found:
        return found
    if not offsets.size or tensors[0].shape[0] % offsets.size:
        found.append(f"{tensors[0].shape[0]} weight rows; allowed: a multiple of the {offsets.size} time_offsets")
    found += _bias_problems(np.asarray(attributes["bias_params"]), tensors[0].shape[1], "bias_params")
    return found + _g_problems(attributes, "scale_params")


def _gru2array(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    w_ih, w_hh, b_ih, b_hh = tensors
    found = [*_weight_problems(w_ih, 2, "W_ih"), *_weight_problems(w_hh, 2, "W_hh")]
    if found:
        return found
    hidden = w_hh.shape[0]
    for name, weight in (("W_ih", w_ih), ("W_hh", w_hh)):
        if weight.shape[1] != 3 * hidden:
            found.append(f"{name} of shape {weight.shape}; allowed: {3 * hidden} columns, three for each state")
    found += [*_bias_problems(b_ih, 3 * hidden, "b_ih"), *_bias_problems(b_hh, 3 * hidden, "b_hh")]
    found += [*_g_problems(attributes, "scale_input"), *_g_problems(attributes, "scale_hidden")]
    found += _table_problems(attributes["activate_table"], GRU_TABLE, "activate_table", attributes["scale_ones"])
    fixed = {"input_offset": (0,), "scale_ones": (128, _FINE_ONES), "clean_ht": _TRUE_OR_FALSE}
    return [*found, *_fixed(attributes, fixed), *_gates(attributes, GATES), *_shift_problems(attributes, 4)]


def _gru(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    found = [*_weight_problems(tensors[0], 2, "W_zr"), *_weight_problems(tensors[1], 2, "W_h")]
    found += [p for name in ("scale_zr", "scale_ht") for p in _g_problems(attributes, name)]
    found += _fixed(attributes, {"scale_ones": (127, _FINE_ONES), "clean_ht": _TRUE_OR_FALSE})
    table = attributes["activate_table"]
    if table.shape not in ((2, 256), (2, 1024)):
        found.append(f"activate_table of shape {table.shape}; allowed: (2, 256), (2, 1024)")
    return [*found, *_gates(attributes, GATES), *_shift_problems(attributes, 2)]


def _lstm(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    found = [*_weight_problems(tensors[0], 2, "W_ifo"), *_weight_problems(tensors[1], 2, "W_c")]
    found += [p for name in ("scale_ioft", "scale_ct") for p in _g_problems(attributes, name)]
    return [*found, *_fixed(attributes, {"clean_ctht": _TRUE_OR_FALSE}), *_gates(attributes, LSTM_GATES)]


def _fixed(attributes: dict[str, Any], allowed: dict[str, tuple[int, ...]]) -> list[str]:
    """Attributes that have one of few values."""
    return [
        f"{name} is {attributes[name]}; allowed: {', '.join(map(str, values))}"
        for name, values in allowed.items()
        if attributes[name] not in values
    ]


def _gates(attributes: dict[str, Any], wanted: tuple[str, ...]) -> list[str]:
    """`activate_type`, where it is there."""
    given = [name.decode(errors="replace") for name in attributes.get("activate_type", map(str.encode, wanted))]
    return [] if given == list(wanted) else [f"activate_type is {given}; allowed: {list(wanted)}"]


def _scale(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    scale = attributes["scale"]
    if scale > 0 and is_allowed_g(1 / scale):
        return []
    return [f"scale is {scale:g}, G {1 / scale if scale else 0:g}; allowed G: {_G_ALLOWED}"]


def _act_lut(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    found = _table_problems(attributes["table_params"], ACT_TABLE, "table_params")
    if attributes["act_type"] not in (b"sigmoid", b"tanh"):
        found.append(f"act_type is {attributes['act_type'].decode()!r}; allowed: 'sigmoid', 'tanh'")
    return found


def _concat(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    return [] if attributes["axis"] == 1 else [f"axis is {attributes['axis']}; allowed: 1"]


def _float_scale(attributes: dict[str, Any], tensors: list[Any]) -> list[str]:
    return [] if attributes["scale"] > 0 else [f"scale is {attributes['scale']:g}; allowed: above 0"]


def _g_problems(attributes: dict[str, Any], name: str) -> list[str]:
    g = attributes[name]
    return [] if is_allowed_g(g) else [f"{name} is {g}; allowed: {_G_ALLOWED}"]


def _table_problems(table: Any, shape: tuple[int, ...], name: str, ones: int = 128) -> list[str]:
    if table.dtype != np.float32 or table.shape != shape:
        return [f"{name}: {table.dtype}, shape {table.shape}; allowed: float32, shape {shape}"]
    lowest, highest = -max(ones, 128), max(ones, 255)
    inside = np.array_equal(table, np.rint(table)) and table.min() >= lowest and table.max() <= highest
    kind = "8-bit integers" if ones <= 255 else f"integers from {lowest} to {highest}"
    return [] if inside else [f"{name} holds values that are no {kind}"]


def _shift_problems(attributes: dict[str, Any], count: int) -> list[str]:
    shifts = attributes["shift_bits"]
    return [] if len(shifts) == count else [f"shift_bits has {len(shifts)} numbers; allowed: {count}"]


_CHECKS: dict[str, Callable[[dict[str, Any], list[Any]], list[str]]] = {
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Tdnn": _tdnn,
    "Gru2Array": _gru2array,
    "Gru": _gru,
    "Lstm": _lstm,
    "Scale": _scale,
    "ActLut": _act_lut,
    "Concat": _concat,
    "FloatScale": _float_scale,
}

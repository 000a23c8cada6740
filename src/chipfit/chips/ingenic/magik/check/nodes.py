"""What single nodes of a Magik file must look like, beyond their form: widths, clips, channels, borders, neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np

from chipfit.chips.ingenic.devices import FEATURE_BITS, WEIGHT_BITS, Device
from chipfit.chips.ingenic.magik.check.layers import (
    LAYERS,
    Problems,
    Rule,
    bits_problems,
    clip_problems,
    convolved_channels_problems,
    multiple_problems,
)
from chipfit.chips.ingenic.magik.graph import Tag
from chipfit.chips.ingenic.magik.rules import MARKERS, NODE_VERSION, OPSET, PREPROCESS, STANDARD
from chipfit.chips.ingenic.magik.view import View, attributes, field_problems, is_image, json_object


def node_problems(view: View, node: Any, device: Device) -> Problems:
    """All rules that a node breaks, in words; its form is known to be right."""
    shapes = list(_standard_shape(view, node)) if node.op_type in STANDARD else []
    yield from shapes
    if node.op_type in RULES and not shapes:
        yield from RULES[node.op_type](view, node, device)


def _standard_shape(view: View, node: Any) -> Problems:
    """What ONNX itself says of the shape of a standard node's output, against the declared one."""
    from onnx import helper, shape_inference

    constants = [name for name in node.input if view.constant(name)]
    given = [helper.make_tensor_value_info(n, view.types[n], view.shape(n)) for n in node.input if n not in constants]
    made = [helper.make_tensor_value_info(name, view.types[name], None) for name in node.output]
    graph = helper.make_graph([node], "one", given, made, [view.tensor(name) for name in dict.fromkeys(constants)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    try:
        found = shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph.output
    except shape_inference.InferenceError as error:
        yield f"its inputs do not fit: {str(error).splitlines()[-1]}"
        return
    for value in found:
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        if shape != view.shape(value.name):
            yield f"the output {value.name} has shape {view.shape(value.name)}; allowed: {shape}"


def _feature(view: View, node: Any, device: Device) -> Problems:
    a = attributes(node)
    yield from bits_problems("output_bitwidth", a["output_bitwidth"], FEATURE_BITS, floating=True)
    yield from clip_problems(a["clip_min_value"], a["clip_max_value"])
    yield from _version(a)
    if a["tensor_name"] != node.output[0]:
        yield f"tensor_name is {a['tensor_name']!r}; allowed: {node.output[0]!r}"
    if view.shape(node.input[0]) != view.shape(node.output[0]):
        yield "input and output differ in shape"
    wanted = "Txx" if any(is_image(reader) for reader in view.readers[node.output[0]]) else device.name
    if a["target_device"] != wanted:
        yield f"target_device is {a['target_device']!r}; allowed: {wanted!r}"


def _version(a: dict[str, Any]) -> Problems:
    if a["version"] != NODE_VERSION:
        yield f"version is {a['version']}; allowed: {NODE_VERSION}"


def _quantised_weight(view: View, node: Any, device: Device) -> Problems:
    a, weight = attributes(node), view.array(node.input[0])
    if weight.ndim not in (2, 4) or view.shape(node.output[0]) != weight.shape:
        yield f"the weight has shape {weight.shape}; allowed: 2 or 4 axes, and the same for the output"
        return
    yield from bits_problems("weight_bitwidth", a["weight_bitwidth"], WEIGHT_BITS)
    if not a["factor"] > 0:
        yield f"factor is {a['factor']}; allowed: above 0"
    for name in ("is_quantize_per_channel", "need_scale_weight"):
        if a[name] != 1:
            yield f"{name} is {a[name]}; allowed: 1"
    if a["tensor_name"] != node.input[0]:
        yield f"tensor_name is {a['tensor_name']!r}; allowed: {node.input[0]!r}"
    rows = weight.reshape(1 if weight.ndim == 2 else weight.shape[0], -1)
    peaks = view.array(node.input[1])
    if peaks.shape != rows.shape[:1] or not np.array_equal(peaks, np.abs(rows).max(1)):
        yield "pre_max: allowed: the largest magnitude of each output channel (one for a matrix)"
    readers = view.readers[node.output[0]]
    following = [r for reader in readers for r in _past_transpose(view, reader)]
    if not following or not all(reader.op_type in ("Conv", "MatMul") for reader in following):
        yield "its output is read by something else than Conv, or Transpose and MatMul"
    groups = max((attributes(r)["group"] for r in following if r.op_type == "Conv"), default=1)
    depthwise = weight.ndim == 4 and weight.shape[1] == 1 and groups == weight.shape[0] > 1
    wanted = "Txx" if depthwise and device.family == "T40F" else device.name
    if a["target_device"] != wanted:
        yield f"target_device is {a['target_device']!r}; allowed: {wanted!r}"
    channels = weight.shape[1] * groups
    if weight.ndim == 2:
        yield from multiple_problems(channels, device)
    else:
        yield from convolved_channels_problems(device, channels, weight.shape[0], 1 if depthwise else groups, depthwise)


def _past_transpose(view: View, node: Any) -> list[Any]:
    return view.readers[node.output[0]] if node.op_type == "Transpose" else [node]


def _kept_gain(view: View, node: Any, device: Device) -> Problems:
    for reader in view.readers[node.output[0]]:
        if reader.op_type != "BatchNormalization" or reader.input[1] != node.output[0]:
            yield "its output is read by something else than the gain of BatchNormalization"


def _normalised(view: View, node: Any, device: Device) -> Problems:
    maker = view.makers.get(node.input[1])
    if maker is None or maker.op_type != "aweight":
        yield "its gain does not come from aweight, which keeps it at 0.01 or more"
    shapes, wanted = [view.shape(name) for name in node.input[1:]], view.shape(node.input[0])[1:2]
    if any(shape != wanted for shape in shapes):
        yield f"gain, shift, mean and variance have shapes {shapes}; allowed: {wanted}, one number a channel"


def _convolved(view: View, node: Any, device: Device) -> Problems:
    maker, a = view.makers.get(node.input[1]), attributes(node)
    if maker is None or maker.op_type != "QuantizeWeight":
        yield "its weight does not come from QuantizeWeight"
    if any(a["pads"]):
        yield f"pads is {a['pads']}; allowed: zeros, and a Pad node before it"
    if device.family == "TXX" and any(d != 1 for d in a["dilations"]):
        yield f"dilations is {a['dilations']}; allowed: [1, 1] on {device.name}"


def _marker(view: View, node: Any, device: Device) -> Problems:
    a = attributes(node)
    yield from _version(a)
    given = json_object(a["op_attr"])
    if a["op_target"] not in MARKERS:
        yield f"op_target is {a['op_target']!r}; known: {', '.join(sorted(MARKERS))}"
    elif set(given) != {"op_type", "attr"}:
        yield "op_attr: allowed: a JSON object of op_type and attr"
    elif given["op_type"] != MARKERS[a["op_target"]]:
        yield f"op_attr: op_type is {given['op_type']!r}; allowed: {MARKERS[a['op_target']]!r}"
    elif a["op_target"] == "preprocess_end":
        attr = given["attr"] if isinstance(given["attr"], dict) else {}
        broken = list(field_problems(attr, PREPROCESS, "op_attr"))
        yield from broken
        if not broken and attr["clip_min_value"] != (0.0 if attr["mean"] == 0 else -1.0):
            yield f"op_attr: clip_min_value is {attr['clip_min_value']}; allowed: 0 if the mean is 0, else -1"
        elif not broken:
            yield from _quantised_image(view, node.input[0], attr)
    if view.shape(node.input[0]) != view.shape(node.output[0]):
        yield "input and output differ in shape"


def _quantised_image(view: View, edge: str, attr: dict[str, Any]) -> Problems:
    """An input that is quantised in place of an image, against what the marker says of it."""
    tag = view.tags.get(edge)
    if tag is not None and tag != Tag(attr["output_bitwidth"], attr["clip_min_value"] < 0):
        sign = "signed" if tag.signed else "unsigned"
        yield f"op_attr: the image is made of {tag.bits} bits, {sign}; allowed: output_bitwidth and clip_min_value's"


def _pooled(view: View, node: Any, device: Device) -> Problems:
    a = attributes(node)
    if any(a.get("pads", ())):
        yield f"pads is {a['pads']}; allowed: zeros, and a Pad node before it"
    if device.family == "T02" and (list(a["kernel_shape"]), list(a["strides"])) != ([2, 2], [2, 2]):
        yield f"a window of {a['kernel_shape']}, step {a['strides']}; allowed: 2 x 2, step 2 on T02"
    if node.op_type == "AveragePool":
        yield from multiple_problems(view.shape(node.input[0])[1], device, "channels")


def _padded(view: View, node: Any, device: Device) -> Problems:
    a, tag = attributes(node), view.tags.get(node.input[0])
    maxima = all(reader.op_type == "MaxPool" for reader in view.readers[node.output[0]])
    alone = "/" not in node.name and tag is not None and tag.signed
    if not (alone and maxima and a["value"] == -1.0):  # which loses against every code
        yield from _fill("value", a["value"], tag, device, image=tag is None)
    if a["mode"] != "constant":
        yield f"mode is {a['mode']!r}; allowed: 'constant'"


def _fill(name: str, value: float, tag: Tag | None, device: Device, image: bool = False) -> Problems:
    lowest = device.family == "T40F" and tag is not None and tag.signed
    if value not in (0.0, -1.0) or (value == -1.0 and not lowest) or (value == 0.0 and lowest and not image):
        yield f"{name} is {value}; allowed: {-1 if lowest else 0} for this input on {device.name}"


def _upsampled(view: View, node: Any, device: Device) -> Problems:
    a, scales = attributes(node), view.array(node.input[1])
    x, y = view.shape(node.input[0]), view.shape(node.output[0])
    if a["mode"] not in ("zero", "nearest", "linear"):
        yield f"mode is {a['mode']!r}; allowed: 'zero', 'nearest', 'linear'"
    if ("fill_value" in a) != (a["mode"] == "zero"):
        yield "fill_value: allowed: with mode 'zero' and only there"
    elif "fill_value" in a and a["fill_value"] != 0.0:  # a layer that is not told that it is quantised fills in 0
        yield from _fill("fill_value", a["fill_value"], view.tags.get(node.input[0]), device)
    if tuple(scales.shape) != (len(x),) or tuple(int(s * n) for s, n in zip(scales, x, strict=False)) != y:
        yield f"scales {scales.tolist()} do not lead from {x} to {y}"
    if device.family == "T02" and scales.tolist()[2:] != [2.0, 2.0]:
        yield f"scales {scales.tolist()[2:]}; allowed: 2 x 2 on T02"


def _mean(view: View, node: Any, device: Device) -> Problems:
    yield from multiple_problems(view.shape(node.input[0])[1], device, "channels")


def _split(view: View, node: Any, device: Device) -> Problems:
    a, x = attributes(node), view.shape(node.input[0])
    axis = a["axis"] if node.name.startswith("torch.") else 1
    fits = a["axis"] == axis and 0 < axis < len(x) and sum(a["split"]) == x[axis]
    if not fits or len(a["split"]) != len(node.output):
        yield f"split {list(a['split'])} of shape {x}; allowed: parts of axis {axis} that add up"


def _joined(view: View, node: Any, device: Device) -> Problems:
    tags = {view.tags.get(name) for name in node.input}
    if not node.name.startswith("torch.") and len(tags) > 1:
        yield "its inputs differ in width or sign"
    if device.family == "T02" and len(node.input) > 8:
        yield f"{len(node.input)} inputs; allowed: at most 8 on T02"


RULES: dict[str, Rule] = {
    **LAYERS,
    "QuantizeFeature": _feature,
    "QuantizeWeight": _quantised_weight,
    "aweight": _kept_gain,
    "BatchNormalization": _normalised,
    "Conv": _convolved,
    "NOp": _marker,
    "MaxPool": _pooled,
    "AveragePool": _pooled,
    "GlobalAveragePool": _mean,
    "Pad": _padded,
    "Upsample": _upsampled,
    "Split": _split,
    "Concat": _joined,
}
"""Rules by kind of node."""

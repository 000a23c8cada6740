"""What the nodes of layers with weights, normalisations, sums and recurrent layers must look like in a Magik file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from chipfit.chips.ingenic.bitwidths import CONV_BOUND, LINEAR_BOUND
from chipfit.chips.ingenic.devices import FEATURE_BITS, WEIGHT_BITS, Device
from chipfit.chips.ingenic.padding import same_pads
from chipfit.export.magik.rules import (
    ACTIVATIONS,
    CONV_PARAM,
    SIGNED_ACTIVATIONS,
    UNNORMALISED_EPSILON,
    feature_var,
)
from chipfit.export.magik.view import View, attributes, field_problems, fields, is_filled, json_object

Problems = Iterator[str]


def bits_problems(name: str, bits: int, allowed: tuple[int, ...], floating: bool = False) -> Problems:
    """A width outside what the chips have."""
    if bits not in allowed or (bits == 32 and not floating):
        yield f"{name} is {bits}; allowed: {allowed[0]} to {allowed[-2]}" + (", or 32" if floating else "")


def multiple_problems(channels: int, device: Device, what: str = "input channels") -> Problems:
    """Channels that do not fill the target's vector unit."""
    if channels % device.channel_multiple:
        yield f"{channels} {what}; allowed: multiples of {device.channel_multiple} on {device.name}"


def clip_problems(low: float, high: float, signed: bool | None = None) -> Problems:
    """A clip that is none, or whose sign does not fit."""
    if not (math.isfinite(high) and high > 0):
        yield f"clip_max_value is {high}; allowed: above 0"
    elif low not in (0.0, -high):
        yield f"clip_min_value is {low}; allowed: 0 or -clip_max_value"
    elif signed is not None and (low < 0) != signed:
        yield f"clip_min_value is {low}; allowed: {'-clip_max_value' if signed else '0'} with this activation"


def _described_input(view: View, node: Any, f: dict[str, Any]) -> Problems:
    """What a node says of its input: width, sign, codes a unit, that it is the image."""
    maker = view.makers.get(_before_border(view, node.input[0]))
    marks = attributes(maker) if maker is not None and maker.op_type == "NOp" else {}
    image = marks.get("op_target") == "preprocess_end"
    if f["is_input"] != image:
        yield f"is_input is {f['is_input']}; allowed: true behind the preprocessing marker and only there"
    elif image:
        attr = json_object(marks["op_attr"])["attr"]
        wanted = tuple(attr.get(name) for name in ("var", "clip_min_value", "output_bitwidth"))
        if (f["feature_var"], f["input_min_value"], f["input_bitwidth"]) != wanted:
            yield f"feature_var, input_min_value, input_bitwidth are not those of the preprocessing marker, {wanted}"
    else:
        yield from input_tag_problems(view, node.input[0], f["input_bitwidth"], f["input_min_value"])
        yield from _codes_a_unit(f, f["input_min_value"] < 0)


def _codes_a_unit(f: dict[str, Any], negative: bool) -> Problems:
    known = f["input_bitwidth"] in FEATURE_BITS
    wanted = feature_var(f["input_bitwidth"], negative) if known else f["feature_var"]
    if f["feature_var"] != wanted:
        yield f"feature_var is {f['feature_var']}; allowed: {wanted:g} for this input"


def input_tag_problems(view: View, edge: str, bits: int, low: float) -> Problems:
    """What a node says of its input against how that is made."""
    yield from bits_problems("input_bitwidth", bits, FEATURE_BITS, floating=True)
    tag = view.tags.get(edge)
    if low > 0:
        yield f"input_min_value is {low}; allowed: 0 or below"
    elif tag is not None and tag.bits != bits:
        yield f"input_bitwidth is {bits}; allowed: {tag.bits}, the width of {edge}"
    elif tag is not None and tag.signed != (low < 0):
        yield f"input_min_value is {low}; allowed: {'below 0' if tag.signed else '0'}, as {edge} is made"


def _named(view: View, node: Any, f: dict[str, Any]) -> Problems:
    """Names of tensors in the JSON text, and `is_output`."""
    wanted = {"input_tensor_name": node.input[0], "output_tensor_name": node.output[0]}
    if "weight_tensor_name" in f:
        wanted["weight_tensor_name"] = node.input[1]
    if node.op_type == "QuantizeShortcutInference":
        wanted["input_tensor_name"] = ",".join(node.input)
    if f.get("is_output") and _read_by_a_layer(view, node.output[0]):
        yield "is_output is True; allowed: false where a layer reads the output"
    for name, edge in wanted.items():
        if f[name] != edge:
            yield f"{name} is {f[name]!r}; allowed: {edge!r}"


def _read_by_a_layer(view: View, edge: str) -> bool:
    """Whether an edge reaches a layer, through markers and plain torch."""
    passing = [n for n in view.readers[edge] if n.op_type == "NOp" or n.name.startswith("torch.")]
    if len(passing) < len(view.readers[edge]):
        return True
    return any(_read_by_a_layer(view, name) for node in passing for name in node.output)


def _before_border(view: View, edge: str) -> str:
    """The edge that a layer is given, where its own node reads it rearranged, and before a border of its own."""
    while edge in view.makers and ("/focus" in view.makers[edge].name or view.makers[edge].op_type == "Pad"):
        edge = view.makers[edge].input[0]
    return edge


def _normalisation(view: View, names: list[str], f: dict[str, Any], channels: int) -> Problems:
    """Gain, shift, mean, variance and slopes of each channel."""
    labels = ("gamma", "beta", "mean", "var", "negative_alpha")
    for label, name in zip(labels, names, strict=True):
        if view.shape(name) != (channels,):
            yield f"{label} ({name}) has shape {view.shape(name)}; allowed: {(channels,)}"
            return
    if f["epsilon"] < 0:
        yield f"epsilon is {f['epsilon']}; allowed: above 0, or 0 without batch normalisation"
    if (view.array(names[3]) < 0).any():
        yield "var holds negative values"
    plain = all(is_filled(view.array(n), v) for n, v in zip(names[:4], (1.0, 0.0, 0.0, 1.0), strict=True))
    if f["epsilon"] == UNNORMALISED_EPSILON and not plain:
        yield "epsilon is 0, but gamma, beta, mean and var are not 1, 0, 0, 1"


def _activation(view: View, f: dict[str, Any], alpha: str, fixed_sign: bool = True) -> Problems:
    name = f["activate_name"]
    if name not in ACTIVATIONS:
        yield f"activate_name is {name!r}; allowed: {', '.join(ACTIVATIONS)}"
        return
    leaky = name in ("PRelu", "LeakyRelu")
    if f["with_negtive_alpha"] != leaky:
        yield f"with_negtive_alpha is {f['with_negtive_alpha']}; allowed: {str(leaky).lower()} with {name}"
    slopes = view.array(alpha)
    if not leaky and not is_filled(slopes, 1.0 if name == "Linear" else 0.0):
        yield f"negative_alpha: allowed: all {'1' if name == 'Linear' else '0'} with {name}"
    if name == "LeakyRelu" and not is_filled(slopes, slopes.flat[0]):
        yield "negative_alpha: allowed: one slope for all channels with LeakyRelu"
    signed = name in SIGNED_ACTIVATIONS if fixed_sign or name == "Linear" else None
    yield from clip_problems(f["clip_min_value"], f["clip_max_value"], signed)


def _weighted(view: View, node: Any, device: Device, f: dict[str, Any], depthwise: bool, channels: int) -> Problems:
    """What convolutions and fully connected layers share."""
    out = view.shape(node.input[1])[0]
    yield from bits_problems("weight_bitwidth", f["weight_bitwidth"], WEIGHT_BITS)
    yield from bits_problems("output_bitwidth", f["output_bitwidth"], FEATURE_BITS)
    if not f["weight_factor"] > 0:
        yield f"weight_factor is {f['weight_factor']}; allowed: above 0"
    wanted = "Txx" if depthwise and device.family == "T40F" else device.name
    if f["weight_target_device"] != wanted:
        yield f"weight_target_device is {f['weight_target_device']!r}; allowed: {wanted!r}"
    if view.shape(node.input[2]) != (out,):
        yield f"the bias has shape {view.shape(node.input[2])}; allowed: {(out,)}"
    if f["op_in_channels"] != channels:
        yield f"op_in_channels is {f['op_in_channels']}; allowed: {channels}, as the weight has them"
    yield from _described_input(view, node, f)
    yield from _normalisation(view, list(node.input[3:]), f, out)
    yield from _activation(view, f, node.input[7])
    yield from _named(view, node, f)


def _accumulator(device: Device, f: dict[str, Any], terms: int, bound: int) -> Problems:
    """Largest sum on Txx, Xs1 and Xs2 with weights below 8 bits."""
    if device.family != "TXX" or f["weight_bitwidth"] >= 8 or f["is_input"] or f["is_output"]:
        return
    if min(f[name] for name in ("input_bitwidth", "weight_bitwidth", "output_bitwidth")) < 4:
        yield f"a width below 4 bits; allowed: 4 or more on {device.name}"
    largest = terms * 2 ** f["input_bitwidth"] * 2 ** (f["weight_bitwidth"] - 1)
    if largest > bound:
        yield f"the accumulator reaches {largest}; allowed: at most {bound} on {device.name}"


def _convolution(view: View, node: Any, device: Device) -> Problems:
    f = fields(node)
    p = f["conv_param"]
    broken = list(field_problems(p, CONV_PARAM, "conv_param"))
    pairs = {"kernel_size": 2, "strides": 2, "dilations": 2, "pads": 4}
    if not broken:
        broken = [f"conv_param: {k} has {len(p[k])} numbers; allowed: {n}" for k, n in pairs.items() if len(p[k]) != n]
    if broken or f["data_format"] != "NCHW":
        yield from broken or [f"data_format is {f['data_format']!r}; allowed: 'NCHW'"]
        return
    groups, channels, out = p["groups"], p["input_channels"], p["output_channels"]
    if groups < 1 or channels % groups or out % groups:
        yield f"conv_param: groups is {groups}; allowed: a divisor of {channels} and {out}"
        return
    weight = (out, channels // groups, *p["kernel_size"])
    if view.shape(node.input[1]) != weight:
        yield f"the weight has shape {view.shape(node.input[1])}; allowed: {weight} by conv_param"
        return
    yield from _weighted(view, node, device, f, f["is_dwconv"], channels)
    if f["is_dwconv"] and not groups == channels == out:
        yield f"is_dwconv is true with {groups} groups of {channels} channels; allowed: a group a channel"
    yield from convolved_channels_problems(device, channels, out, 1 if f["is_dwconv"] else groups, f["is_dwconv"])
    if device.family == "TXX" and p["dilations"] != [1, 1]:
        yield f"conv_param: dilations is {p['dilations']}; allowed: [1, 1] on {device.name}"
    if device.family == "T02" and p["kernel_size"] != [3, 3]:
        yield f"conv_param: kernel_size is {p['kernel_size']}; allowed: [3, 3] on T02"
    area = math.prod(p["kernel_size"])
    if f["is_dwconv"]:
        yield from _accumulator(device, f, area, LINEAR_BOUND)
    else:
        yield from _accumulator(device, f, area * channels, CONV_BOUND)
    yield from _window(view, node, p, device)


def convolved_channels_problems(device: Device, channels: int, out: int, groups: int, depthwise: bool) -> Problems:
    """Channels and groups of a convolution."""
    if depthwise or (channels >= 4 and channels != 12):
        yield from multiple_problems(channels, device)
    multiple = device.channel_multiple
    if groups > 1 and device.family == "T40F" and (channels // groups % multiple or out // groups % multiple):
        yield f"{groups} groups; allowed: channels / groups a multiple of {multiple} on {device.name}"


def _window(view: View, node: Any, p: dict[str, Any], device: Device) -> Problems:
    """Border and output size."""
    flat = node.op_type == "QuantizeConv1DInference"
    x, y = view.shape(node.input[0]), view.shape(node.output[0])
    if len(x) != (3 if flat else 4) or x[1] != p["input_channels"]:
        axes = "N, C, L" if flat else "N, C, H, W"
        yield f"the input has shape {x}; allowed: {axes} of {p['input_channels']} channels"
        return
    height, width = (1, x[2]) if flat else x[2:]
    if p["padding"] == "SAME":
        left, right, top, bottom = same_pads(height, width, tuple(p["kernel_size"]), tuple(p["strides"]))
        if p["pads"] != [top, left, bottom, right]:
            yield f"conv_param: pads is {p['pads']}; allowed: {[top, left, bottom, right]} for SAME here"
        if p["dilations"] != [1, 1] or device.family == "T02":
            yield "conv_param: padding is 'SAME'; allowed: 'VALID' with a dilation, and on T02"
        sizes = [-(-height // p["strides"][0]), -(-width // p["strides"][1])]
    elif p["padding"] == "VALID":
        top, left, bottom, right = p["pads"]
        bordered = p["dilations"] != [1, 1] or device.family == "T02"
        if (top, left) != (bottom, right) or (any(p["pads"]) and not bordered):
            yield f"conv_param: pads is {p['pads']}; allowed: zeros for VALID, or both sides alike with a dilation"
        spans = [d * (k - 1) + 1 for k, d in zip(p["kernel_size"], p["dilations"], strict=True)]
        sizes = [
            (size + 2 * pad - span) // stride + 1
            for size, pad, span, stride in zip((height, width), (top, left), spans, p["strides"], strict=True)
        ]
    else:
        yield f"conv_param: padding is {p['padding']!r}; allowed: 'SAME', 'VALID'"
        return
    wanted = (x[0], p["output_channels"], *(sizes[1:] if flat else sizes))
    if y != wanted:
        yield f"the output has shape {y}; allowed: {wanted}"


def _full_connected(view: View, node: Any, device: Device) -> Problems:
    f, weight = fields(node), view.shape(node.input[1])
    x, y = view.shape(node.input[0]), view.shape(node.output[0])
    if len(weight) != 2 or x[-1:] != weight[1:]:
        yield f"the weight has shape {weight} for an input of shape {x}; allowed: (outputs, inputs)"
        return
    if f["data_format"] not in (("NHWC",) if len(x) > 2 else ("NCHW", "NHWC")):
        yield f"data_format is {f['data_format']!r}; allowed: 'NHWC' for a sequence, else 'NCHW' or 'NHWC'"
    if y != (*x[:-1], weight[0]):
        yield f"the output has shape {y}; allowed: {(*x[:-1], weight[0])}"
    yield from _weighted(view, node, device, f, False, weight[1])
    yield from multiple_problems(weight[1], device)
    yield from _accumulator(device, f, weight[1], LINEAR_BOUND)


def _batch_norm(view: View, node: Any, device: Device) -> Problems:
    f, x = fields(node), view.shape(node.input[0])
    if len(x) != 4 or view.shape(node.output[0]) != x:
        yield f"input {x}, output {view.shape(node.output[0])}; allowed: one shape N, C, H, W"
        return
    yield from _described_input(view, node, f)
    yield from _normalisation(view, list(node.input[1:]), f, x[1])
    yield from _activation(view, f, node.input[5], fixed_sign=False)
    yield from _named(view, node, f)
    yield from bits_problems("output_bitwidth", f["output_bitwidth"], FEATURE_BITS, floating=True)
    if f["output_bitwidth"] != f["input_bitwidth"]:
        yield f"output_bitwidth is {f['output_bitwidth']}; allowed: input_bitwidth, {f['input_bitwidth']}"
    if f["op_in_channels"] != x[1]:
        yield f"op_in_channels is {f['op_in_channels']}; allowed: {x[1]}"
    if x[1] >= 4:
        yield from multiple_problems(x[1], device)


def _shortcut(view: View, node: Any, device: Device) -> Problems:
    f, shapes = fields(node), [view.shape(name) for name in (*node.input, *node.output)]
    if len(set(shapes)) > 1:
        yield f"the shapes are {shapes}; allowed: one for both inputs and the output"
    lows = f["input_min_value"]
    if len(lows) != 2 or not all(isinstance(low, float) for low in lows):
        yield f"input_min_value is {lows}; allowed: two numbers"
        return
    for edge, low in zip(node.input, lows, strict=True):
        yield from input_tag_problems(view, edge, f["input_bitwidth"], low)
    signs = [low < 0 for low in lows]
    if f["sc_input_same_clip"] != (signs[0] == signs[1]):
        yield f"sc_input_same_clip is {f['sc_input_same_clip']}; allowed: true where both inputs have one sign"
    yield from bits_problems("output_bitwidth", f["output_bitwidth"], FEATURE_BITS, floating=True)
    if device.family == "TXX" and f["output_bitwidth"] != f["input_bitwidth"]:
        yield f"output_bitwidth is {f['output_bitwidth']}; allowed: input_bitwidth on {device.name}"
    yield from _codes_a_unit(f, any(signs))
    yield from clip_problems(f["clip_min_value"], f["clip_max_value"], any(signs))
    yield from _named(view, node, f)
    if f["clip_max_value"] > 2:
        yield f"clip_max_value is {f['clip_max_value']}; allowed: at most 2"


def _recurrent(view: View, node: Any, device: Device) -> Problems:
    f = fields(node)
    ways, hidden = 1 + f["bidirectional"], f["hidden_size"]
    wanted = 1 + 2 * f["num_layers"] * ways + 2 * ways
    if len(node.input) != wanted:
        yield f"{len(node.input)} inputs; allowed: {wanted} for {f['num_layers']} layers in {ways} directions"
        return
    if f["num_layers"] != 1 and device.family == "T40F":
        yield f"num_layers is {f['num_layers']}; allowed: 1 on {device.name}"
    if not f["batch_first"]:
        yield "batch_first is false; allowed: true"
    if len(node.output) != 2 + f["return_output_states"]:
        yield f"{len(node.output)} outputs; allowed: {2 + f['return_output_states']}"
    quantised = node.op_type == "QuantizeLSTMV2"
    yield from bits_problems("weight_bitwidth", f["weight_bitwidth"], WEIGHT_BITS, floating=not quantised)
    yield from bits_problems("output_bitwidth", f["output_bitwidth"], FEATURE_BITS, floating=True)
    yield from clip_problems(f["clip_min_value"], f["clip_max_value"], True)
    yield from input_tag_problems(view, node.input[0], f["input_bitwidth"], f["input_min_value"])
    yield from _named(view, node, f)
    size = f["input_size"]
    for number in range(f["num_layers"]):
        for position in range(1 + 2 * ways * number, 1 + 2 * ways * (number + 1), 2):
            shapes = [view.shape(node.input[position]), view.shape(node.input[position + 1])]
            if shapes != [(4 * hidden, size + hidden), (4 * hidden,)]:
                yield f"weight and bias have shapes {shapes}; allowed: {[(4 * hidden, size + hidden), (4 * hidden,)]}"
        size = hidden * ways


Rule = Callable[[View, Any, Device], Problems]

LAYERS: dict[str, Rule] = {
    "QuantizeConv2DInference": _convolution,
    "QuantizeConv1DInference": _convolution,
    "QuantizeFullconnectedInference": _full_connected,
    "QuantizeBatchNormInference": _batch_norm,
    "QuantizeShortcutInference": _shortcut,
    "QuantizeLSTMV2": _recurrent,
    "LSTMUntilFunction": _recurrent,
}
"""Rules by kind of node."""

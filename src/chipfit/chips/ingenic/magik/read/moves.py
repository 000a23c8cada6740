"""Reading the operators without weights, recurrent layers, embedding and attention back from their nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.graph import decimal
from chipfit.chips.ingenic.magik.read.layers import KINDS, activation_of, clip_of, set_clip, torch_module
from chipfit.chips.ingenic.magik.read.reader import Reader, Unit, fill
from chipfit.chips.ingenic.magik.view import attributes, fields, json_object
from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.errors import FileFormatError

Rule = Callable[[Reader, Unit], None]


def _quantiser(unit: Unit) -> dict[str, Any]:
    """The feature quantiser's attributes; empty where the unit has none."""
    return attributes(unit.node("QuantizeFeature")) if unit.has("QuantizeFeature") else {}


def _passed(reader: Reader, unit: Unit, layer: Any, given: Any) -> None:
    """A layer that returns what it was given: a tuple for a tuple, a bare tensor for a bare tensor."""
    bare = not isinstance(given, tuple) or getattr(layer, "last_layer", False)
    reader.call(unit, layer, given, picked=() if bare else (0,))


def _window(unit: Unit, kind: str) -> dict[str, Any]:
    a = attributes(unit.node(kind))
    (kernel_h, kernel_w), stride = a["kernel_shape"], tuple(a["strides"])
    same = unit.part("pad") is not None
    return {"kernel_h": kernel_h, "kernel_w": kernel_w, "stride": stride, "padding": int(same)}


def _maxpool(reader: Reader, unit: Unit) -> None:
    layer = chips.Maxpool2D(**_window(unit, "MaxPool"), target_device=reader.device.name)
    _passed(reader, unit, layer, reader.described(reader.inputs(unit)[0]))


def _mean(reader: Reader, unit: Unit) -> None:
    edge, q = reader.inputs(unit)[0], _quantiser(unit)
    reader.call(unit, mean_layer(reader, unit), reader.described(edge), picked=(0,) if q else ())


def mean_layer(reader: Reader, unit: Unit) -> Any:
    """Avgpool2D or AdaptiveAvgpool2D, with the sign that its quantiser has."""
    edge, q = reader.inputs(unit)[0], _quantiser(unit)
    channels, bits = reader.view.shape(edge)[1], reader.bits(edge)
    options: dict[str, Any] = {
        "input_bitwidth": bits,
        "target_device": reader.device.name,
        "quantize": bool(q) or bits < 32,
    }
    if unit.has("AveragePool"):
        layer: Any = chips.Avgpool2D(channels, **_window(unit, "AveragePool"), **options)
    else:
        layer = chips.AdaptiveAvgpool2D(channels, keepdim=not unit.has("Squeeze"), last_layer=not q, **options)
    layer.signed = bool(q) and q["clip_min_value"] < 0
    return layer


def _upsample(reader: Reader, unit: Unit) -> None:
    node, edge = unit.nodes[0], reader.inputs(unit)[0]
    a, tag = attributes(node), reader.view.tags.get(edge)
    height, width = (int(scale) for scale in reader.view.array(node.input[1])[2:])
    unfilled = tag is not None and tag.signed and reader.device.family == "T40F" and a.get("fill_value") == 0.0
    mode = {"linear": "bilinear"}.get(a["mode"], a["mode"])
    last = mode == "bilinear"
    layer = chips.Unpool2D(height, width, mode, not unfilled, last, reader.device.name)
    _passed(reader, unit, layer, reader.described(edge))


def _regions_of_interest(reader: Reader, unit: Unit) -> None:
    node = unit.nodes[0]
    a, (edge, rois) = attributes(node), node.input
    scale = reader.view.noted(unit.layer, "spatial_scale", decimal(a["spatial_scale"]))
    per_image = bool(reader.view.noted(unit.layer, "per_image", False))
    layer = chips.RoIPooling(tuple(a["pooled_shape"]), scale, reader.device.name, per_image)
    given = reader.described(edge)
    reader.call(unit, layer, given, reader.values[rois], picked=(0,) if isinstance(given, tuple) else ())


def _product(reader: Reader, unit: Unit) -> None:
    parts = reader.parts_of(unit)
    if parts:
        return _se_block(reader, unit, *(reader.units[part] for part in parts))
    node, q = unit.nodes[0], _quantiser(unit)
    if reader.view.constant(node.input[1]):
        return _to_tensor(reader, unit, node)
    channels = reader.view.shape(node.output[0])[1]
    layer = chips.Mul(channels, quantize=bool(q), last_layer=not q, target_device=reader.device.name)
    reader.call(unit, layer, [reader.described(edge) for edge in node.input], picked=(0,) if q else ())
    return None


def _to_tensor(reader: Reader, unit: Unit, node: Any) -> None:
    factors = reader.view.array(node.input[1])
    layer = ToTensor(factors.size, reader.device.name)
    fill(layer.scale, factors)
    reader.call(unit, layer, reader.described(node.input[0]))


def _to_feature(reader: Reader, unit: Unit) -> None:
    q, gate = _quantiser(unit), bool(reader.view.noted(unit.layer, "gate", False))
    bits, signed, clip = q["output_bitwidth"], q["clip_min_value"] < 0, clip_of(reader, unit)
    layer = ToFeature(bits, signed, clip, gate, unit.has("NOp"), reader.device.name)
    reader.call(unit, layer, reader.values[reader.inputs(unit)[0]], picked=(0,))
    if layer.image:
        reader.images[unit.output] = layer.tags[1:]


def _pad(reader: Reader, unit: Unit) -> None:
    node = unit.nodes[0]
    edge, around = node.input[0], list(attributes(node)["pads"])
    rank = len(around) // 2
    axes = reader.view.noted(unit.layer, "axes", rank - 2)
    pads = tuple(side for axis in reversed(range(rank - axes, rank)) for side in (around[axis], around[rank + axis]))
    layer = PadFeature(pads, reader.view.noted(unit.layer, "fill", "zero"), reader.device.name)
    _passed(reader, unit, layer, reader.described(edge))
    if edge in reader.images:
        reader.images[unit.output] = reader.images[edge]


def _se_block(reader: Reader, unit: Unit, pool: Unit, first: Unit, second: Unit) -> None:
    """Se_Block, whose parts are read as the layers that they are, aside, and put in their places."""
    edge, q = reader.inputs(pool)[0], _quantiser(unit)
    channels, hidden = reader.view.shape(edge)[1], reader.view.shape(first.output)[1]
    bits = q["output_bitwidth"] if q else reader.bits(first.output)
    layer = chips.Se_Block(
        channels,
        channels // hidden,
        quantize=True,
        last_layer=not q,
        input_bitwidth=reader.bits(edge),
        output_bitwidth=bits,
        weight_bitwidth=8,
        target_device=reader.device.name,
    )
    layer.adaptivepool = mean_layer(reader, pool)
    for part in (first, second):  # the block calls them, so what they would be given is of no matter
        reader.values.setdefault(reader.inputs(part)[0], reader.values[edge])
    for name, part in (("conv1", first), ("conv2", second)):
        setattr(layer, name, KINDS[part.nodes[-1].op_type](reader, part).layer)
    reader.call(unit, layer, reader.described(edge), picked=(0,) if q else ())


def _greatest(reader: Reader, unit: Unit) -> None:
    given = [reader.described(edge) for edge in unit.nodes[0].input]
    layer = chips.Max(reader.device.name)
    reader.call(unit, layer, given, picked=(0,) if isinstance(given[0], tuple) else ())


def _route(reader: Reader, unit: Unit) -> None:
    tagged = reader.view.tags.get(unit.output) is not None
    given = [reader.described(edge) if tagged else reader.values[edge] for edge in unit.nodes[0].input]
    layer = chips.Route(reader.device.name)
    reader.call(unit, layer, given, picked=(0,) if tagged else ())


def _split(reader: Reader, unit: Unit) -> None:
    node = unit.nodes[0]
    given = reader.described(node.input[0])
    layer = chips.Channel_Split(list(attributes(node)["split"]), reader.device.name)
    made = reader.call(unit, layer, given, picked=(0,))
    for i, edge in enumerate(node.output):
        reader.values[edge] = reader.pick(made, (i, 0) if isinstance(given, tuple) else (i,))


def _sum(reader: Reader, unit: Unit) -> None:
    """A Shortcut that is not quantised."""
    node = unit.nodes[0]
    channels = reader.view.shape(node.output[0])[1]
    activation = activation_of(reader, unit)
    layer = chips.Shortcut(channels, activation, last_layer=True, target_device=reader.device.name)
    reader.call(unit, layer, [reader.described(edge) for edge in node.input])


def _shortcut(reader: Reader, unit: Unit) -> None:
    node = unit.nodes[0]
    f = fields(node)
    layer = chips.Shortcut(
        reader.view.shape(node.output[0])[1],
        quantize=True,
        quantize_last_feature=f["is_output"],
        last_layer=f["is_output"],
        input_bitwidth=f["input_bitwidth"],
        output_bitwidth=f["output_bitwidth"],
        clip_max_value=f["clip_max_value"],
        target_device=reader.device.name,
    )
    lows = f["input_min_value"]
    given = [reader.described(edge, f["input_bitwidth"], low) for edge, low in zip(node.input, lows, strict=True)]
    reader.call(unit, layer, given, picked=() if layer.last_layer else (0,))


def _flatten(reader: Reader, unit: Unit) -> None:
    sizes = reader.view.array(unit.node("Reshape").input[1]).tolist()
    layer = chips.Flatten(sizes, reader.device.name)
    _passed(reader, unit, layer, reader.described(reader.inputs(unit)[0]))


def _focus(reader: Reader, unit: Unit) -> None:
    _passed(reader, unit, chips.Focus(reader.device.name), reader.described(reader.inputs(unit)[0]))


def _shuffle(reader: Reader, unit: Unit) -> None:
    layer = chips.Pixel_Shuffle(_attr(unit)["upscale_factor"], reader.device.name)
    _passed(reader, unit, layer, reader.described(reader.inputs(unit)[0]))


def _activation(reader: Reader, unit: Unit) -> None:
    """An activation of torch on real numbers."""
    layer = torch_module(reader, unit)
    if layer is None:
        raise FileFormatError("no layer of the conventions", given=[node.op_type for node in unit.nodes])
    reader.call(unit, layer, reader.values[reader.inputs(unit)[0]])


def _attr(unit: Unit) -> dict[str, Any]:
    attr: dict[str, Any] = json_object(attributes(unit.nodes[0])["op_attr"])["attr"]
    return attr


def _lstm(reader: Reader, unit: Unit) -> None:
    node = next(n for n in unit.nodes if n.op_type in ("QuantizeLSTMV2", "LSTMUntilFunction"))
    f, names = fields(node), list(node.input[1:])
    ways = 1 + f["bidirectional"]
    weights, states = names[: -2 * ways], names[-2 * ways :]
    pairs = [
        tuple(torch.tensor(reader.view.array(n)).reshape(1, -1) for n in states[2 * i : 2 * i + 2]) for i in range(ways)
    ]
    given: dict[str, Any] = {}
    for i, name in enumerate(("initial_state_fw", "initial_state_bw")[:ways]):
        given[name] = pairs[i] if f[name] else None
    options = {key: f[key] for key in ("num_layers", "bias", "bidirectional", "return_output_states", "use_squeeze")}
    options |= {key: f[key] for key in ("weight_bitwidth", "input_bitwidth", "output_bitwidth", "weight_factor")}
    layer = chips.LSTM(
        f["input_size"],
        f["hidden_size"],
        quantize=node.op_type == "QuantizeLSTMV2",
        clip_max_value=f["clip_max_value"],
        target_device=reader.device.name,
        **options,
        **given,
    )
    layer.QuantizeWeight.sequential = bool(reader.view.noted(unit.layer, "vendor_statistics", True))
    layer.QuantizeWeight.nearest = bool(reader.view.noted(unit.layer, "nearest_codes", False))
    keys = [f"{kind}_l{n}{s}" for n in range(f["num_layers"]) for s in layer.suffixes for kind in ("weight", "bias")]
    for key, name in zip(keys, weights, strict=True):
        if f["bias"] or key.startswith("weight"):
            fill(getattr(layer, key), reader.view.array(name))
    x = reader.described(reader.inputs(unit)[0], f["input_bitwidth"], f["input_min_value"])
    made = reader.call(unit, layer, x, picked=(0, 0))
    for i, edge in enumerate(node.output[1:]):
        reader.values[edge] = reader.pick(made, (i + 1,))


def _embedding(reader: Reader, unit: Unit) -> None:
    attr, q, edge = _attr(unit), _quantiser(unit), reader.inputs(unit)[0]
    options = {key: attr[key] for key in ("padding_idx", "first_layer", "multi_inputs")}
    layer = chips.Embedding(
        attr["num_embeddings"],
        attr["embedding_dim"],
        quantize=True,
        output_bitwidth=q["output_bitwidth"],
        pre_lstm_layer=bool(q["pre_lstm_layer"]),
        target_device=reader.device.name,
        **options,
    )
    set_clip(layer, clip_of(reader, unit))
    fill(layer.embedding.weight, reader.view.array(unit.node("Gather").input[0]))
    given = reader.described(edge) if attr["first_layer"] else reader.values[edge]
    reader.call(unit, layer, given, picked=(0,) if attr["first_layer"] else ())


def _attention(reader: Reader, unit: Unit) -> None:
    """SoftAttention and MILPoolAttention."""
    attr, q = _attr(unit), _quantiser(unit)
    options: dict[str, Any] = {"output_bitwidth": q.get("output_bitwidth", 32), "quantize": bool(q)}
    options |= {"target_device": reader.device.name, "clip_max_value": attr["clip_max_value"]}
    layer: Any
    if "input_size" in attr:
        layer = chips.SoftAttention(attr["input_size"], attr["hidden_size"], **options)
    else:
        layer = chips.MILPoolAttention(attr["hidden_size"], **options)
    for key, parameter in layer.named_parameters():
        if not key.startswith("QuantizeFeature."):
            fill(parameter, reader.view.array(f"{unit.layer}.{key}"))
    reader.call(unit, layer, reader.described(reader.inputs(unit)[0]), picked=(0,))


REGIONS: dict[str, Rule] = {
    "flatten": _flatten,
    "pixel_shuffle": _shuffle,
    "lstm": _lstm,
    "embedding": _embedding,
    "softattention": _attention,
    "milpoolattention": _attention,
}
"""Rules by the region that a unit begins with."""

_ALONE: dict[str, Rule] = {
    "MaxPool": _maxpool,
    "AveragePool": _mean,
    "GlobalAveragePool": _mean,
    "Upsample": _upsample,
    "MaxRoiPool": _regions_of_interest,
    "QuantizeShortcutInference": _shortcut,
    "Add": _sum,
    "Mul": _product,
    "Max": _greatest,
    "Concat": _route,
    "Split": _split,
    "Transpose": _focus,
    "Reshape": _flatten,
    "QuantizeFeature": _to_feature,
    "Pad": _pad,
}


def alone(unit: Unit) -> Rule:
    """The rule of a unit that no other table knows: by its node without a slash in its name, or its first."""
    if unit.nodes[-1].name == f"{unit.name}/activation" and all(node.name != unit.name for node in unit.nodes):
        return _activation
    for kind, rule in _ALONE.items():
        if (unit.has(kind) and unit.part("gate_div") is None) or (unit.has(kind) and unit.nodes[0].op_type == kind):
            return rule
    return _activation

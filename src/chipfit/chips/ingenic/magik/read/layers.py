"""Reading layers with weights, and normalisations, back from their nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.functions import found
from chipfit.chips.ingenic.magik.graph import decimal
from chipfit.chips.ingenic.magik.read.reader import Built, Reader, Unit, fill, learned
from chipfit.chips.ingenic.magik.rules import UNNORMALISED_EPSILON
from chipfit.chips.ingenic.magik.view import attributes, fields


def _normalisation(block: Any, reader: Reader, names: list[str], epsilon: float) -> None:
    """Gain, shift, mean and variance."""
    if block is not None:
        bn = block.batch_norm
        for tensor, name in zip((bn.weight, bn.bias, bn.running_mean, bn.running_var), names, strict=True):
            fill(tensor, reader.view.array(name))
        block.eps = bn.eps = epsilon


def _slopes(reader: Reader, name: str, shared: Any = None) -> nn.Module:
    """A PReLU; the name of its constant tells the operator's from torch's."""
    values = reader.view.array(name)
    if isinstance(shared, str):  # one slope, which the file repeats for each channel
        name, values = shared, values[:1]
    if name.endswith(".prelu.weight"):
        own = chips.PReLU(values.size, "Txx" if reader.device.family == "T02" else reader.device.name)
        fill(own.prelu.weight, values)
        return own
    plain = nn.PReLU(values.size)
    fill(plain.weight, values)
    return plain


def _named_activation(reader: Reader, unit: Unit, name: str, alpha: str) -> nn.Module | None:
    """The activation of a fused node."""
    if name == "Linear":
        return chips.Linear()
    if name == "Hsigmoid":
        return chips.Hsigmoid(1)
    if name == "PRelu":
        return _slopes(reader, alpha, reader.view.noted(unit.layer, "shared_slope", None))
    if name == "LeakyRelu":
        slope = float(reader.view.array(alpha).flat[0])
        return chips.LeakyReLU(reader.view.noted(unit.layer, "negative_slope", decimal(slope)))
    return None


def activation_of(reader: Reader, unit: Unit) -> nn.Module | None:
    """The activation that stands as nodes of its own."""
    if unit.part("gate_div") is not None:
        offset, limit = (reader.view.array(f"{unit.name}/{name}").item() for name in ("offset", "limit"))
        swish = chips.Hswish(1)
        gate = swish.sigmoid if unit.part("gate_mul") is not None else chips.Hsigmoid(1)
        gate.offset_value = reader.view.noted(unit.layer, "offset_value", decimal(offset))
        gate.clip_max_value = reader.view.noted(unit.layer, "gate_clip", decimal(limit))
        return swish if unit.part("gate_mul") is not None else gate
    node = unit.part("activation")
    if node is None:
        return None
    a = attributes(node)
    if node.op_type == "PRelu":
        return _slopes(reader, node.input[1])
    if node.op_type == "LeakyRelu":
        return nn.LeakyReLU(reader.view.noted(unit.layer, "negative_slope", decimal(a["alpha"])))
    return nn.Softmax(-1) if node.op_type == "Softmax" else _module_of(reader, [node])


def _module_of(reader: Reader, nodes: list[Any]) -> nn.Module | None:
    for recipe, options in found(reader.view, nodes, nodes[0].input[0]):
        if recipe.module is not None:
            return recipe.module(**options)
    return None


def torch_module(reader: Reader, unit: Unit) -> nn.Module | None:
    """The module of torch that a unit is."""
    return activation_of(reader, unit) if unit.has("Softmax") else _module_of(reader, unit.nodes)


def clip_of(reader: Reader, unit: Unit) -> float:
    """The clip value of a feature quantiser that is a node of its own."""
    value = attributes(unit.node("QuantizeFeature"))["clip_max_value"]
    return float(reader.view.noted(unit.layer, "clip", decimal(value)))


def set_clip(layer: Any, clip: float) -> None:
    """The clip value of a layer whose constructor does not take it."""
    if not isinstance(layer.QuantizeFeature.clip_max_value, torch.Tensor):
        layer.QuantizeFeature.clip_max_value = clip


def _fill_weights(reader: Reader, unit: Unit, inner: Any, weight: str, bias: str | None) -> None:
    fill(inner.weight, reader.view.array(weight))
    if bias is not None:
        fill(inner.bias, reader.view.array(bias))
    inner.QuantizeWeight.sequential = bool(reader.view.noted(unit.layer, "vendor_statistics", True))
    inner.QuantizeWeight.nearest = bool(reader.view.noted(unit.layer, "nearest_codes", False))


def _fused_options(reader: Reader, unit: Unit, node: Any) -> dict[str, Any]:
    f = fields(node)
    return {
        "activation_fn": _named_activation(reader, unit, f["activate_name"], node.input[7]),
        "enable_batch_norm": f["epsilon"] != UNNORMALISED_EPSILON,
        "enable_bias": not node.input[2].startswith("zeros["),
        "quantize": True,
        "quantize_last_feature": f["is_output"],
        "last_layer": f["is_output"],
        "weight_bitwidth": f["weight_bitwidth"],
        "input_bitwidth": f["input_bitwidth"],
        "output_bitwidth": f["output_bitwidth"],
        "clip_max_value": f["clip_max_value"],
        "weight_factor": f["weight_factor"],
        "target_device": reader.device.name,
        "auto_bitwidth": False,
        "auto_threshold": learned(reader, unit.layer),
        "pre_lstm_layer": f["pre_lstm_layer"],
    }


def _finish_fused(reader: Reader, unit: Unit, layer: Any, inner: str, norm: str) -> Built:
    """Fill a layer from its fused node."""
    node = unit.nodes[-1]
    f = fields(node)
    bias = None if node.input[2].startswith("zeros[") else node.input[2]
    _fill_weights(reader, unit, getattr(layer, inner), node.input[1], bias)
    _normalisation(getattr(layer, norm), reader, list(node.input[3:7]), f["epsilon"])
    x = reader.described(reader.inputs(unit)[0], f["input_bitwidth"], f["input_min_value"])
    return Built(layer, x, () if layer.last_layer else (0,))


def fused_convolution(reader: Reader, unit: Unit) -> Built:
    """Conv2D, DepthwiseConv2D, Conv1D."""
    node = unit.nodes[-1]
    f, options = fields(node), _fused_options(reader, unit, node)
    p, dilation = f["conv_param"], f["conv_param"]["dilations"][0]
    options |= {"kernel_h": p["kernel_size"][0], "kernel_w": p["kernel_size"][1], "dilation": dilation}
    same = 1 if p["padding"] == "SAME" else 0
    options |= {"stride": tuple(p["strides"]), "padding": tuple(p["pads"][:2]) if dilation > 1 else same}
    if f["is_dwconv"]:
        layer: Any = chips.DepthwiseConv2D(p["input_channels"], **options)
    else:
        flat, first = node.op_type == "QuantizeConv1DInference", f["is_input"]
        options |= {"groups": p["groups"], "first_layer": first, "conv1d": flat, "is_focus": unit.has("Transpose")}
        layer = chips.Conv2D(p["input_channels"], p["output_channels"], **options)
    return _finish_fused(reader, unit, layer, "Conv2d", "BatchNorm2d")


def fused_full_connected(reader: Reader, unit: Unit) -> Built:
    """FullConnected."""
    node = unit.nodes[-1]
    f, (out, inputs) = fields(node), reader.view.shape(node.input[1])
    options = {**_fused_options(reader, unit, node), "data_format": f["data_format"], "first_layer": f["is_input"]}
    return _finish_fused(reader, unit, chips.FullConnected(inputs, out, **options), "Linear", "BatchNorm1d")


def _parts_options(reader: Reader, unit: Unit) -> dict[str, Any]:
    """Arguments of a layer written in parts."""
    a = attributes(unit.node("QuantizeWeight"))
    options: dict[str, Any] = {"last_layer": True, "output_bitwidth": 32}
    if unit.has("QuantizeFeature"):
        q = attributes(unit.node("QuantizeFeature"))
        options = {"output_bitwidth": q["output_bitwidth"], "clip_max_value": clip_of(reader, unit)}
        options["pre_lstm_layer"] = bool(q["pre_lstm_layer"])
    return {
        **options,
        "activation_fn": activation_of(reader, unit),
        "enable_batch_norm": unit.has("BatchNormalization"),
        "quantize": True,
        "weight_bitwidth": a["weight_bitwidth"],
        "input_bitwidth": reader.bits(reader.inputs(unit)[0]),
        "weight_factor": reader.view.noted(unit.layer, "weight_factor", decimal(a["factor"])),
        "target_device": reader.device.name,
        "auto_bitwidth": False,
        "auto_threshold": learned(reader, unit.layer),
    }


def _finish_parts(reader: Reader, unit: Unit, layer: Any, inner: str, norm: str, bias: str | None) -> Built:
    weight = unit.node("QuantizeWeight").input[0]
    _fill_weights(reader, unit, getattr(layer, inner), weight, bias)
    _fill_parts_norm(reader, unit, getattr(layer, norm))
    return Built(layer, reader.described(reader.inputs(unit)[0]), () if layer.last_layer else (0,))


def _fill_parts_norm(reader: Reader, unit: Unit, block: Any) -> None:
    if block is not None:
        node = unit.node("BatchNormalization")
        epsilon = reader.view.noted(unit.layer, "epsilon", decimal(attributes(node)["epsilon"]))
        _normalisation(block, reader, [unit.node("aweight").input[0], *node.input[2:]], epsilon)


def in_parts(reader: Reader, unit: Unit) -> Built:
    """A layer with weights written in parts."""
    weight, edge = reader.view.shape(unit.node("QuantizeWeight").input[0]), reader.inputs(unit)[0]
    options, first = _parts_options(reader, unit), edge in reader.images
    if unit.has("MatMul"):
        add = unit.part("add")
        options |= {"enable_bias": add is not None, "first_layer": first}
        layer: Any = chips.FullConnected(weight[1], weight[0], **options)
        return _finish_parts(reader, unit, layer, "Linear", "BatchNorm1d", None if add is None else add.input[1])
    node = unit.node("Conv")
    a, bias = attributes(node), node.input[2] if len(node.input) > 2 else None
    dilation, pads = a["dilations"][0], [0, 0]
    if unit.part("pad") is not None:
        pads = list(attributes(unit.part("pad"))["pads"][2:4]) if dilation > 1 else [1, 1]
    options |= {"kernel_h": weight[2], "kernel_w": weight[3], "stride": tuple(a["strides"]), "dilation": dilation}
    options |= {"padding": tuple(pads), "enable_bias": bias is not None}
    channels = weight[1] * a["group"]
    if a["group"] == channels == weight[0] > 1 and not first:
        layer = chips.DepthwiseConv2D(channels, **options)
    else:
        if unit.has("QuantizeFeature") and any(r.op_type == "NOp" for r in reader.view.readers[unit.output]):
            options |= {"last_layer": True, "quantize_last_feature": True}
        options |= {"groups": a["group"], "first_layer": first, "conv1d": unit.has("Unsqueeze")}
        layer = chips.Conv2D(channels, weight[0], is_focus=unit.part("focus") is not None, **options)
    return _finish_parts(reader, unit, layer, "Conv2d", "BatchNorm2d", bias)


def fused_batch_norm(reader: Reader, unit: Unit) -> Built:
    """BatchNorm."""
    node = unit.nodes[-1]
    f, edge = fields(node), node.input[0]
    activation = None
    if f["activate_name"] not in ("ReluX", "Linear"):  # the sign is that of the input
        activation = _named_activation(reader, unit, f["activate_name"], node.input[5])
    layer = _batch_norm(reader, unit, edge, activation, f["clip_max_value"], f["clip_min_value"] < 0)
    _normalisation(layer.BatchNorm2d, reader, list(node.input[1:5]), f["epsilon"])
    return Built(layer, reader.described(edge, f["input_bitwidth"], f["input_min_value"]), (0,))


def batch_norm_in_parts(reader: Reader, unit: Unit) -> Built:
    """BatchNorm with an activation that a fused node has no name for."""
    edge, low = reader.inputs(unit)[0], attributes(unit.node("QuantizeFeature"))["clip_min_value"]
    layer = _batch_norm(reader, unit, edge, activation_of(reader, unit), clip_of(reader, unit), low < 0)
    _fill_parts_norm(reader, unit, layer.BatchNorm2d)
    return Built(layer, reader.described(edge), (0,))


def _batch_norm(reader: Reader, unit: Unit, edge: str, activation: Any, clip: float, signed: bool) -> chips.BatchNorm:
    layer = chips.BatchNorm(
        reader.view.shape(edge)[1],
        activation,
        quantize=True,
        first_layer=edge in reader.images,
        input_bitwidth=reader.bits(edge),
        clip_max_value=clip,
        auto_threshold=learned(reader, unit.layer),
        target_device=reader.device.name,
    )
    layer.signed = signed
    return layer


KINDS: dict[str, Callable[[Reader, Unit], Built]] = {
    "QuantizeConv2DInference": fused_convolution,
    "QuantizeConv1DInference": fused_convolution,
    "QuantizeFullconnectedInference": fused_full_connected,
    "QuantizeBatchNormInference": fused_batch_norm,
    "QuantizeWeight": in_parts,
    "BatchNormalization": batch_norm_in_parts,
}
"""Rules by a node that tells the layer."""

"""Reading operators without weights, and plain torch, from files of the vendor's kit."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.graph import decimal
from chipfit.chips.ingenic.magik.kit.builder import Kit, Value, check_size
from chipfit.chips.ingenic.magik.kit.layers import Rule, border, passed
from chipfit.chips.ingenic.magik.kit.source import marker, sliced
from chipfit.chips.ingenic.magik.kit.tails import Quantised, all_fields, quantiser_behind
from chipfit.chips.ingenic.magik.view import attributes
from chipfit.chips.ingenic.operators.bridges import ToFeature
from chipfit.errors import FileFormatError


def _quantised_so(made: Value, q: Quantised | None, clip: float | None = 1.0) -> None:
    """Refuse a quantiser that the operator does not have."""
    if q is None:
        return
    bits, signed = made.sample[1], made.sample[2] < 0
    if (q.bits, q.signed) != (bits, signed) or (clip is not None and q.clip != clip):
        raise FileFormatError(
            "the quantiser is not the operator's",
            given=f"{q.bits} bits, clip {q.clip}, {'signed' if q.signed else 'unsigned'}",
            allowed=f"{bits} bits, clip {clip or q.clip}, {'signed' if signed else 'unsigned'}",
        )


def _two(kit: Kit, node: Any, function: Callable[..., Any]) -> bool:
    """Read a function of real numbers, one of which may be a constant; False where both are features."""
    constants = [kit.source.constants.get(edge) for edge in node.input]
    if all(constant is None for constant in constants) and any(kit.at(edge).tagged for edge in node.input):
        return False
    args: list[Any] = []
    for edge, constant in zip(node.input, constants, strict=True):
        if constant is None and kit.at(edge).tagged:
            raise FileFormatError("a constant is added to, or multiplies, quantised codes")
        if constant is not None and constant.size != 1:
            raise FileFormatError("a function with a constant of several numbers", given=constant.shape)
        args.append(kit.at(edge) if constant is None else float(constant.item()))
    kit.values[node.output[0]] = kit.function(function, *args)
    return True


def added(kit: Kit, node: Any) -> None:
    """Shortcut: a sum of two features; else plain torch."""
    if _two(kit, node, operator.add):
        return
    x = [kit.at(edge) for edge in node.input]
    channels = x[0].tensor.shape[1]
    edge, q = quantiser_behind(kit, node.output[0])
    if q is None:
        layer = chips.Shortcut(channels, None, last_layer=True, target_device=kit.device)
        kit.values[edge] = kit.call("", "shortcut", layer, x)
        return
    _shortcut(kit, edge, x, q)


def _shortcut(kit: Kit, edge: str, x: list[Value], q: Quantised) -> None:
    layer = chips.Shortcut(
        x[0].tensor.shape[1],
        quantize=True,
        input_bitwidth=x[0].bits,
        output_bitwidth=q.bits,
        clip_max_value=q.clip,
        target_device=kit.device,
    )
    made = kit.call("", "shortcut", layer, x)
    _quantised_so(made, q, None)
    kit.values[edge] = made


def fused_shortcut(kit: Kit, node: Any) -> None:
    """Shortcut as one node."""
    _shortcut(kit, node.output[0], [kit.at(edge) for edge in node.input], Quantised.of(kit, node))


def multiplied(kit: Kit, node: Any) -> None:
    """Mul of two features; else plain torch."""
    if _two(kit, node, operator.mul):
        return
    x = [kit.at(edge) for edge in node.input]
    edge, q = quantiser_behind(kit, node.output[0])
    channels = max(value.tensor.shape[1] for value in x)
    bits = max(value.bits for value in x)
    own = q is not None and q.bits == bits  # that of a squeeze-and-excite block has the block's width
    options: dict[str, Any] = {"quantize": own, "last_layer": not own, "target_device": kit.device}
    made = kit.call("", "mul", chips.Mul(channels, **options), x)
    if q is not None and not own:
        made = kit.call("", "quantise", ToFeature(q.bits, q.signed, q.clip, target_device=kit.device), made)
    elif q is not None:
        _quantised_so(made, q)
    kit.values[edge] = made


def greatest(kit: Kit, node: Any) -> None:
    """Max of two."""
    layer = chips.Max(kit.device)
    kit.values[node.output[0]] = kit.call("", "max", layer, [kit.at(edge) for edge in node.input])


def _window(kit: Kit, node: Any) -> tuple[Value, dict[str, Any]]:
    a = attributes(node)
    kernel, stride = tuple(a["kernel_shape"]), tuple(a.get("strides", (1, 1)))
    if len(kernel) != 2 or a.get("ceil_mode", 0):
        raise FileFormatError("a window of another kind", given=kernel, allowed="height and width, ceil_mode 0")
    if any(a.get("pads", ())):
        raise FileFormatError("the window has a border of its own", given=a["pads"], allowed="a Pad node before it")
    x, padding = border(kit, node.input[0], kernel, stride, 1)
    return x, {"kernel_h": kernel[0], "kernel_w": kernel[1], "stride": stride, "padding": padding}


def largest(kit: Kit, node: Any) -> None:
    """Maxpool2D."""
    x, options = _window(kit, node)
    layer = chips.Maxpool2D(**options, target_device=kit.device)
    kit.values[node.output[0]] = kit.call("", "maxpool", layer, x)


def _mean(kit: Kit, edge: str, q: Quantised | None, layer: Any, x: Value) -> None:
    layer.signed = q is not None and q.signed
    kit.values[edge] = made = kit.call("", "mean", layer, x)
    layer.signed = q is not None and q.signed  # which the run on zeros may have set
    if q is not None and (q.clip != 1.0 or q.bits != made.sample[1]):
        raise FileFormatError("the quantiser is not the mean's", given=f"{q.bits} bits, clip {q.clip}")


def average(kit: Kit, node: Any) -> None:
    """Avgpool2D."""
    x, options = _window(kit, node)
    edge, q = quantiser_behind(kit, node.output[0])
    options |= {"quantize": x.bits < 32, "input_bitwidth": x.bits, "target_device": kit.device}
    _mean(kit, edge, q, chips.Avgpool2D(x.tensor.shape[1], **options), x)


def global_mean(kit: Kit, node: Any) -> None:
    """AdaptiveAvgpool2D, whose axes may go before the quantiser."""
    a, x = attributes(node), kit.at(node.input[0])
    if node.op_type == "ReduceMean" and (sorted(axis % 4 for axis in a.get("axes", ())) != [2, 3]):
        raise FileFormatError("a mean of other axes", given=a.get("axes"), allowed="[2, 3]")
    edge, keep = node.output[0], bool(a.get("keepdims", 1))
    behind = kit.source.behind(edge)
    if keep and len(behind) == 1 and behind[0].op_type in ("Squeeze", "Reshape"):
        quantisers = [node.op_type for node in kit.source.behind(behind[0].output[0])]
        if quantisers == ["QuantizeFeature"]:
            kit.take(behind)
            edge, keep = behind[0].output[0], False
    edge, q = quantiser_behind(kit, edge)
    options: dict[str, Any] = {"keepdim": keep, "last_layer": q is None, "target_device": kit.device}
    options |= {"quantize": x.bits < 32, "input_bitwidth": x.bits}
    _mean(kit, edge, q, chips.AdaptiveAvgpool2D(x.tensor.shape[1], **options), x)


def enlarged(kit: Kit, node: Any) -> None:
    """Unpool2D."""
    a, x = attributes(node), kit.at(node.input[0])
    scales = kit.source.constants[node.input[1]].tolist() if len(node.input) > 1 else list(a["scales"])
    mode = {"linear": "bilinear"}.get(str(a.get("mode", "nearest")), str(a.get("mode", "nearest")))
    if len(scales) != 4 or scales[:2] != [1.0, 1.0] or any(scale != int(scale) for scale in scales):
        raise FileFormatError("the scales are no whole numbers of the last two axes", given=scales)
    check_size(x.tensor.numel() * math.prod(scales))
    options: dict[str, Any] = {"quantize": x.bits < 32, "last_layer": mode == "bilinear", "target_device": kit.device}
    layer = chips.Unpool2D(int(scales[2]), int(scales[3]), mode, **options)
    kit.values[node.output[0]] = kit.call("", "unpool", layer, x)


def regions_of_interest(kit: Kit, node: Any) -> None:
    """RoIPooling."""
    a = attributes(node)
    shape, scale = tuple(a["pooled_shape"]), decimal(a.get("spatial_scale", 1.0))
    layer = chips.RoIPooling(shape, scale, kit.device)
    args = [kit.at(node.input[0]), kit.real(kit.at(node.input[1]))]
    kit.values[node.output[0]] = kit.call("", "roi_pooling", layer, *args)


def joined(kit: Kit, node: Any) -> None:
    """Route; of other axes or of real numbers plain torch."""
    axis, x = attributes(node)["axis"], [kit.at(edge) for edge in node.input]
    check_size(sum(value.tensor.numel() for value in x))
    if axis == 1 and all(value.tagged for value in x):
        layer = chips.Route(kit.device)
        kit.values[node.output[0]] = kit.call("", "route", layer, x)
    elif not any(value.tagged for value in x):
        kit.values[node.output[0]] = kit.function(torch.cat, x, axis)
    else:
        raise FileFormatError("features are joined along another axis, or with real numbers", given=axis, allowed="1")


def split(kit: Kit, node: Any) -> None:
    """Channel_Split; of other axes or of real numbers plain torch."""
    a, x = attributes(node), kit.at(node.input[0])
    sizes, axis = list(a["split"]), a.get("axis", 0)
    if x.tagged and axis == 1 and len(x.sample) == 3:
        made = kit.call("", "split", chips.Channel_Split(sizes, kit.device), x)
    elif not x.tagged:
        made = kit.function(torch.split, x, sizes, axis)
    else:
        raise FileFormatError("a feature is split along another axis", given=axis, allowed="1")
    for i, edge in enumerate(node.output):
        kit.values[edge] = kit.part(made, i)


def reshaped(kit: Kit, node: Any) -> None:
    """Flatten; the batch stays open."""
    x = kit.at(node.input[0])
    sizes = [int(size) for size in kit.source.constants[node.input[1]]]
    before = x.tensor.shape
    sizes = [before[i] if size == 0 and i < len(before) else size for i, size in enumerate(sizes)]
    total = math.prod(before)
    if sizes and -1 in sizes:
        sizes[sizes.index(-1)] = -(-total // max(1, -math.prod(sizes)))
    if math.prod(sizes) != total:
        raise FileFormatError("the shape does not fit", given=sizes, allowed=f"{total} numbers")
    if sizes[:1] == [before[0]]:
        sizes[0] = -1
    kit.values[node.output[0]] = _flattened(kit, sizes, x)


def _flattened(kit: Kit, sizes: list[int], x: Value) -> Value:
    if x.tagged and len(x.sample) == 3:
        return kit.call("", "flatten", chips.Flatten(sizes, kit.device), x)
    return kit.moved(x, torch.reshape, tuple(sizes))


def shuffled(kit: Kit, node: Any) -> None:
    """Pixel_Shuffle: whatever stands between its markers."""
    nodes = kit.source.nodes
    first = next(i for i, other in enumerate(nodes) if other is node)
    last = next(i for i, n in enumerate(nodes[first:], first) if marker(n) == "pixel_shuffle_end")
    sizes = [kit.source.constants[n.input[1]] for n in nodes[first:last] if n.op_type == "Reshape"]
    x = kit.at(node.input[0])
    factor = math.isqrt(x.tensor.shape[1] // int(sizes[-1][1])) if sizes and len(sizes[-1]) == 4 else 0
    layer = chips.Pixel_Shuffle(factor, kit.device)
    kit.take(nodes[first : last + 1])
    kit.values[nodes[last].output[0]] = kit.call("", "pixel_shuffle", layer, x)


def turned(kit: Kit, node: Any) -> None:
    """Another order of axes; that of a weight belongs to its product."""
    maker = kit.source.makers.get(node.input[0])
    if maker is None or maker.op_type != "QuantizeWeight":
        order = tuple(attributes(node)["perm"])
        kit.values[node.output[0]] = kit.moved(kit.at(node.input[0]), torch.permute, order)


def _axes(kit: Kit, node: Any) -> None:
    """Axes of one element, put in or taken out."""
    x = kit.at(node.input[0])
    shape = list(x.tensor.shape)
    axes = sorted(attributes(node)["axes"])
    if node.op_type == "Unsqueeze":
        for axis in axes:
            shape.insert(axis, 1)
    else:
        gone = {axis % len(shape) for axis in axes}
        shape = [size for axis, size in enumerate(shape) if axis not in gone]
    if 0 in axes:
        raise FileFormatError("the batch is moved", given=axes)
    kit.values[node.output[0]] = kit.moved(x, torch.reshape, (-1, *shape[1:]))


def cut(kit: Kit, node: Any) -> None:
    """A part of each axis."""
    a, x = attributes(node), kit.at(node.input[0])
    index = sliced(a, x.tensor.dim())
    if index[0] != slice(None):
        raise FileFormatError("a part of the batch is taken", given=a["starts"])
    kit.values[node.output[0]] = kit.moved(x, operator.getitem, index)


def requantised(kit: Kit, node: Any) -> None:
    """A quantiser of its own: of real numbers."""
    x, q = kit.at(node.input[0]), Quantised.of(kit, node)
    if x.tagged:
        raise FileFormatError("a feature is quantised once more")
    layer = ToFeature(q.bits, q.signed, q.clip, target_device=kit.device)
    kit.values[node.output[0]] = kit.call("", "quantise", layer, x)


def _function(function: Callable[..., Any], **options: tuple[str, Any]) -> Rule:
    """A rule for a function of real numbers; options by torch's name: attribute and what it is otherwise."""

    def rule(kit: Kit, node: Any) -> None:
        x, f = kit.at(node.input[0]), all_fields(node)
        if x.tagged:
            raise FileFormatError(f"{node.op_type} stands on quantised codes")
        given = {name: f.get(attribute, other) for name, (attribute, other) in options.items()}
        given = {name: decimal(v) if isinstance(v, float) else v for name, v in given.items()}
        kit.values[node.output[0]] = kit.function(function, x, **given)

    return rule


def _flatten(kit: Kit, node: Any) -> None:
    x = kit.at(node.input[0])
    if attributes(node).get("axis", 1) != 1:
        raise FileFormatError("Flatten of another axis", given=attributes(node)["axis"], allowed="1")
    kit.values[node.output[0]] = _flattened(kit, [-1, math.prod(x.tensor.shape[1:])], x)


def _real(function: Callable[..., Any], kit: Kit, node: Any) -> None:
    """A function of two real numbers."""
    if not _two(kit, node, function):
        raise FileFormatError(f"{node.op_type} stands on quantised codes")


def _alone(kit: Kit, node: Any) -> None:
    raise FileFormatError("an activation with parameters stands behind no layer that it belongs to")


MOVES: dict[str, Rule] = {
    "PRelu": _alone,
    "Add": added,
    "Mul": multiplied,
    "Max": greatest,
    "MaxPool": largest,
    "AveragePool": average,
    "GlobalAveragePool": global_mean,
    "ReduceMean": global_mean,
    "Upsample": enlarged,
    "MaxRoiPool": regions_of_interest,
    "Concat": joined,
    "Split": split,
    "Reshape": reshaped,
    "Flatten": _flatten,
    "Transpose": turned,
    "Squeeze": _axes,
    "Unsqueeze": _axes,
    "Slice": cut,
    "QuantizeFeature": requantised,
    "QuantizeShortcutInference": fused_shortcut,
    "Sigmoid": _function(torch.sigmoid),
    "Tanh": _function(torch.tanh),
    "Relu": _function(torch.relu),
    "Exp": _function(torch.exp),
    "Clip": _function(torch.clamp, min=("min", None), max=("max", None)),
    "LeakyRelu": _function(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "Softmax": _function(torch.softmax, dim=("axis", 1)),
    "Sub": partial(_real, operator.sub),
    "Div": partial(_real, operator.truediv),
    "Identity": passed,
    "Dropout": passed,
}
"""Rules by kind of node."""

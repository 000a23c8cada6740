"""How the operators without weights, and what only moves data, become Magik nodes."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.functions import RECIPES, module_function
from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph, Tag, Written
from chipfit.chips.ingenic.magik.rules import feature_var
from chipfit.chips.ingenic.magik.write.activations import add_activation
from chipfit.chips.ingenic.operators.features import Feature, pad_value
from chipfit.chips.ingenic.operators.movement import focus as focus_values
from chipfit.chips.ingenic.operators.padding import same_pads
from chipfit.errors import UnsupportedError


def carry(feature: Feature, edge: Edge) -> Written:
    """The same description around another edge, or the bare edge."""
    return (edge, feature.bits, feature.minimum) if feature.tagged else edge


def reshaped(g: MagikGraph, name: str, x: Edge, sizes: Any) -> Edge:
    """A Reshape; where its sizes follow from the batch, `writer.py` replaces the batch's by -1."""
    return g.add("Reshape", name, x, g.shape(name, sizes), sample=x.sample.reshape(tuple(sizes)), tag=x.tag)


def transposed(g: MagikGraph, name: str, x: Edge, order: Any) -> Edge:
    """A Transpose."""
    return g.add("Transpose", name, x, sample=x.sample.permute(tuple(order)), tag=x.tag, perm=[*order])


def padded(g: MagikGraph, name: str, x: Edge, sides: tuple[int, ...], value: float) -> Edge:
    """A Pad, with widths as torch takes them: from the last axis backwards; nothing where all are 0."""
    if not any(sides):
        return x
    sample = F.pad(x.sample, sides, value=value)
    unpadded = [0] * (x.sample.dim() - len(sides) // 2)
    around = [*unpadded, *sides[-2::-2], *unpadded, *sides[::-2]]
    return g.add("Pad", name, x, sample=sample, tag=x.tag, mode="constant", pads=around, value=value)


# --- pooling


def _window(g: MagikGraph, unit: str, layer: Any, x: Edge, feature: Feature) -> Edge:
    if not layer.same:
        return x
    sides = same_pads(x.sample.shape[2], x.sample.shape[3], layer.kernel, layer.stride)
    check_described(x, feature)
    return padded(g, f"{unit}/pad", x, sides, pad_value(feature, g.target))


def check_described(x: Edge, feature: Feature) -> None:
    """Refuse to pad codes whose sign their reader does not know."""
    if x.tag is not None and x.tag.signed != feature.signed:
        raise UnsupportedError("a bare tensor of a signed feature is padded", hint="Hand on the whole tuple.")


def maxpool(g: MagikGraph, path: str, layer: chips.Maxpool2D, inputs: Written) -> Written:
    """Maxpool2D."""
    x, feature = g.read_moved(inputs, "Maxpool2D")
    unit = g.unit(path)
    x = _window(g, unit, layer, x, feature)
    y = F.max_pool2d(x.sample, layer.kernel, layer.stride)
    sizes: dict[str, Any] = {"kernel_shape": [*layer.kernel], "strides": [*layer.stride], "pads": [0] * 4}
    return carry(feature, g.add("MaxPool", unit, x, sample=y, tag=x.tag, **sizes))


def _mean(g: MagikGraph, unit: str, layer: Any, y: Edge, feature: Feature) -> Written:
    """The quantiser behind a mean, or nothing behind the last."""
    last = getattr(layer, "last_layer", False)
    if not layer.quantize and (feature.bits < 32 or not last):
        raise UnsupportedError("the mean is not quantised", allowed="quantize=True")
    if last:
        return y
    if feature.signed != layer.signed:
        raise UnsupportedError(
            "the example has no negative value here, so the layer takes its signed input for unsigned"
            if feature.signed
            else "the layer has seen negative values, but its input is described as unsigned",
            hint="Export the network with an example that reaches below zero here, and hand on whole tuples.",
        )
    y = g.quantise(f"{unit}/quantize_feature", y, Tag(feature.bits, layer.signed), 1.0)
    return y, feature.bits, -1.0 if layer.signed else 0.0


def avgpool(g: MagikGraph, path: str, layer: chips.Avgpool2D, inputs: Written) -> Written:
    """Avgpool2D."""
    x, feature = g.read(inputs, "Avgpool2D", layer.input_bitwidth)
    unit = g.unit(path)
    x = _window(g, unit, layer, x, feature)
    y = F.avg_pool2d(x.sample, layer.kernel, layer.stride)
    sizes: dict[str, Any] = {"kernel_shape": [*layer.kernel], "strides": [*layer.stride], "pads": [0] * 4}
    return _mean(g, unit, layer, g.add("AveragePool", unit, x, sample=y, **sizes), feature)


def adaptive_avgpool(g: MagikGraph, path: str, layer: chips.AdaptiveAvgpool2D, inputs: Written) -> Written:
    """AdaptiveAvgpool2D."""
    x, feature = g.read(inputs, "AdaptiveAvgpool2D", layer.input_bitwidth)
    unit = g.unit(path)
    y = g.add("GlobalAveragePool", unit, x, sample=x.sample.mean(dim=(2, 3), keepdim=True))
    if not layer.keepdim:
        y = g.add("Squeeze", f"{unit}/squeeze", y, sample=y.sample.flatten(1), axes=[2, 3])
    return _mean(g, unit, layer, y, feature)


def unpool(g: MagikGraph, path: str, layer: chips.Unpool2D, inputs: Written) -> Written:
    """Unpool2D: Upsample with the vendor's mode "zero", or the standard's "nearest" and "linear"."""
    x, feature = g.read_moved(inputs, "Unpool2D")
    unit = g.unit(path)
    scales = g.constant(f"{path}/scales", [1.0, 1.0, *layer.kernel])
    result = layer((x.sample, feature.bits, feature.minimum))
    y = result if isinstance(result, Tensor) else result[0]
    attributes: dict[str, Any] = {"mode": {"bilinear": "linear"}.get(layer.fill, layer.fill)}
    if layer.fill == "zero":
        filled = layer.quantize and not getattr(layer, "floating", False)
        attributes |= {"fill_value": pad_value(feature, g.target) if filled else 0.0, "target_device": g.target.name}
    made = g.add("Upsample", unit, x, scales, sample=y, tag=None if layer.last_layer else x.tag, **attributes)
    return made if layer.last_layer else carry(feature, made)


def roi_pooling(g: MagikGraph, path: str, layer: chips.RoIPooling, inputs: Written, rois: Edge) -> Written:
    """RoIPooling: MaxRoiPool; whether each region is read from its own image is noted beside the graph."""
    x, feature = g.read_moved(inputs, "RoIPooling")
    if layer.per_image:
        g.layers.setdefault(path, {})["per_image"] = True
    y = layer(x.sample, rois.sample)
    g.exact(path, "spatial_scale", layer.spatial_scale)
    shape: dict[str, Any] = {"pooled_shape": [*layer.output_size], "spatial_scale": layer.spatial_scale}
    return carry(feature, g.add("MaxRoiPool", g.unit(path), x, rois, sample=y, tag=x.tag, **shape))


# --- two features


def shortcut(g: MagikGraph, path: str, layer: chips.Shortcut, inputs: Written) -> Written:
    """Shortcut."""
    (a, first), (b, second) = g.read_list(inputs, "Shortcut", layer.input_bitwidth, count=2, same_sign=False)
    unit, negative, bits = g.unit(path), first.signed or second.signed, layer.output_bitwidth
    result = layer([(e.sample, f.bits, f.minimum) for e, f in ((a, first), (b, second))])
    y = result if isinstance(result, Tensor) else result[0]
    if not layer.quantizes_output:
        made = add_activation(g, path, unit, layer.activation_fn, g.add("Add", unit, a, b, sample=y))
    else:
        bits = first.bits if layer.device.family == "TXX" else bits
        clip = min(layer.clip_max_value, 2.0)  # of more than 2, 2 counts
        fields = {
            "input_bitwidth": first.bits,
            "output_bitwidth": bits,
            "clip_min_value": -clip if negative else 0.0,
            "clip_max_value": clip,
            "feature_var": feature_var(first.bits, negative),
            "input_min_value": [first.minimum, second.minimum],
            "sc_input_same_clip": first.signed == second.signed,
            "is_output": layer.last_layer,
            "target_device": g.target.name,
            "data_format": "NCHW",
            "input_tensor_name": f"{a.name},{b.name}",
            "output_tensor_name": unit,
        }
        text, tag = json.dumps(fields), Tag(bits, negative)
        made = g.add("QuantizeShortcutInference", unit, a, b, sample=y, tag=tag, param_str=text)
    return made if layer.last_layer else (made, bits, -layer.clip_max_value if negative else 0.0)


def product(g: MagikGraph, path: str, layer: chips.Mul, inputs: Written) -> Written:
    """Mul."""
    options = {"count": 2, "same_sign": False, "same_bits": False}
    (a, first), (b, second) = g.read_list(inputs, "Mul", layer.input_bitwidth, **options)
    g.fits(layer.out_channels, "channels of Mul")
    unit, negative, bits = g.unit(path), first.signed or second.signed, max(first.bits, second.bits)
    made = g.add("Mul", unit, a, b, sample=a.sample * b.sample)
    if layer.quantizes_output:
        made = g.quantise(f"{unit}/quantize_feature", made, Tag(bits, negative), 1.0)
    return made if layer.last_layer else (made, bits, -1.0 if negative else 0.0)


def maximum(g: MagikGraph, path: str, layer: chips.Max, inputs: Written) -> Written:
    """Max."""
    (a, first), (b, _) = g.read_list(inputs, "Max", count=2)
    made = g.add("Max", g.unit(path), a, b, sample=torch.maximum(a.sample, b.sample), tag=a.tag)
    return (made, first.bits, -1.0 if first.signed else 0.0) if first.tagged else made


# --- moving and selecting


def preprocess(g: MagikGraph, path: str, layer: chips.Preprocess, inputs: Written) -> Written:
    """Preprocess: a marker with mean and divisor."""
    x, _ = g.read_moved(inputs, "Preprocess")
    low = 0.0 if layer.mean == 0 else -1.0
    attr = {"mean": float(layer.mean), "var": float(layer.var), "output_bitwidth": 8, "clip_min_value": low}
    return g.marker(g.unit(path), "preprocess_end", attr, x), 8, layer.mean, layer.var, low


def flatten(g: MagikGraph, path: str, layer: chips.Flatten, inputs: Written) -> Written:
    """Flatten."""
    x, feature = g.read_moved(inputs, "Flatten")
    unit, attr = g.unit(path), {"shape_list": layer.shape_list}
    x = g.marker(f"{unit}/flatten_start", "flatten_start", attr, x)
    return carry(feature, g.marker(f"{unit}/flatten_end", "flatten_end", attr, reshaped(g, unit, x, layer.shape_list)))


def route(g: MagikGraph, path: str, layer: chips.Route, inputs: Written) -> Written:
    """Route."""
    edges, features = zip(*g.read_list(inputs, "Route"), strict=True)
    return carry(features[0], joined(g, g.unit(path), list(edges), 1))


def joined(g: MagikGraph, name: str, edges: list[Edge], axis: int) -> Edge:
    """A Concat, which keeps the tag that all of its inputs share."""
    tag = edges[0].tag if len({edge.tag for edge in edges}) == 1 else None
    return g.add("Concat", name, *edges, sample=torch.cat([edge.sample for edge in edges], axis), tag=tag, axis=axis)


def channel_split(g: MagikGraph, path: str, layer: chips.Channel_Split, inputs: Written) -> Written:
    """Channel_Split."""
    x, feature = g.read_moved(inputs, "Channel_Split")
    unit, parts = g.unit(path), torch.split(x.sample, layer.split, dim=1)
    return [carry(feature, edge) for edge in split(g, unit, x, list(parts), layer.split)]


def split(g: MagikGraph, name: str, x: Edge, parts: list[Tensor], sizes: list[int], axis: int = 1) -> list[Edge]:
    """A Split."""
    outputs = tuple(f"{name}/part{i}" for i in range(len(parts)))
    g.builder.add_many("Split", x.name, outputs=outputs, name=name, axis=axis, split=sizes)
    return [g.made(output, part, x.tag) for output, part in zip(outputs, parts, strict=True)]


def pixel_shuffle(g: MagikGraph, path: str, layer: chips.Pixel_Shuffle, inputs: Written) -> Written:
    """Pixel_Shuffle: the standard's DepthToSpace of opset 9 orders channels otherwise, so three nodes."""
    x, feature = g.read_moved(inputs, "Pixel_Shuffle")
    unit, r = g.unit(path), layer.upscale_factor
    _, channels, height, width = x.sample.shape
    attr = {"upscale_factor": r}
    x = g.marker(f"{unit}/pixel_shuffle_start", "pixel_shuffle_start", attr, x)
    x = reshaped(g, f"{unit}/parts", x, (-1, channels // r**2, r, r, height, width))
    x = transposed(g, f"{unit}/order", x, (0, 1, 4, 2, 5, 3))
    x = reshaped(g, unit, x, (-1, channels // r**2, height * r, width * r))
    return carry(feature, g.marker(f"{unit}/pixel_shuffle_end", "pixel_shuffle_end", attr, x))


def focused(g: MagikGraph, name: str, x: Edge) -> Edge:
    """Each 2x2 patch to channels, column by column; opset 9 cannot slice with a step."""
    _, channels, height, width = x.sample.shape
    focus_values(x.sample)  # for its error
    x = reshaped(g, f"{name}_parts", x, (-1, channels, height // 2, 2, width // 2, 2))
    x = transposed(g, f"{name}_order", x, (0, 5, 3, 1, 2, 4))
    return reshaped(g, name, x, (-1, 4 * channels, height // 2, width // 2))


def focus(g: MagikGraph, path: str, layer: chips.Focus, inputs: Written) -> Written:
    """Focus."""
    x, feature = g.read_moved(inputs, "Focus")
    return carry(feature, focused(g, f"{g.unit(path)}/focus", x))


def nothing(g: MagikGraph, path: str, layer: nn.Module, inputs: Written) -> Written:
    """NOp, dropout in evaluation, identity."""
    return inputs


def plain_activation(g: MagikGraph, path: str, layer: nn.Module, x: Written) -> Written:
    """An activation of torch on real numbers: behind a last layer, or on the CPU core between two of the chip."""
    if not isinstance(x, Edge) or x.tag is not None:
        raise UnsupportedError(
            f"{type(layer).__name__} stands on quantised codes", hint="Give it to the layer before as activation_fn."
        )
    if not isinstance(layer, nn.Softmax):
        made = module_function(g, g.unit(path), layer, x, layer(x.sample.clone()))
        if made is None:
            raise UnsupportedError(f"{type(layer).__name__} has no nodes of opset 9")
        return made
    dim = layer.dim if layer.dim is not None else -1
    if dim % x.sample.dim() != x.sample.dim() - 1:
        raise UnsupportedError("Softmax stands on another axis than the last", given=layer.dim, allowed="-1")
    y = torch.softmax(x.sample, -1)
    return g.add("Softmax", f"{g.unit(path)}/activation", x, sample=y, axis=x.sample.dim() - 1)


LAYERS: dict[type[nn.Module], Any] = {
    chips.Maxpool2D: maxpool,
    chips.Avgpool2D: avgpool,
    chips.AdaptiveAvgpool2D: adaptive_avgpool,
    chips.Unpool2D: unpool,
    chips.RoIPooling: roi_pooling,
    chips.Shortcut: shortcut,
    chips.Mul: product,
    chips.Max: maximum,
    chips.Preprocess: preprocess,
    chips.Flatten: flatten,
    chips.Route: route,
    chips.Channel_Split: channel_split,
    chips.Pixel_Shuffle: pixel_shuffle,
    chips.Focus: focus,
    **dict.fromkeys((chips.NOp, nn.Identity, nn.Dropout, nn.Dropout2d), nothing),
    **dict.fromkeys((nn.Softmax, *(recipe.module for recipe in RECIPES.values() if recipe.module)), plain_activation),
}
"""Rules by class of layer."""

"""How the layers that a conversion adds become Magik nodes: features in, tensors out, borders of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph, Tag, Written
from chipfit.chips.ingenic.magik.write import moves
from chipfit.chips.ingenic.magik.write.layers import clip_of
from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.errors import UnsupportedError


def to_feature(g: MagikGraph, path: str, layer: ToFeature, inputs: Written) -> Written:
    """ToFeature: a feature quantiser; for what stands in for an image, on the grid of pixels and before the marker."""
    if not isinstance(inputs, Edge):
        raise UnsupportedError("ToFeature takes a bare tensor")
    if layer.gain is not None:
        raise UnsupportedError(
            "the file has no node for the normalisation of an input",
            where=path,
            hint="Normalise images before the network instead of in its forward, and convert it anew.",
        )
    unit, clip = g.unit(path), clip_of(layer.QuantizeFeature, g, path)
    tag = Tag(layer.output_bitwidth, layer.signed)
    if layer.gate:
        g.layers.setdefault(path, {})["gate"] = True
    if not layer.image:
        return g.quantise(unit, inputs, tag, clip), *layer.tags
    x = g.quantise(f"{unit}/quantize_feature", inputs, tag, clip, target=layer.QuantizeFeature.target_device)
    bits, mean, var, low = layer.tags
    attr = {"mean": mean, "var": var, "output_bitwidth": bits, "clip_min_value": low}
    return g.marker(unit, "preprocess_end", attr, replace(x, tag=None)), *layer.tags


def to_tensor(g: MagikGraph, path: str, layer: ToTensor, inputs: Written) -> Written:
    """ToTensor: a product with a factor a channel."""
    x, _ = g.read_moved(inputs, "ToTensor")
    factors = layer.scale.view(-1, *[1] * (x.sample.dim() - 2))
    return g.add("Mul", g.unit(path), x, g.constant(f"{path}.scale", factors), sample=x.sample)


def pad_feature(g: MagikGraph, path: str, layer: PadFeature, inputs: Written) -> Written:
    """PadFeature: a Pad; on how many axes, and that the border loses against all, is noted beside the graph."""
    prepared = isinstance(inputs, (tuple, list)) and len(inputs) == 5
    reading = (inputs, "PadFeature")
    x, feature = g.read(*reading, first_layer=True) if prepared else g.read_moved(*reading)
    moves.check_described(x, feature)
    notes: dict[str, Any] = {}
    if len(layer.pads) != 2 * (x.sample.dim() - 2):
        notes["axes"] = len(layer.pads) // 2
    if layer.fill != "zero":
        notes["fill"] = layer.fill
    if notes:
        g.layers.setdefault(path, {}).update(notes)
    y = moves.padded(g, g.unit(path), x, layer.pads, layer.border(feature, prepared))
    return (replace(y, tag=None), *inputs[1:]) if prepared else moves.carry(feature, y)


LAYERS: dict[type[nn.Module], Any] = {ToFeature: to_feature, ToTensor: to_tensor, PadFeature: pad_feature}
"""Rules by class of layer."""

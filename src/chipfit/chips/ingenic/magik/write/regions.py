"""How recurrent layers, embedding and attention become Magik nodes, each between two markers."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph, Tag, Written
from chipfit.chips.ingenic.magik.rules import feature_var
from chipfit.chips.ingenic.magik.write import bridges, moves
from chipfit.chips.ingenic.magik.write.layers import LAYERS as LAYERS_WITH_WEIGHTS
from chipfit.chips.ingenic.magik.write.layers import clip_of
from chipfit.errors import UnsupportedError

_INT64 = 7


def _check_target(g: MagikGraph) -> None:
    if g.target.family == "T02":
        raise UnsupportedError("the layer stands between markers, which T02 does not have")


def lstm(g: MagikGraph, path: str, layer: chips.LSTM, inputs: Written) -> Written:
    """LSTM: weight and bias of each direction, and the states that it starts from."""
    _check_target(g)
    x, feature = g.read(inputs, "LSTM")
    unit = g.unit(path)
    quantised = layer.quantize and layer.QuantizeWeight.bits < 32
    out, *states = layer((x.sample, feature.bits, feature.minimum))
    clip = clip_of(layer.QuantizeFeature, g, path)
    attr = {"input_size": layer.input_size, "hidden_size": layer.hidden_size}
    x = g.marker(f"{unit}/lstm_start", "lstm_start", attr, x)
    g.note_statistics(path, layer.QuantizeWeight)
    names = []
    for number in range(layer.num_layers):
        for suffix in layer.suffixes:
            for kind in ("weight", "bias"):
                key = f"{kind}_l{number}{suffix}"
                if kind == "bias" and not layer.bias:
                    names.append(g.filled(0.0, 4 * layer.hidden_size))
                else:
                    names.append(g.constant(f"{path}.{key}", getattr(layer, key)))
    for state, suffix in zip(layer.initial_states, layer.suffixes, strict=False):
        names += _initial(g, path, layer, state, suffix)
    fields = {
        "input_bitwidth": feature.bits,
        "output_bitwidth": layer.output_bitwidth,
        "clip_min_value": -clip,
        "clip_max_value": clip,
        "feature_var": feature_var(feature.bits, feature.signed),
        "input_min_value": float(feature.minimum),
        "weight_bitwidth": layer.QuantizeWeight.bits,
        "weight_factor": layer.QuantizeWeight.factor,
        "target_device": g.target.name,
        "data_format": "NHWC",
        "input_tensor_name": x.name,
        "output_tensor_name": unit,
        "input_size": layer.input_size,
        "hidden_size": layer.hidden_size,
        "num_layers": layer.num_layers,
        "bias": layer.bias,
        "bidirectional": layer.bidirectional,
        "batch_first": True,
        "use_squeeze": layer.use_squeeze,
        "return_output_states": layer.return_output_states,
        "initial_state_fw": layer.initial_states[0] is not None,
        "initial_state_bw": layer.initial_states[1] is not None,
    }
    if layer.quantize != quantised:
        raise UnsupportedError("the LSTM's state is quantised and its weight is not", allowed="2 to 8 bits")
    outputs = (unit, *(f"{unit}/state{i}" for i in range(len(states))))
    kind = "QuantizeLSTMV2" if quantised else "LSTMUntilFunction"
    g.builder.add_many(kind, x.name, *names, outputs=outputs, name=unit, param_str=json.dumps(fields))
    y = g.made(unit, out[0], Tag(layer.output_bitwidth, True))
    ends = [g.made(name, state) for name, state in zip(outputs[1:], states, strict=True)]
    return ((g.marker(f"{unit}/lstm_end", "lstm_end", attr, y), *out[1:]), *ends)


def _initial(g: MagikGraph, path: str, layer: chips.LSTM, state: Any, suffix: str) -> list[str]:
    if state is None:
        return 2 * [g.filled(-1.0 if g.target.family == "T40F" else 0.0, layer.hidden_size)]
    names = []
    for letter, tensor in zip("hc", state, strict=True):
        if tensor.dim() > 1 and tensor.shape[0] != 1:
            raise UnsupportedError(
                "an initial state fixes the batch", given=tuple(tensor.shape), allowed=f"(1, {layer.hidden_size})"
            )
        names.append(g.constant(f"{path}/initial_{letter}{suffix}", tensor.detach().expand(1, layer.hidden_size)))
    return names


def embedding(g: MagikGraph, path: str, layer: chips.Embedding, inputs: Written) -> Written:
    """Embedding: rows of a table, those of both sequences joined, quantised."""
    _check_target(g)
    if not layer.quantize:
        raise UnsupportedError("the embedding is not quantised", allowed="quantize=True")
    if isinstance(inputs, Edge):
        x, tagged = inputs, False
    else:
        x, tagged = inputs[0], True
    unit = g.unit(path)
    index = x.sample.long()
    table = g.constant(f"{path}.embedding.weight", layer.embedding.weight)
    rows, dim = layer.embedding.weight.shape
    attr = {
        "num_embeddings": rows,
        "embedding_dim": dim,
        "padding_idx": layer.embedding.padding_idx,
        "multi_inputs": layer.multi_inputs,
        "first_layer": layer.first_layer,
    }
    x = g.marker(f"{unit}/embedding_start", "embedding_start", attr, x)
    whole = g.add("Cast", f"{unit}/cast", x, sample=index, to=_INT64)
    halves = [whole]
    if layer.multi_inputs:
        parts = list(index.chunk(2, dim=1))
        halves = moves.split(g, f"{unit}/split", whole, parts, [part.shape[1] for part in parts])
    vectors = [
        g.add("Gather", f"{unit}/gather{i}" if i else unit, table, part, sample=layer.embedding(part.sample), axis=0)
        for i, part in enumerate(halves)
    ]
    y = moves.joined(g, f"{unit}/concat", vectors, 2) if layer.multi_inputs else vectors[0]
    tag = Tag(layer.output_bitwidth, False)
    y = g.quantise(f"{unit}/quantize_feature", y, tag, clip_of(layer.QuantizeFeature, g, path), layer.pre_lstm_layer)
    y = g.marker(f"{unit}/embedding_end", "embedding_end", attr, y)
    return (y, layer.output_bitwidth, 0.0) if tagged else y


def _scores(g: MagikGraph, name: str, x: Edge, weight_name: str, weight: Tensor) -> Edge:
    """A product with a matrix stored outputs first."""
    turned = g.add("Transpose", f"{name}_weight", g.constant(weight_name, weight), sample=weight.t(), perm=[1, 0])
    return g.add("MatMul", name, x, turned, sample=x.sample @ turned.sample)


def _attended(g: MagikGraph, unit: str, path: str, layer: Any, y: Edge) -> tuple[Edge, int, float]:
    """The quantiser behind an attention layer."""
    if layer.quantize:
        clip = clip_of(layer.QuantizeFeature, g, path)
        y = g.quantise(f"{unit}/quantize_feature", y, Tag(layer.output_bitwidth, True), clip)
    return y, layer.output_bitwidth, -layer.clip_max_value


def soft_attention(g: MagikGraph, path: str, layer: chips.SoftAttention, inputs: Written) -> Written:
    """SoftAttention: linear, tanh, linear, softmax over the sequence, weighted sum."""
    _check_target(g)
    x, _ = g.read(inputs, "SoftAttention")
    unit = g.unit(path)
    first: Any = layer.fc[0]
    attr = {"input_size": layer.input_size, "hidden_size": first.out_features, "clip_max_value": layer.clip_max_value}
    x = g.marker(f"{unit}/softattention_start", "softattention_start", attr, x)
    y = _scores(g, f"{unit}/hidden", x, f"{path}.fc.0.weight", first.weight.detach())
    y = g.add("Add", f"{unit}/add", y, g.constant(f"{path}.fc.0.bias", first.bias), sample=y.sample)
    y = g.add("Tanh", f"{unit}/tanh", y, sample=y.sample)
    y = _scores(g, f"{unit}/score", y, f"{path}.linear.weight", layer.linear.weight.detach())
    y = g.add("Softmax", f"{unit}/softmax", y, sample=y.sample, axis=1)
    y = g.add("Mul", f"{unit}/mul", y, x, sample=x.sample)
    y = g.add("ReduceSum", unit, y, sample=x.sample.sum(1), axes=[1], keepdims=0)
    y, bits, low = _attended(g, unit, path, layer, y)
    return g.marker(f"{unit}/softattention_end", "softattention_end", attr, y), bits, low


def mil_attention(g: MagikGraph, path: str, layer: chips.MILPoolAttention, inputs: Written) -> Written:
    """MILPoolAttention: a score a pixel, softmax over the pixels, weighted sum."""
    _check_target(g)
    x, _ = g.read(inputs, "MILPoolAttention")
    unit, channels = g.unit(path), layer.hidden_size
    attr = {"hidden_size": channels, "clip_max_value": layer.clip_max_value}
    x = g.marker(f"{unit}/milpoolattention_start", "milpoolattention_start", attr, x)
    pixels = moves.reshaped(g, f"{unit}/pixels", x, (x.sample.shape[0], channels, x.sample[0, 0].numel()))
    rows = moves.transposed(g, f"{unit}/rows", pixels, (0, 2, 1))
    y = _scores(g, f"{unit}/score", rows, f"{path}.linear.weight", layer.linear.weight.detach())
    y = g.add("Add", f"{unit}/add", y, g.constant(f"{path}.bias", layer.bias), sample=y.sample)
    y = g.add("Softmax", f"{unit}/softmax", y, sample=y.sample, axis=1)
    y = g.add("MatMul", unit, pixels, y, sample=torch.bmm(pixels.sample, y.sample))
    y = g.add("Squeeze", f"{unit}/squeeze", y, sample=y.sample.squeeze(2), axes=[2])
    y, bits, low = _attended(g, unit, path, layer, y)
    return g.marker(f"{unit}/milpoolattention_end", "milpoolattention_end", attr, y), bits, low


LAYERS: dict[type[nn.Module], Any] = {
    chips.LSTM: lstm,
    chips.Embedding: embedding,
    chips.SoftAttention: soft_attention,
    chips.MILPoolAttention: mil_attention,
    **bridges.LAYERS,
    **LAYERS_WITH_WEIGHTS,
}
"""Rules of every layer, by its class."""

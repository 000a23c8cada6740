"""How layers with weights, and the normalisation, become Magik nodes.

A layer with a feature quantiser is one node, `Quantize...Inference`. One without (a last layer), or with an activation
that such a node has no name for (Hswish), is written in parts: QuantizeWeight, Conv or MatMul, BatchNormalization, the
activation, and QuantizeFeature where it quantises.
"""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.graph import Edge, MagikGraph, Tag, Written
from chipfit.chips.ingenic.magik.rules import UNNORMALISED_EPSILON, feature_var
from chipfit.chips.ingenic.magik.write import moves
from chipfit.chips.ingenic.magik.write.activations import add_activation, fused_activation, is_hswish
from chipfit.chips.ingenic.operators.features import Feature, pad_value
from chipfit.chips.ingenic.operators.padding import same_pads
from chipfit.errors import UnsupportedError


def clip_of(quantiser: Any, g: MagikGraph, layer: str) -> float:
    """The clip value of a feature quantiser; that it was learned is noted beside the graph."""
    clip = quantiser.clip_max_value
    if isinstance(clip, Tensor):
        g.layers.setdefault(layer, {})["learned_clip"] = True
        return float(clip.detach().clamp(min=1e-3))
    return float(clip)


def _check_quantised(layer: Any) -> None:
    if not layer.quantize:
        raise UnsupportedError("the layer is not quantised", hint="Build it with quantize=True.")
    if layer.weight_bitwidth >= 32:
        raise UnsupportedError("the layer's weight is not quantised", given=32, allowed="2 to 8 bits")


def _norm_inputs(g: MagikGraph, prefix: str, norm: Any, channels: int) -> tuple[list[str], float]:
    """Gain, shift, mean and variance, and epsilon; those of the identity where the layer does not normalise."""
    if norm is None:
        return [g.filled(value, channels) for value in (1.0, 0.0, 0.0, 1.0)], UNNORMALISED_EPSILON
    bn = norm.batch_norm
    if bn.running_mean is None or bn.running_var is None or not norm.eps > 0:
        raise UnsupportedError("batch normalisation without running statistics, or with eps 0")
    keys = {"weight": bn.weight, "bias": bn.bias, "running_mean": bn.running_mean, "running_var": bn.running_var}
    return [g.constant(f"{prefix}.batch_norm.{key}", tensor) for key, tensor in keys.items()], float(norm.eps)


def _feature_fields(g: MagikGraph, x: Edge, unit: str, tag: Tag, clip: float, feature: Feature) -> dict[str, Any]:
    var = feature_var(feature.bits, feature.signed) if feature.prepared is None else feature.prepared[1]
    return {
        "input_bitwidth": feature.bits,
        "output_bitwidth": tag.bits,
        "clip_min_value": -clip if tag.signed else 0.0,
        "clip_max_value": clip,
        "feature_var": var,
        "input_min_value": float(feature.minimum),
        "is_input": feature.prepared is not None,
        "target_device": g.target.name,
        "input_tensor_name": x.name,
        "output_tensor_name": unit,
    }


class _Weighted:
    """One layer with weights on its way to the graph."""

    def __init__(self, g: MagikGraph, path: str, layer: Any, inner: str, norm: str) -> None:
        _check_quantised(layer)
        self.g, self.path, self.layer = g, path, layer
        self.unit = g.unit(path)
        self.inner, self.norm, self.norm_name = getattr(layer, inner), getattr(layer, norm), f"{path}.{norm}"
        self.weight = g.constant(f"{path}.{inner}.weight", self.inner.weight)
        bias = self.inner.bias
        self.bias = None if bias is None else g.constant(f"{path}.{inner}.bias", bias)
        self.channels = self.inner.weight.shape[0]
        g.note_statistics(path, self.inner.QuantizeWeight)

    @property
    def fused(self) -> bool:
        layer = self.layer
        return layer.quantizes_output and layer.output_bitwidth < 32 and not is_hswish(layer.activation_fn)

    @property
    def tag(self) -> Tag:
        return Tag(self.layer.output_bitwidth, self.layer.QuantizeFeature.signed)

    def write_fused(
        self, kind: str, x: Edge, y: Tensor, feature: Feature, data_format: str, extra: dict[str, Any]
    ) -> Edge:
        """One node with its eight inputs, giving `y`."""
        g, layer = self.g, self.layer
        inputs, epsilon = _norm_inputs(g, self.norm_name, self.norm, self.channels)
        given = fused_activation(g, self.path, layer, self.channels, self.tag.signed)
        clip = clip_of(layer.QuantizeFeature, g, self.path)
        fields = {
            **_feature_fields(g, x, self.unit, self.tag, clip, feature),
            "weight_bitwidth": layer.weight_bitwidth,
            "weight_factor": layer.weight_factor,
            "epsilon": epsilon,
            "is_output": layer.last_layer,
            "weight_target_device": self.weight_target,
            "with_negtive_alpha": given.leaky,
            "pre_lstm_layer": layer.pre_lstm_layer,
            "op_in_channels": layer.in_channels,
            "data_format": data_format,
            "activate_name": given.name,
            "weight_tensor_name": self.weight,
            **extra,
        }
        bias = self.bias or g.filled(0.0, self.channels)
        text = json.dumps(fields)
        return g.add(
            kind, self.unit, x, self.weight, bias, *inputs, given.alpha, sample=y, tag=self.tag, param_str=text
        )

    @property
    def weight_target(self) -> str:
        """Target whose grid the weight has: T40 and its like take that of Txx for depthwise convolutions."""
        has_txx_grid = self.inner.QuantizeWeight.target_device == "Txx" and self.g.target.family != "TXX"
        return "Txx" if has_txx_grid else self.g.target.name

    def quantised_weight(self) -> Edge:
        """The weight behind its quantiser, with the peaks of the weight as trained."""
        g, layer = self.g, self.layer
        weight = self.inner.weight.detach()
        rows = weight.abs().reshape(1, -1) if weight.dim() == 2 else weight.abs().flatten(1)
        peaks = g.constant(f"{self.path}/pre_max", rows.amax(1))
        g.exact(self.path, "weight_factor", layer.weight_factor)
        return g.add(
            "QuantizeWeight", f"{self.unit}/quantize_weight", self.weight, peaks, sample=weight,
            weight_bitwidth=layer.weight_bitwidth, factor=layer.weight_factor, data_format="NCHW",
            is_quantize_per_channel=1, need_scale_weight=1, target_device=self.weight_target,
            tensor_name=self.weight,
        )  # fmt: skip

    def write_end(self, y: Edge) -> Edge:
        """Normalisation, activation and quantiser after a sum written in parts."""
        g, layer = self.g, self.layer
        if layer.offset:
            raise UnsupportedError("Hsigmoid without its clip, in a layer quantised at 32 bits, has no nodes")
        if self.norm is not None:
            y = normalised(g, self.unit, self.norm_name, self.norm, y)
        y = add_activation(g, self.path, self.unit, layer.activation_fn, y)
        if layer.quantizes_output and layer.output_bitwidth < 32:
            clip = clip_of(layer.QuantizeFeature, g, self.path)
            y = g.quantise(f"{self.unit}/quantize_feature", y, self.tag, clip, layer.pre_lstm_layer)
        return y


def _run(layer: nn.Module, x: Edge, feature: Feature) -> Tensor:
    """What the layer computes."""
    output = layer((x.sample, feature.bits, *(feature.prepared or ()), feature.minimum))
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def normalised(g: MagikGraph, unit: str, prefix: str, norm: Any, y: Edge) -> Edge:
    """Batch normalisation of axis 1 in parts; of the last axis of a sequence behind a Reshape."""
    (gain, *others), epsilon = _norm_inputs(g, prefix, norm, norm.batch_norm.num_features)
    shape = tuple(y.sample.shape)
    if y.sample.dim() == 3:
        y = moves.reshaped(g, f"{unit}/rows", y, (-1, shape[-1]))
    kept = g.add("aweight", f"{unit}/aweight", gain, sample=norm.batch_norm.weight.detach())
    g.exact(unit, "epsilon", epsilon)
    name = f"{unit}/batch_norm"
    y = g.add("BatchNormalization", name, y, kept, *others, sample=y.sample, epsilon=epsilon)
    return moves.reshaped(g, f"{unit}/sequence", y, shape) if len(shape) == 3 else y


def _result(layer: Any, y: Edge) -> Written:
    return y if layer.last_layer else (y, layer.output_bitwidth, layer.clip_min_value)


def _border(w: _Weighted, feature: Feature, first_layer: bool, x: Tensor) -> tuple[str, list[int], float]:
    """Padding mode, border as (top, left, bottom, right), and what fills it."""
    conv, value = w.inner, pad_value(feature, w.g.target, first_layer)
    if not conv.same:
        vertical, horizontal = conv.padding
        return "VALID", [vertical, horizontal, vertical, horizontal], value
    left, right, top, bottom = same_pads(x.shape[2], x.shape[3], conv.kernel_size, conv.stride)
    return "SAME", [top, left, bottom, right], value


def _convolution(g: MagikGraph, path: str, layer: Any, inputs: Written, first_layer: bool) -> Written:
    x, feature = g.read(inputs, layer.operator, layer.input_bitwidth, first_layer)
    w = _Weighted(g, path, layer, "Conv2d", "BatchNorm2d")
    y = _run(layer, x, feature)
    if getattr(layer, "is_focus", False):
        x = moves.focused(g, f"{w.unit}/focus", x)
    conv, flat = w.inner, x.sample.dim() == 3
    wide = x.sample.unsqueeze(2) if flat else x.sample
    mode, pads, value = _border(w, feature, first_layer, wide)
    if w.fused:
        conv_param = {
            "input_channels": layer.in_channels,
            "output_channels": w.channels,
            "kernel_size": [*conv.kernel_size],
            "strides": [*conv.stride],
            "dilations": [*conv.dilation],
            "groups": conv.groups,
            "padding": mode,
            "pads": pads,
        }
        depthwise = isinstance(layer, chips.DepthwiseConv2D)
        kind = "QuantizeConv1DInference" if flat else "QuantizeConv2DInference"
        extra = {"is_dwconv": depthwise, "conv_param": conv_param}
        return _result(layer, w.write_fused(kind, x, y, feature, "NCHW", extra))
    if flat:
        x = g.add("Unsqueeze", f"{w.unit}/unsqueeze", x, sample=wide, axes=[2])
    top, left, bottom, right = pads
    x = moves.padded(g, f"{w.unit}/pad", x, (left, right, top, bottom), value)
    total = F.conv2d(x.sample, conv.weight, None, conv.stride, 0, conv.dilation, conv.groups)
    given: list[Edge | str] = [x, w.quantised_weight(), *([w.bias] if w.bias else [])]
    made = g.add(
        "Conv", w.unit, *given, sample=total, kernel_shape=[*conv.kernel_size], strides=[*conv.stride], pads=[0] * 4,
        dilations=[*conv.dilation], group=conv.groups,
    )  # fmt: skip
    made = w.write_end(made)
    if flat:
        made = g.add("Squeeze", f"{w.unit}/squeeze", made, sample=y, tag=made.tag, axes=[2])
    return _result(layer, made)


def conv2d(g: MagikGraph, path: str, layer: chips.Conv2D, inputs: Written) -> Written:
    """Conv2D."""
    return _convolution(g, path, layer, inputs, layer.first_layer)


def depthwise(g: MagikGraph, path: str, layer: chips.DepthwiseConv2D, inputs: Written) -> Written:
    """DepthwiseConv2D."""
    return _convolution(g, path, layer, inputs, False)


def conv1d(g: MagikGraph, path: str, layer: chips.Conv1D, inputs: Written) -> Written:
    """Conv1D, which wraps a Conv2D."""
    return conv2d(g, f"{path}.convd", layer.convd, inputs)


def conv_transpose(g: MagikGraph, path: str, layer: chips.ConvTranspose2D, inputs: Written) -> Written:
    """ConvTranspose2D: its parts one after the other."""
    x = moves.unpool(g, f"{path}.Unpool2D", layer.Unpool2D, inputs)
    if layer.DepthwiseConv2D is not None:
        x = depthwise(g, f"{path}.DepthwiseConv2D", layer.DepthwiseConv2D, x)
    return conv2d(g, f"{path}.Conv2D", layer.Conv2D, x)


def full_connected(g: MagikGraph, path: str, layer: chips.FullConnected, inputs: Written) -> Written:
    """FullConnected."""
    x, feature = g.read(inputs, "FullConnected", layer.input_bitwidth, layer.first_layer)
    w = _Weighted(g, path, layer, "Linear", "BatchNorm1d")
    if w.fused:
        data_format = "NHWC" if x.sample.dim() > 2 else layer.data_format
        y = _run(layer, x, feature)
        return _result(layer, w.write_fused("QuantizeFullconnectedInference", x, y, feature, data_format, {}))
    weight = w.quantised_weight()
    turned = g.add("Transpose", f"{w.unit}/transpose", weight, sample=weight.sample.t(), perm=[1, 0])
    made = g.add("MatMul", w.unit, x, turned, sample=x.sample @ turned.sample)
    if w.bias:
        made = g.add("Add", f"{w.unit}/add", made, w.bias, sample=made.sample)
    return _result(layer, w.write_end(made))


def batch_norm(g: MagikGraph, path: str, layer: chips.BatchNorm, inputs: Written) -> Written:
    """BatchNorm: one node, or in parts with an activation that the node has no name for."""
    x, feature = g.read(inputs, "BatchNorm", layer.input_bitwidth, layer.first_layer)
    if not layer.quantize:
        raise UnsupportedError("the layer is not quantised", hint="Build it with quantize=True.")
    unit = g.unit(path)
    y, bits = _run(layer, x, feature), feature.bits
    tag = Tag(bits, layer.signed)
    clip = clip_of(layer.QuantizeFeature, g, path)
    if is_hswish(layer.activation_fn):
        made = normalised(g, unit, f"{path}.BatchNorm2d", layer.BatchNorm2d, x)
        made = add_activation(g, path, unit, layer.activation_fn, made)
        made = g.quantise(f"{unit}/quantize_feature", made, tag, clip)
    else:
        norm, epsilon = _norm_inputs(g, f"{path}.BatchNorm2d", layer.BatchNorm2d, layer.in_channels)
        given = fused_activation(g, path, layer, layer.in_channels, tag.signed)
        fields = {
            **_feature_fields(g, x, unit, tag, clip, feature),
            "epsilon": epsilon,
            "is_output": False,
            "with_negtive_alpha": given.leaky,
            "op_in_channels": layer.in_channels,
            "data_format": "NCHW",
            "activate_name": given.name,
        }
        kind, text = "QuantizeBatchNormInference", json.dumps(fields)
        made = g.add(kind, unit, x, *norm, given.alpha, sample=y, tag=tag, param_str=text)
    return made, bits, -layer.clip_max_value if layer.signed else 0.0


def se_block(g: MagikGraph, path: str, layer: chips.Se_Block, inputs: Written) -> Written:
    """Se_Block: mean, two convolutions, product."""
    x, feature = g.read(inputs, "Se_Block", layer.input_bitwidth)
    _check_quantised(layer.conv1)
    pooled = moves.adaptive_avgpool(g, f"{path}.adaptivepool", layer.adaptivepool, (x, feature.bits, feature.minimum))
    g.fits(layer.conv1.out_channels, "hidden channels of Se_Block")
    hidden = conv2d(g, f"{path}.conv1", layer.conv1, pooled)
    gate = conv2d(g, f"{path}.conv2", layer.conv2, hidden)[0]
    unit = g.unit(path)
    y = g.add("Mul", unit, x, gate, sample=x.sample * gate.sample)
    if layer.quantizes_output:
        tag = Tag(layer.output_bitwidth, feature.signed)
        y = g.quantise(f"{unit}/quantize_feature", y, tag, 1.0)
    return y if layer.last_layer else (y, layer.output_bitwidth, -1.0 if feature.signed else 0.0)


LAYERS: dict[type[nn.Module], Any] = {
    chips.Conv2D: conv2d,
    chips.DepthwiseConv2D: depthwise,
    chips.ConvTranspose2D: conv_transpose,
    chips.Conv1D: conv1d,
    chips.FullConnected: full_connected,
    chips.BatchNorm: batch_norm,
    chips.Se_Block: se_block,
    **moves.LAYERS,
}
"""Rules by class of layer."""

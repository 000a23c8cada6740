"""Reading layers with weights from files of the vendor's kit: in parts, as older files have them, or as one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.magik.graph import decimal
from chipfit.chips.ingenic.magik.kit.builder import Kit, Value
from chipfit.chips.ingenic.magik.kit.source import marker
from chipfit.chips.ingenic.magik.kit.tails import (
    Quantised,
    Tail,
    Weight,
    all_fields,
    norm_name,
    norm_of,
    slopes,
    tail_of,
)
from chipfit.chips.ingenic.magik.read.reader import fill
from chipfit.chips.ingenic.magik.view import attributes
from chipfit.chips.ingenic.operators.padding import same_pads
from chipfit.errors import FileFormatError

Rule = Callable[[Kit, Any], None]


def _options(kit: Kit, weight: Weight, tail: Tail, x: Value) -> dict[str, Any]:
    """Arguments that layers with weights share."""
    q = tail.quantised
    options: dict[str, Any] = {"last_layer": True, "output_bitwidth": 32}
    if q is not None:
        options = {"output_bitwidth": q.bits, "clip_max_value": q.clip, "auto_threshold": q.learned}
        options["pre_lstm_layer"] = q.before_lstm
    return {
        **options,
        "activation_fn": tail.activation,
        "enable_batch_norm": tail.norm is not None,
        "enable_bias": tail.bias is not None,
        "quantize": True,
        "weight_bitwidth": weight.bits,
        "input_bitwidth": x.bits,
        "weight_factor": weight.factor,
        "target_device": kit.device,
        "auto_bitwidth": False,
    }


def _put(kit: Kit, kind: str, layer: Any, inner: str, norm: str, weight: Weight, tail: Tail, x: Value) -> None:
    """Fill a layer, or take the one that has the weight already, and call it."""
    known: Any = kit.known(weight.name) if weight.name else None
    if known is None:
        block = getattr(layer, inner)
        fill(block.weight, weight.values)
        if tail.bias is not None:
            fill(block.bias, tail.bias)
        block.QuantizeWeight.sequential = True  # the order in which the vendor's kit sums
        tail.fill_norm(getattr(layer, norm))
    elif type(known) is not type(layer) or repr(known) != repr(layer):
        raise FileFormatError("two layers share one weight and differ otherwise", given=weight.name)
    kit.values[tail.end] = kit.call(weight.name, kind, layer, x)


def _check_target(kit: Kit, weight: Weight, depthwise: bool) -> None:
    """The grid of a weight is that of the target, but for depthwise convolutions on T40 and its like."""
    wanted = "Txx" if depthwise and kit.device.family == "T40F" else kit.device.name
    if weight.target != wanted:
        raise FileFormatError("the weight has another target's grid", given=weight.target, allowed=wanted)


def border(
    kit: Kit, edge: str, kernel: tuple[int, int], stride: tuple[int, int], dilation: int, own: Sequence[int] = ()
) -> tuple[Value, Any]:
    """What a layer is given, and its `padding`.

    A border before it, or of its node (`own`, top, left, bottom, right), is the layer's padding where that gives the
    same; elsewhere one before it stays a layer of its own.
    """
    pad = kit.source.makers.get(edge)
    if any(own):
        x, sides = kit.at(edge), list(own)
    elif pad is not None and pad.op_type == "Pad" and edge not in kit.values:
        a = attributes(pad)
        around = list(a["pads"])
        if len(around) != 8 or any(around[:2]) or any(around[4:6]):
            return kit.at(edge), 0
        x, sides = kit.at(pad.input[0]), [*around[2:4], *around[6:8]]
        kit.check_border(x, a)
    else:
        return kit.at(edge), 0
    height, width = x.tensor.shape[2:]
    left, right, top, bottom = same_pads(height, width, kernel, stride)
    if dilation == 1 and sides == [top, left, bottom, right]:
        return x, 1
    if (dilation > 1 or kit.device.family == "T02") and sides[:2] == sides[2:]:
        return x, (sides[0], sides[1])
    if any(own):
        raise FileFormatError("the border is not the chip's", given=sides, allowed=f"{[top, left, bottom, right]}")
    return kit.at(edge), 0


def convolution(kit: Kit, node: Any) -> None:
    """Conv2D and DepthwiseConv2D in parts."""
    a, weight = attributes(node), Weight.behind(kit, node.input[1])
    tail = tail_of(kit, node.output[0], weight.values.shape[0])
    if len(node.input) > 2:
        tail.bias = kit.source.constants[node.input[2]]
    kernel = weight.values.shape[2:]
    if len(kernel) != 2:
        raise FileFormatError("the weight has no two spatial axes", given=weight.values.shape)
    dilation, stride = a.get("dilations", [1, 1])[0], tuple(a.get("strides", (1, 1)))
    own = list(a.get("pads", ()))
    x, padding = border(kit, node.input[0], kernel, stride, dilation, own)
    if any(own) and kit.device.family == "T40F" and x.tagged and x.sample[-1] < 0 and len(x.sample) == 3:
        raise FileFormatError("the border of a signed feature is filled with 0", allowed="-1, by a Pad node")
    _convolved(kit, weight, tail, x, stride, padding, dilation, a.get("group", 1))


def _convolved(
    kit: Kit, weight: Weight, tail: Tail, x: Value, stride: Any, padding: Any, dilation: int, groups: int, **more: Any
) -> None:
    out, inner, height, width = weight.values.shape
    channels = inner * groups
    options = {**_options(kit, weight, tail, x), "stride": stride, "padding": padding, "dilation": dilation}
    options |= {"kernel_h": height, "kernel_w": width}
    depthwise = groups == channels == out > 1 and not x.image
    _check_target(kit, weight, depthwise)
    if depthwise:
        layer: Any = chips.DepthwiseConv2D(channels, **options)
    else:
        ends = [marker(reader) == "output" for reader in kit.source.readers[tail.end]]
        if tail.quantised is not None and ends and all(ends):  # the bounds of sums are not for a last layer
            options |= {"last_layer": True, "quantize_last_feature": True}
        layer = chips.Conv2D(channels, out, groups=groups, first_layer=x.image, **options, **more)
    _put(kit, "conv", layer, "Conv2d", "BatchNorm2d", weight, tail, x)


def product(kit: Kit, node: Any) -> None:
    """FullConnected in parts, behind `MatMul` or `Gemm`."""
    a, weight = attributes(node), Weight.behind(kit, node.input[1])
    turned = kit.source.makers[node.input[1]].op_type == "Transpose"
    if weight.values.ndim != 2 or turned == bool(a.get("transB", 0)) or a.get("transA", 0):
        raise FileFormatError("the weight is not stored outputs first", given=weight.values.shape)
    if a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        raise FileFormatError("a product with factors", given=(a.get("alpha"), a.get("beta")), allowed="1")
    tail = tail_of(kit, node.output[0], weight.values.shape[0])
    if len(node.input) > 2:
        tail.bias = kit.source.constants[node.input[2]]
    _full_connected(kit, weight, tail, kit.at(node.input[0]))


def _full_connected(kit: Kit, weight: Weight, tail: Tail, x: Value) -> None:
    _check_target(kit, weight, False)
    out, inputs = weight.values.shape
    options = {**_options(kit, weight, tail, x), "first_layer": x.image}
    layer = chips.FullConnected(inputs, out, **options)
    _put(kit, "fc", layer, "Linear", "BatchNorm1d", weight, tail, x)


def _fused_tail(kit: Kit, node: Any, channels: int) -> Tail:
    """Bias, norm, activation and quantiser of a node that is a whole layer."""
    f, source = all_fields(node), kit.source
    values = [source.constants[name] for name in node.input[2:]]
    present = [name in source.named for name in node.input[2:]]
    tail = Tail(node.output[0], quantised=Quantised.of(kit, node))
    if present[0] or values[0].any():
        tail.bias = values[0]
    nothing = zip(values[1:5], (1, 0, 0, 1), strict=True)
    plain = [value.size == channels and bool((value == v).all()) for value, v in nothing]
    if any(present[1:5]) or not all(plain):
        epsilon = decimal(f.get("epsilon", 1e-5))
        tail.norm = (values[1], values[2], values[3], values[4], epsilon)
    tail.activation = _named(kit, f, node.input[7], bool(tail.quantised and tail.quantised.signed))
    return tail


def _named(kit: Kit, f: dict[str, Any], alpha: str, signed: bool) -> Any:
    name = str(f.get("activate_name", "Linear" if signed else "ReluX"))
    known = {"linear": "Linear", "prelu": "PRelu", "leakyrelu": "LeakyRelu", "hsigmoid": "Hsigmoid"}
    kind = known.get(name.lower(), "ReluX" if name.lower().startswith("relu") else "")
    if not kind or signed == (kind in ("ReluX", "Hsigmoid")):
        allowed = "Linear, PRelu, LeakyRelu below 0; ReluX, Hsigmoid from 0 on"
        raise FileFormatError("the activation is unknown or does not fit the sign", given=name, allowed=allowed)
    if kind == "LeakyRelu":
        return chips.LeakyReLU(decimal(float(kit.source.constants[alpha].flat[0])))
    made = {"Linear": chips.Linear(), "ReluX": None, "Hsigmoid": chips.Hsigmoid(1)}
    return made[kind] if kind in made else slopes(kit, alpha)


def _fused_weight(kit: Kit, node: Any) -> Weight:
    f, edge = all_fields(node), node.input[1]
    target = str(f.get("weight_target_device", f.get("target_device")))
    name = kit.source.named.get(edge, "")
    return Weight(
        kit.source.constants[edge], name, int(f["weight_bitwidth"]), decimal(f.get("weight_factor", 3.0)), target
    )


def _pair(value: Any) -> tuple[int, int]:
    both = list(value) if isinstance(value, (list, tuple)) else [value, value]
    return int(both[0]), int(both[-1])


def fused_convolution(kit: Kit, node: Any) -> None:
    """Conv2D, DepthwiseConv2D and Conv1D as one node."""
    weight, p = _fused_weight(kit, node), all_fields(node).get("conv_param", {})
    tail = _fused_tail(kit, node, weight.values.shape[0])
    stride, dilation = _pair(p.get("strides", 1)), _pair(p.get("dilations", 1))[0]
    kernel = _pair(weight.values.shape[2:])
    flat = node.op_type == "QuantizeConv1DInference"
    own = [int(n) for n in p.get("pads", ())]
    if flat:
        same = p.get("padding") == "SAME" or any(own)
        x, padding = kit.at(node.input[0]), ((0, own[1]) if dilation > 1 and own else int(same))
    else:
        own = own if len(own) == 4 else 2 * own
        x, padding = border(kit, node.input[0], kernel, stride, dilation, own)
        before = kit.source.makers.get(node.input[0])
        if padding == 0 and p.get("padding") == "SAME" and (before is None or before.op_type != "Pad"):
            padding = 1
    more = {"conv1d": True} if flat else {}
    _convolved(kit, weight, tail, x, stride, padding, dilation, int(p.get("groups", 1)), **more)


def fused_product(kit: Kit, node: Any) -> None:
    """FullConnected as one node."""
    weight = _fused_weight(kit, node)
    _full_connected(kit, weight, _fused_tail(kit, node, weight.values.shape[0]), kit.at(node.input[0]))


def _batch_norm(kit: Kit, name: str, x: Value, tail: Tail) -> None:
    q = tail.quantised
    layer = chips.BatchNorm(
        x.tensor.shape[1],
        None if isinstance(tail.activation, chips.Linear) else tail.activation,
        quantize=q is not None,
        first_layer=x.image,
        input_bitwidth=x.bits,
        clip_max_value=q.clip if q is not None else 6.0,
        auto_threshold=q is not None and q.learned,
        target_device=kit.device,
    )
    tail.fill_norm(layer.BatchNorm2d)
    layer.signed = q is not None and q.signed
    kit.values[tail.end] = kit.call(name, "norm", layer, x)
    if q is not None and layer.signed != q.signed:
        raise FileFormatError("the quantiser is unsigned behind a signed input", allowed="clip_min_value below 0")


def batch_norm(kit: Kit, node: Any) -> None:
    """BatchNorm in parts."""
    x = kit.at(node.input[0])
    tail = tail_of(kit, node.output[0], x.tensor.shape[1], norm=False)
    tail.norm = norm_of(kit, node)
    _batch_norm(kit, norm_name(kit, node), x, tail)


def fused_batch_norm(kit: Kit, node: Any) -> None:
    """BatchNorm as one node: x, gain, shift, mean, variance, slopes."""
    f, values = all_fields(node), [kit.source.constants[name] for name in node.input[1:]]
    q = Quantised.of(kit, node)
    epsilon = decimal(f.get("epsilon", 1e-5))
    norm = (values[0], values[1], values[2], values[3], epsilon)
    name = str(f.get("activate_name", "")).lower()
    leaky = name in ("prelu", "leakyrelu")
    activation = _named(kit, f, node.input[5], leaky) if leaky or name == "hsigmoid" else None  # of either sign
    tail = Tail(node.output[0], norm=norm, activation=activation, quantised=q)
    _batch_norm(kit, kit.source.named.get(node.input[1], ""), kit.at(node.input[0]), tail)


def lstm(kit: Kit, node: Any) -> None:
    """LSTM: of its constants, matrices are weights, vectors of their rows biases, others the states at the start."""
    f, source = all_fields(node), kit.source
    constants = [(name, source.constants[name]) for name in node.input[1:] if name in source.constants]
    weights = [(name, value) for name, value in constants if value.ndim == 2 and value.shape[0] != 1]
    rows = weights[0][1].shape[0]
    biases = [value for _, value in constants if value.shape == (rows,)]
    start = -1.0 if kit.device.family == "T40F" else 0.0
    states = [value for _, value in constants if value.size == rows // 4]
    if len(weights) > 2 or rows % 4 or any((value != start).any() for value in states):
        raise FileFormatError("an LSTM of several layers, or with states of its own to start from")
    bias = len(biases) == len(weights) and any(value.any() for value in biases)
    x, hidden = kit.at(node.input[0]), rows // 4
    layer = chips.LSTM(
        weights[0][1].shape[1] - hidden,
        hidden,
        bias=bias,
        bidirectional=len(weights) == 2,
        return_output_states=len(node.output) > 2,
        use_squeeze=bool(f.get("use_squeeze", x.tensor.dim() == 4)),
        quantize=node.op_type == "QuantizeLSTMV2",
        weight_bitwidth=int(f.get("weight_bitwidth", 32)),
        input_bitwidth=int(f.get("input_bitwidth", 32)),
        output_bitwidth=int(f.get("output_bitwidth", 32)),
        clip_max_value=decimal(f.get("clip_max_value", 6.0)),
        weight_factor=decimal(f.get("weight_factor", 3.0)),
        target_device=kit.device,
    )
    layer.QuantizeWeight.sequential = True
    for i, suffix in enumerate(layer.suffixes):
        fill(getattr(layer, f"weight_l0{suffix}"), weights[i][1])
        if bias:
            fill(getattr(layer, f"bias_l0{suffix}"), biases[i])
    made = kit.call(source.named.get(weights[0][0], ""), "lstm", layer, x)
    for i, edge in enumerate(node.output):
        kit.values[edge] = kit.part(made, i)


def later(kit: Kit, node: Any) -> None:
    """What the layer behind it reads."""


def passed(kit: Kit, node: Any) -> None:
    """A marker that changes nothing."""
    mark = marker(node)
    if mark.removesuffix("_start").removesuffix("_end") in ("embedding", "softattention", "milpoolattention"):
        raise FileFormatError("how the kit writes this operator is not known", given=mark)
    kit.values[node.output[0]] = kit.at(node.input[0])


LAYERS: dict[str, Rule] = {
    "Conv": convolution,
    "MatMul": product,
    "Gemm": product,
    "BatchNormalization": batch_norm,
    "QuantizeConv2DInference": fused_convolution,
    "QuantizeConv1DInference": fused_convolution,
    "QuantizeFullconnectedInference": fused_product,
    "QuantizeBatchNormInference": fused_batch_norm,
    "QuantizeLSTMV2": lstm,
    "LSTMUntilFunction": lstm,
    "QuantizeWeight": later,
    "aweight": later,
    "Pad": later,
    "NOp": passed,
}
"""Rules by kind of node."""

"""The node conventions of Ingenic's Magik converter as data: node kinds, their attributes, JSON fields, markers.

Source: spec/ingenic.md, sections 3 and 5 (files and scripts of the vendor). The converter itself was never run against
these rules; what they leave open is decided here and listed in docs/export.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OPSET = 9
IR_VERSION = 4
NODE_VERSION = 1002
"""Version that markers and feature quantisers carry."""

METADATA = "chipfit"
"""Key of the file's metadata with what the conventions have no field for."""


@dataclass(frozen=True)
class NodeRule:
    """What a node of one kind must look like.

    Args:
        inputs: Allowed numbers of inputs.
        attributes: Attributes that must be there, each with its kind: 'int', 'ints', 'float', 'string' or 'tensor'.
        optional: Attributes that may be there.
        constants: Positions of inputs that must be initializers.
        fields: Fields of the JSON text in `param_str`, each with its type.
        outputs: Allowed numbers of outputs.
    """

    inputs: tuple[int, ...]
    attributes: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[int, ...] = (1,)


_FEATURE: dict[str, Any] = {
    "input_bitwidth": int,
    "output_bitwidth": int,
    "clip_min_value": float,
    "clip_max_value": float,
    "feature_var": float,
    "is_output": bool,
    "target_device": str,
    "data_format": str,
    "input_tensor_name": str,
    "output_tensor_name": str,
}
_NORMALISED: dict[str, Any] = {
    **_FEATURE,
    "input_min_value": float,
    "epsilon": float,
    "is_input": bool,
    "with_negtive_alpha": bool,
    "op_in_channels": int,
    "activate_name": str,
}
_WEIGHTED: dict[str, Any] = {
    **_NORMALISED,
    "weight_bitwidth": int,
    "weight_factor": float,
    "weight_target_device": str,
    "weight_tensor_name": str,
    "pre_lstm_layer": bool,
}
CONV_PARAM: dict[str, Any] = {
    "input_channels": int,
    "output_channels": int,
    "kernel_size": list,
    "strides": list,
    "dilations": list,
    "groups": int,
    "padding": str,
    "pads": list,
}
"""Fields of `conv_param`, which itself is a field of a convolution's `param_str`."""

_LSTM: dict[str, Any] = {
    **{name: kind for name, kind in _FEATURE.items() if name != "is_output"},
    "input_min_value": float,
    "weight_bitwidth": int,
    "weight_factor": float,
    "input_size": int,
    "hidden_size": int,
    "num_layers": int,
    "bias": bool,
    "bidirectional": bool,
    "batch_first": bool,
    "use_squeeze": bool,
    "return_output_states": bool,
    "initial_state_fw": bool,
    "initial_state_bw": bool,
}
_TEXT = {"param_str": "string"}
_EIGHT = tuple(range(1, 8))
_CONVOLUTION = NodeRule((8,), _TEXT, {}, _EIGHT, {**_WEIGHTED, "is_dwconv": bool, "conv_param": dict})
_WINDOW = NodeRule((1,), {"kernel_shape": "ints", "strides": "ints"}, {"pads": "ints"})

CUSTOM: dict[str, NodeRule] = {
    "NOp": NodeRule((1,), {"op_target": "string", "op_attr": "string", "target_device": "string", "version": "int"}),
    "QuantizeConv2DInference": _CONVOLUTION,
    "QuantizeConv1DInference": _CONVOLUTION,
    "QuantizeFullconnectedInference": NodeRule((8,), _TEXT, {}, _EIGHT, _WEIGHTED),
    "QuantizeBatchNormInference": NodeRule((6,), _TEXT, {}, tuple(range(1, 6)), _NORMALISED),
    "QuantizeShortcutInference": NodeRule(
        (2,), _TEXT, {}, (), {**_FEATURE, "input_min_value": list, "sc_input_same_clip": bool}
    ),
    "QuantizeLSTMV2": NodeRule(tuple(range(5, 100)), _TEXT, {}, (), _LSTM, (2, 3)),
    "LSTMUntilFunction": NodeRule(tuple(range(5, 100)), _TEXT, {}, (), _LSTM, (2, 3)),
    "QuantizeWeight": NodeRule(
        (2,),
        {
            "weight_bitwidth": "int",
            "factor": "float",
            "data_format": "string",
            "is_quantize_per_channel": "int",
            "need_scale_weight": "int",
            "target_device": "string",
            "tensor_name": "string",
        },
        {},
        (0, 1),
    ),
    "aweight": NodeRule((1,), {}, {}, (0,)),
    "QuantizeFeature": NodeRule(
        (1,),
        {
            "output_bitwidth": "int",
            "clip_min_value": "float",
            "clip_max_value": "float",
            "pre_lstm_layer": "int",
            "target_device": "string",
            "data_format": "string",
            "version": "int",
            "tensor_name": "string",
        },
    ),
    "Upsample": NodeRule((2,), {"mode": "string"}, {"fill_value": "float", "target_device": "string"}, (1,)),
}
"""Nodes of the vendor's own; `Upsample` is standard but for its mode "zero"."""

STANDARD: dict[str, NodeRule] = {
    "Conv": NodeRule(
        (2, 3), {"kernel_shape": "ints", "strides": "ints", "pads": "ints", "dilations": "ints", "group": "int"}
    ),
    "MatMul": NodeRule((2,)),
    "Transpose": NodeRule((1,), {"perm": "ints"}),
    "Add": NodeRule((2,)),
    "Mul": NodeRule((2,)),
    "Div": NodeRule((2,)),
    "Max": NodeRule((2,)),
    "BatchNormalization": NodeRule((5,), {"epsilon": "float"}, {}, (2, 3, 4)),
    "Pad": NodeRule((1,), {"mode": "string", "pads": "ints", "value": "float"}),
    "MaxPool": _WINDOW,
    "AveragePool": _WINDOW,
    "GlobalAveragePool": NodeRule((1,)),
    "MaxRoiPool": NodeRule((2,), {"pooled_shape": "ints", "spatial_scale": "float"}),
    "Relu": NodeRule((1,)),
    "Clip": NodeRule((1,), {"min": "float", "max": "float"}),
    "LeakyRelu": NodeRule((1,), {"alpha": "float"}),
    "PRelu": NodeRule((2,), {}, {}, (1,)),
    "Sigmoid": NodeRule((1,)),
    "Tanh": NodeRule((1,)),
    "Softmax": NodeRule((1,), {"axis": "int"}),
    "Elu": NodeRule((1,), {"alpha": "float"}),
    "HardSigmoid": NodeRule((1,), {"alpha": "float", "beta": "float"}),
    **dict.fromkeys(
        ("Abs", "Cos", "Erf", "Exp", "Log", "Neg", "Reciprocal", "Selu", "Sin", "Softplus", "Softsign", "Sqrt"),
        NodeRule((1,)),
    ),
    "Sub": NodeRule((2,)),
    "Pow": NodeRule((2,)),
    "Slice": NodeRule((1,), {"axes": "ints", "starts": "ints", "ends": "ints"}),
    "ReduceSum": NodeRule((1,), {"axes": "ints", "keepdims": "int"}),
    "Reshape": NodeRule((2,), {}, {}, (1,)),
    "Squeeze": NodeRule((1,), {"axes": "ints"}),
    "Unsqueeze": NodeRule((1,), {"axes": "ints"}),
    "Concat": NodeRule(tuple(range(1, 1000)), {"axis": "int"}),
    "Split": NodeRule((1,), {"axis": "int", "split": "ints"}, outputs=tuple(range(1, 1000))),
    "Cast": NodeRule((1,), {"to": "int"}),
    "Gather": NodeRule((2,), {"axis": "int"}, {}, (0,)),
}
"""Nodes of ONNX, opset 9, that stand between the vendor's own."""

NODES = {**CUSTOM, **STANDARD}
"""Every node that a file may hold."""

REGIONS = (
    "flatten",
    "prelu",
    "hsigmoid",
    "hswish",
    "pixel_shuffle",
    "lstm",
    "embedding",
    "softattention",
    "milpoolattention",
)
"""What stands between two markers, `<name>_start` and `<name>_end`."""

MARKERS = {"input": "input", "output": "output", "preprocess_end": "Preprocess"}
MARKERS |= {f"{region}_{end}": region for region in REGIONS for end in ("start", "end")}
"""`op_target` of every marker, with the `op_type` that its `op_attr` names."""

PREPROCESS: dict[str, Any] = {"mean": float, "var": float, "output_bitwidth": int, "clip_min_value": float}
"""Fields of the preprocessing marker's `attr`."""

SIGNED_ACTIVATIONS = ("Linear", "PRelu", "LeakyRelu")
ACTIVATIONS = ("ReluX", "Hsigmoid", *SIGNED_ACTIVATIONS)
"""Values of `activate_name`."""

HSIGMOID_OFFSET = 3.0
"""What a fused node's "Hsigmoid" adds; the node has no field for another one."""

NOT_ON_T02 = (
    "NOp",
    "QuantizeConv1DInference",
    "QuantizeBatchNormInference",
    "QuantizeShortcutInference",
    "Max",
    "AveragePool",
    "Split",
    "MaxRoiPool",
)
"""Nodes of operators that T02 does not run, the markers among them."""

UNNORMALISED_EPSILON = 0.0
"""`epsilon` of a node whose layer has no batch normalisation: with gains and variances of 1 nothing is changed."""


def feature_var(bits: int, negative: bool) -> float:
    """Codes a unit as the files state them, for an input that is no image.

    Source:
        spec/ingenic.md, section 2.

    Example:
        >>> feature_var(8, False), feature_var(8, True)
        (255.0, 127.0)
    """
    return float(2 ** (bits - 1) - 1 if negative else 2**bits - 1)

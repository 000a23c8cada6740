"""Every operator that is read, with its attributes, against onnxruntime: one node in a file made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.onnx_files import by_onnxruntime, difference, ints, loaded, made, node, numbers

pytestmark = pytest.mark.filterwarnings("error")
X1, X2, X3 = (2, 4, 11), (2, 4, 9, 7), (2, 4, 5, 6, 4)
Case = tuple[str, dict[str, Any], tuple[int, ...], dict[str, Any], int]
CASES: list[tuple[str, tuple[int, ...], int, dict[str, Any], dict[str, Any]]] = []
"""Operator, shape of its input, opset, attributes, constants in the order of its inputs."""


def case(
    operator: str,
    shape: tuple[int, ...],
    opset: int = 17,
    /,
    constants: dict[str, Any] | None = None,
    **attributes: Any,
) -> None:
    CASES.append((operator, shape, opset, attributes, constants or {}))


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


# --- convolutions

W1, W2, W3 = numbers(6, 4, 3), numbers(6, 4, 3, 2), numbers(2, 4, 2, 3, 2)
B6 = numbers(6, seed=1)
for opset in (9, 11, 21):
    case("Conv", X2, opset, {"w": W2, "b": B6})
for attributes in (
    {"pads": [1, 1, 1, 1], "strides": [2, 1]},
    {"pads": [0, 1, 2, 0], "dilations": [2, 3], "kernel_shape": [3, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    {"auto_pad": "VALID"},
):
    case("Conv", X2, 17, {"w": W2, "b": B6}, **attributes)
case("Conv", X2, 17, {"w": numbers(8, 1, 3, 3)}, group=4)
case("Conv", X2, 17, {"w": numbers(6, 2, 3, 3), "b": B6}, group=2, pads=[1, 1, 1, 1])
case("Conv", X1, 17, {"w": W1, "b": B6}, pads=[2, 0], dilations=[2])
case("Conv", X3, 17, {"w": W3}, strides=[1, 2, 1])
for attributes in (
    {},
    {"strides": [2, 2], "pads": [1, 0, 1, 0], "output_padding": [1, 1]},
    {"strides": [2, 3], "pads": [0, 1, 1, 0]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"output_shape": [20, 15], "strides": [2, 2]},
    {"dilations": [2, 1], "kernel_shape": [3, 2]},
):
    case("ConvTranspose", X2, 17, {"w": numbers(4, 3, 3, 2), "b": numbers(3)}, **attributes)
case("ConvTranspose", X2, 17, {"w": numbers(4, 2, 2, 2)}, group=2, strides=[2, 2])
case("ConvTranspose", X1, 11, {"w": numbers(4, 2, 4)}, strides=[2], pads=[1, 1])

# --- products

for opset in (9, 13):
    case("Gemm", (3, 4), opset, {"b": numbers(4, 5), "c": numbers(5)})
case("Gemm", (3, 4), 17, {"b": numbers(5, 4), "c": numbers(1, 5)}, transB=1, alpha=0.5, beta=2.0)
case("Gemm", (3, 4), 17, {"b": numbers(5, 4)}, transB=1)
case("Gemm", (3, 4), 17, {"b": numbers(4, 5), "c": floats(2.0)}, beta=0.25)
case("MatMul", (2, 3, 4), 17, {"b": numbers(4, 5)})
case("MatMul", (2, 3, 4), 17, {"b": numbers(1, 4, 5)})
case("Einsum", (2, 3, 4), 17, {"b": numbers(4, 5)}, equation="bij,jk->bik")

# --- functions

for name in (
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
    "HardSwish",
    "Erf",
    "Exp",
    "Abs",
    "Neg",
    "Floor",
    "Ceil",
):
    case(name, X2)
for name in (
    "Round",
    "Sign",
    "Sin",
    "Cos",
    "Tan",
    "Sinh",
    "Cosh",
    "Atan",
    "Reciprocal",
    "Selu",
    "Mish",
    "IsNaN",
    "Identity",
):
    case(name, X2, 18)
case("Selu", X2, 17, alpha=1.5, gamma=2.0)
for name in ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu"):
    case(name, X2)
    case(name, X2, 17, alpha=0.3)
case("HardSigmoid", X2)
case("HardSigmoid", X2, 17, alpha=1 / 6, beta=0.5)
case("HardSigmoid", X2, 17, alpha=0.4, beta=0.1)
case("Gelu", X2, 20)
case("Gelu", X2, 20, approximate="tanh")
case("PRelu", X2, 17, {"s": numbers(4, 1, 1)})
case("PRelu", X2, 9, {"s": numbers(1)})
case("PRelu", X2, 17, {"s": numbers(9, 7)})
case("Clip", X2, 9, min=-0.5, max=0.5)
case("Clip", X2, 9, min=0.0, max=6.0)
case("Clip", X2, 13, {"a": np.float32(0.0), "b": np.float32(6.0)})
case("Clip", X2, 13, {"a": np.float32(-0.2)})
case("Dropout", X2, 9, ratio=0.5)
case("Dropout", X2, 13, {"r": np.float32(0.5)})
for name in ("Softmax", "LogSoftmax"):
    case(name, X1, 9)
    case(name, X2, 11, axis=2)
    case(name, X2, 11, axis=-1)
    case(name, X2, 13)
    case(name, X2, 13, axis=1)

# --- normalisation

STATISTICS = {"s": numbers(4), "b": numbers(4, seed=1), "m": numbers(4, seed=2), "v": np.abs(numbers(4, seed=3)) + 0.1}
for shape in ((3, 4), X1, X2, X3):
    case("BatchNormalization", shape, 15, STATISTICS, epsilon=1e-3)
case("BatchNormalization", X2, 9, STATISTICS)
case("InstanceNormalization", X2, 17, {"s": numbers(4), "b": numbers(4, seed=1)})
case("LayerNormalization", X1, 17, {"s": numbers(11), "b": numbers(11, seed=1)})
case("LayerNormalization", X2, 17, {"s": numbers(9, 7)}, axis=2, epsilon=1e-3)
case("LayerNormalization", X2, 17, {"s": numbers(7)}, axis=-1)
case("GroupNormalization", X2, 21, {"s": numbers(4), "b": numbers(4, seed=1)}, num_groups=2)
case("LRN", (2, 7, 5, 5), 17, size=3, alpha=0.2, beta=0.6, bias=1.5)
case("LpNormalization", X2, 17, axis=1, p=2)
case("MeanVarianceNormalization", X2, 17)
case("MeanVarianceNormalization", X2, 17, axes=[2, 3])

# --- pools

for name in ("MaxPool", "AveragePool"):
    for attributes in (
        {"kernel_shape": [3, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]},
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 0, 1, 1], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [2, 2], "auto_pad": "VALID"},
    ):
        case(name, X2, 17, **attributes)
    case(name, X1, 12, kernel_shape=[3], strides=[2])
    case(name, X3, 12, kernel_shape=[2, 2, 2])
case("MaxPool", X2, 17, kernel_shape=[2, 2], dilations=[2, 3])
case("MaxPool", X2, 9, kernel_shape=[2, 2], pads=[1, 1, 1, 1], strides=[2, 2])
for attributes in ({"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 1, 0]}, {"pads": [1, 1, 1, 1], "ceil_mode": 1}):
    case("AveragePool", X2, 19, kernel_shape=[3, 3], strides=[2, 2], count_include_pad=1, **attributes)
for name in ("GlobalAveragePool", "GlobalMaxPool"):
    case(name, X1)
    case(name, X2)

# --- sizes

for mode in ("nearest", "linear"):
    case("Upsample", (2, 3, 4, 5), 9, {"s": floats(1, 1, 2, 2)}, mode=mode)
    case("Resize", (2, 3, 4, 5), 10, {"s": floats(1, 1, 2, 3)}, mode=mode)
case("Resize", (2, 3, 6, 8), 10, {"s": floats(1, 1, 0.5, 0.5)}, mode="nearest")
PLACES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
for place in PLACES:
    for scales in ((2, 2), (0.5, 0.5), (1.7, 0.6), (3, 1)):
        constants = {"roi": floats(), "s": floats(1, 1, *scales)}
        for mode in ("nearest", "linear", "cubic"):
            options = {"mode": mode, "coordinate_transformation_mode": place}
            case("Resize", (2, 3, 6, 8), 13, constants, **options)
    case(
        "Resize",
        (2, 3, 6, 8),
        13,
        {"roi": floats(), "s": floats(), "z": ints(2, 3, 11, 5)},
        mode="linear",
        coordinate_transformation_mode=place,
    )
for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    for scales in ((2, 2), (0.5, 0.5), (1.5, 1.25)):
        constants = {"roi": floats(), "s": floats(1, 1, *scales)}
        options = {"nearest_mode": rounding, "coordinate_transformation_mode": "half_pixel"}
        case("Resize", (2, 3, 6, 8), 13, constants, mode="nearest", **options)
case("Resize", (2, 3, 6, 8), 13, {"roi": floats(), "s": floats(1, 1, 1.5, 2)}, mode="cubic", cubic_coeff_a=-0.5)
case("Resize", (2, 3, 6, 8), 13, {"roi": floats(), "s": floats(1, 1, 1.5, 2)}, mode="cubic", exclude_outside=1)
case("Resize", (2, 3, 6, 8), 18, {"roi": floats(), "s": floats(2, 2)}, mode="linear", axes=[-2, 3])
case("Resize", (2, 3, 6), 13, {"roi": floats(), "s": floats(1, 1, 2)}, mode="linear")

# --- moves

case("Concat", X2, 17, {"c": np.repeat(numbers(1, 3, 9, 7), 2, 0)}, axis=1)
case("Concat", X2, 17, {"c": np.ones((2, 4, 9, 2), np.float32)}, axis=-1)
case("Slice", X2, 9, starts=[1, -5], ends=[3, 100], axes=[1, 3])
case("Slice", X2, 13, {"s": ints(1, -5), "e": ints(3, 2**63 - 1), "a": ints(1, -2)})
case("Slice", X2, 13, {"s": ints(0, -1), "e": ints(9, -(2**63)), "a": ints(2, 3), "t": ints(2, -1)})
case("Slice", X2, 13, {"s": ints(7), "e": ints(1), "a": ints(2), "t": ints(-2)})
case("Slice", X2, 13, {"s": ints(0, 1), "e": ints(5, 3)})
case("Pad", X2, 9, pads=[0, 0, 1, 2, 0, 0, 0, 3], value=0.5)
case("Pad", X2, 13, {"p": ints(0, 0, 1, 2, 0, 1, -1, 3), "v": np.float32(1.5)})
case("Pad", X2, 18, {"p": ints(1, 2), "v": np.float32(0), "a": ints(-1)})
for mode in ("reflect", "edge"):
    case("Pad", X2, 13, {"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}, mode=mode)
    case("Pad", X2, 13, {"p": ints(0, 1, 0, 2, 0, 0, 0, 0)}, mode=mode)
case("Pad", X2, 19, {"p": ints(0, 0, 1, 2, 0, 0, 3, 0)}, mode="wrap")
case("Reshape", X2, 17, {"s": ints(2, 2, -1)})
case("Reshape", X2, 17, {"s": ints(0, 0, -1)})
case("Reshape", X2, 17, {"s": ints(-1, 63)})
case("Reshape", X2, 17, {"s": ints(2, -1)})
case("Flatten", X2, 17)
case("Flatten", X2, 17, axis=2)
case("Flatten", X2, 17, axis=-1)
case("Transpose", X2, 17, perm=[0, 2, 3, 1])
case("Transpose", X1, 17)
case("Squeeze", (2, 1, 4, 1), 9, axes=[1, 3])
case("Squeeze", (2, 1, 4, 1), 9)
case("Squeeze", (2, 1, 4, 1), 13, {"a": ints(-1, 1)})
case("Unsqueeze", (2, 4), 9, axes=[1, 3])
case("Unsqueeze", (2, 4), 13, {"a": ints(-1, 1)})
case("Expand", (2, 1, 4), 17, {"s": ints(3, 1)})
case("Tile", X1, 17, {"r": ints(1, 2, 3)})
case("Gather", X2, 17, {"i": np.array(-1)}, axis=2)
case("Gather", X2, 17, {"i": ints(0, 2, -1)}, axis=1)
case("Gather", X2, 17, {"i": np.array([[0, 1], [2, -1]])}, axis=3)
case("Trilu", X1, 17)
case("Trilu", X1, 17, {"k": np.array(1)}, upper=0)
for mode in ("DCR", "CRD"):
    case("DepthToSpace", (2, 12, 3, 4), 11, blocksize=2, mode=mode)
case("SpaceToDepth", (2, 3, 4, 6), 13, blocksize=2)

# --- arithmetic, reductions

for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"):
    case(name, X2, 17, {"c": np.abs(numbers(4, 1, 1)) + 0.5})
    case(name, X2, 17, {"c": np.float32(1.5)})
for name in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
    case(name, X2, 17, {"c": np.float32(0.1)})
case("Pow", X2, 17, {"c": np.float32(2)})
case("Mod", X2, 17, {"c": np.float32(0.7)}, fmod=1)
case("Cast", X2, 17, to=7)
case("Cast", X2, 17, to=11)
REDUCTIONS = (
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
)
for name in (*REDUCTIONS, "ReduceLogSumExp"):
    if name != "ReduceSum":
        case(name, X2, 11, axes=[2, -1], keepdims=0)
        case(name, X2, 17, axes=[1])
    case(name, X2, 18, {"a": ints(-1, 2)})
    case(name, X2, 18, {"a": ints()}, noop_with_empty_axes=1)
case("ReduceSum", X2, 13, {"a": ints(1)}, keepdims=0)
case("ReduceSum", X2, 11, axes=[-2])
case("ArgMax", X2, 17, axis=1, keepdims=0)
case("ArgMin", X2, 17, axis=-1)
for attributes in ({}, {"exclusive": 1}, {"reverse": 1}, {"reverse": 1, "exclusive": 1}):
    case("CumSum", X1, 17, {"a": np.array(2)}, **attributes)

ACROSS = {("Transpose", 17, ()), ("MeanVarianceNormalization", 17, ())}
"""Those without attributes that mix the batch with other axes."""


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{i}-{c[0]}-{c[2]}" for i, c in enumerate(CASES)])
def test_operator(number: int, tmp_path: Path) -> None:
    """The numbers of onnxruntime, for the batch of the file; for another one, each input as if it were alone."""
    operator, shape, opset, attributes, constants = CASES[number]
    x = numbers(*shape, seed=9)
    model = made([node(operator, "x", *constants, **attributes)], x, ["y"], opset, **constants)
    net = loaded(model, tmp_path)
    given, expected = torch.from_numpy(x), by_onnxruntime(model, {"x": x})
    with torch.no_grad():
        assert difference(net(given), expected) <= 1e-5
        assert net.meta["shapes"]["x"][0] is None
        if (operator, opset, tuple(attributes)) not in ACROSS:
            again = net(torch.cat([given, given[:1], given]))[: len(expected[0])]
            assert torch.allclose(again.double(), net(given).double(), rtol=1e-5, atol=1e-6, equal_nan=True)

"""The exact linear map of integer codes in ONNX: products, convolutions, biases.

A sum that may pass 2^24 is computed in float64; a convolution, which onnxruntime has in float32 only, in slices of its
input's bits that each stay below.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.export.onnx.arithmetic import (
    FLOAT32_LIMIT,
    Edge,
    added,
    codes_constant,
    held,
    multiplied,
    needs_wide,
    numbers_constant,
    scalar,
)
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program.core.ops import Geometry


def linear_map(b: GraphBuilder, geometry: Geometry, x: Edge, weight: Tensor, name: str) -> Edge:
    """The bias-free linear map of integer codes, exact.

    Args:
        b: The graph.
        geometry: The map.
        x: Input codes.
        weight: Weight codes, torch's layout.
        name: What the weight's initializer is called.
    """
    codes = weight.numpy()
    reach = _largest_sum(geometry, codes)
    largest = reach * x.largest
    if geometry.kind == "linear":
        wide = needs_wide(largest, x.largest)
        matrix = codes_constant(b, np.ascontiguousarray(codes.T), _once(b, name))
        return Edge(b.add("MatMul", held(b, x, wide), held(b, matrix, wide)), largest, wide)
    stored = codes_constant(b, codes, _once(b, name))
    if not needs_wide(largest, x.largest):
        return Edge(_convolution(b, geometry, x.name, stored.name, codes), largest)
    bits = (FLOAT32_LIMIT // max(reach, 1)).bit_length() - 1
    if bits < 1:
        raise UnsupportedError(
            "the weights of one output alone pass 2^24, and onnxruntime convolves in float32",
            given=reach,
            where=b.scope,
        )
    high, low = split_bits(b, x, bits)
    upper = linear_map(b, geometry, Edge(held(b, high, needs_wide(high.largest)), high.largest), weight, name)
    lower = _convolution(b, geometry, held(b, low, False), stored.name, codes)
    shifted = multiplied(b, upper, Edge(scalar(b, 2.0**bits), 1 << bits))
    total = added(b, shifted, Edge(lower, reach * low.largest))
    return Edge(total.name, largest, total.wide)


def split_bits(b: GraphBuilder, x: Edge, bits: int) -> tuple[Edge, Edge]:
    """`floor(x / 2^bits)` and the rest, which lies in `[0, 2^bits)`."""
    scaled = b.add("Mul", x.name, scalar(b, 2.0**-bits, x.wide))
    high = Edge(b.add("Floor", scaled), (x.largest >> bits) + 1, x.wide)
    back = b.add("Mul", high.name, scalar(b, 2.0**bits, x.wide))
    return high, Edge(b.add("Sub", x.name, back), (1 << bits) - 1, x.wide)


def shaped_bias(b: GraphBuilder, geometry: Geometry, bias: Tensor) -> Edge:
    """Bias codes that broadcast over an operation's output."""
    values = bias.numpy()
    shaped = values if geometry.kind == "linear" else values.reshape(-1, *[1] * len(geometry.stride))
    return numbers_constant(b, shaped)


def _once(b: GraphBuilder, name: str) -> str:
    """The tensor's name for its first initializer; later ones are shared by their content."""
    return "" if f"codes/{name}" in b.constants else f"codes/{name}"


def _largest_sum(geometry: Geometry, codes: Any) -> int:
    """Largest `sum |w|` over the inputs of one output."""
    if not codes.size:
        return 0
    if geometry.kind == "conv_transpose":
        return int(np.abs(codes).sum(axis=(0, *range(2, codes.ndim))).max())
    return int(np.abs(codes).reshape(len(codes), -1).sum(axis=1).max())


def _convolution(b: GraphBuilder, geometry: Geometry, x: str, weight: str, codes: Any) -> str:
    attributes: dict[str, Any] = {
        "kernel_shape": list(codes.shape[2:]),
        "strides": list(geometry.stride),
        "pads": [*geometry.padding, *geometry.padding],
        "dilations": list(geometry.dilation),
        "group": geometry.groups,
    }
    if geometry.kind == "conv_transpose":
        output_padding = geometry.output_padding or (0,) * len(geometry.stride)
        return b.add("ConvTranspose", x, weight, output_padding=list(output_padding), **attributes)
    return b.add("Conv", x, weight, **attributes)

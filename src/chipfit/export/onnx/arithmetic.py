"""Integer arithmetic in ONNX: codes held in float32, or in float64 where they or a sum may pass 2^24.

Everything here is exact: sums and products of integers below the limit, and scaling by powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from chipfit.errors import UnsupportedError
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program.types import ValueType

FLOAT32_LIMIT = 1 << 24
FLOAT64_LIMIT = 1 << 53
_GRIDS: tuple[tuple[str, int, int], ...] = (
    ("int8", -(1 << 7), (1 << 7) - 1),
    ("uint8", 0, (1 << 8) - 1),
    ("int16", -(1 << 15), (1 << 15) - 1),
    ("uint16", 0, (1 << 16) - 1),
)


@dataclass(frozen=True)
class Edge:
    """Integers on an edge of the ONNX graph.

    Args:
        name: The edge.
        largest: Bound on their magnitude.
        wide: Whether they are held in float64.
    """

    name: str
    largest: int
    wide: bool = False


def real_dtype(wide: bool) -> Any:
    """The numpy type that holds codes."""
    return np.float64 if wide else np.float32


def scalar(b: GraphBuilder, value: float, wide: bool = False) -> str:
    """A constant number."""
    return b.constant(np.array(value, dtype=real_dtype(wide)))


def needs_wide(*bounds: int) -> bool:
    """Whether integers up to these bounds need float64.

    Raises:
        UnsupportedError: not even float64 holds them.

    Example:
        >>> needs_wide(1 << 24), needs_wide(5, (1 << 24) + 1)
        (False, True)
    """
    largest = max(bounds)
    if largest > FLOAT64_LIMIT:
        raise UnsupportedError("a sum may pass what float64 holds exactly", given=largest, allowed="up to 2^53")
    return largest > FLOAT32_LIMIT


def held(b: GraphBuilder, edge: Edge, wide: bool) -> str:
    """The edge's integers in the wanted type."""
    from onnx import TensorProto

    if edge.wide == wide:
        return edge.name
    return b.add("Cast", edge.name, to=TensorProto.DOUBLE if wide else TensorProto.FLOAT)


def clip(b: GraphBuilder, name: str, lo: float, hi: float, wide: bool = False) -> str:
    """Limit to `[lo, hi]`."""
    return b.add("Clip", name, scalar(b, lo, wide), scalar(b, hi, wide))


def integral(b: GraphBuilder, v: str, wide: bool = False) -> str:
    """Whole numbers through an integer type and back: the same numbers, without a negative zero."""
    from onnx import TensorProto

    whole = b.add("Cast", v, to=TensorProto.INT64 if wide else TensorProto.INT32)
    return b.add("Cast", whole, to=TensorProto.DOUBLE if wide else TensorProto.FLOAT)


def quantise_linear(b: GraphBuilder, name: str, step: float, lo: int, hi: int, output: str = "") -> str:
    """`sat(half_even(x / step))` as QuantizeLinear, then back to float32 codes by a Cast.

    It is a Cast and not a DequantizeLinear because onnxruntime can replace a DequantizeLinear, an operation and a
    QuantizeLinear by one integer kernel with a requantisation of its own.

    Args:
        b: The graph.
        name: Edge of float32 numbers.
        step: Real value of one code, a power of two.
        lo: Lowest code.
        hi: Highest code; the range lies within int16 or uint16.
        output: Name for the result.
    """
    from onnx import TensorProto

    grid, lowest, highest = next(entry for entry in _GRIDS if entry[1] <= lo and hi <= entry[2])
    codes = b.add("QuantizeLinear", name, scalar(b, step), b.constant(np.array(0, dtype=grid)))
    if (lo, hi) == (lowest, highest):
        return b.add("Cast", codes, output=output, to=TensorProto.FLOAT)
    exact = b.add("Cast", codes, to=TensorProto.FLOAT)
    return b.add("Clip", exact, scalar(b, lo), scalar(b, hi), output=output)


def dequantise_linear(b: GraphBuilder, name: str, step: float, lo: int, hi: int, output: str = "") -> str:
    """`code * step` as DequantizeLinear, behind a Cast to the narrowest type that holds `[lo, hi]`.

    Args:
        b: The graph.
        name: Edge of codes.
        step: Real value of one code.
        lo: Lowest code.
        hi: Highest code; the range lies within int16 or uint16.
        output: Name for the result.
    """
    from onnx import TensorProto

    grid = next(entry[0] for entry in _GRIDS if entry[1] <= lo and hi <= entry[2])
    narrow = b.add("Cast", name, to=getattr(TensorProto, grid.upper()))
    return b.add("DequantizeLinear", narrow, scalar(b, step), b.constant(np.array(0, dtype=grid)), output=output)


def fits_quantise_linear(lo: int, hi: int) -> bool:
    """Whether QuantizeLinear has a type for these codes.

    Example:
        >>> fits_quantise_linear(-2048, 2047), fits_quantise_linear(-1, 1 << 16)
        (True, False)
    """
    return any(lowest <= lo and hi <= highest for _, lowest, highest in _GRIDS)


def requantise(
    b: GraphBuilder,
    value: Edge,
    log2_divisor: int,
    lo: int,
    hi: int,
    rounded: Callable[[GraphBuilder, str, bool], str] | None = None,
    offset: int = 0,
) -> Edge:
    """`sat(round(value / 2^log2_divisor + offset))`.

    Args:
        b: The graph.
        value: Integers.
        log2_divisor: Exponent of the divisor; negative multiplies.
        lo: Lowest result.
        hi: Highest result.
        rounded: Rounds an edge of real codes, held in float64 or not, by a rule of the chip's own; None rounds half to
            even.
        offset: Added before the rounding, so that it decides which way a tie goes.
    """
    bound = max(abs(lo), abs(hi))
    if rounded is None and not value.wide and not offset and fits_quantise_linear(lo, hi):
        return Edge(quantise_linear(b, value.name, math.ldexp(1.0, log2_divisor), lo, hi), bound)
    # Before it is rounded, a clipped quotient has as many fraction bits as the divisor, and a rounding constant two.
    fraction_bits = max(log2_divisor, 2)
    wide = needs_wide((bound + abs(offset) + 1) << fraction_bits, value.largest)
    v = b.add("Mul", held(b, value, wide), scalar(b, math.ldexp(1.0, -log2_divisor), wide))
    if offset:
        v = b.add("Add", clip(b, v, lo - offset, hi - offset, wide), scalar(b, offset, wide))
    limited = clip(b, v, lo, hi, wide)
    result = Edge(b.add("Round", limited) if rounded is None else rounded(b, limited, wide), bound, wide)
    return Edge(held(b, result, needs_wide(bound)), bound, needs_wide(bound))


def added(b: GraphBuilder, first: Edge, second: Edge, kind: str = "Add") -> Edge:
    """Exact sum or difference of two edges, with broadcasting."""
    largest = first.largest + second.largest
    wide = needs_wide(largest)
    return Edge(b.add(kind, held(b, first, wide), held(b, second, wide)), largest, wide)


def multiplied(b: GraphBuilder, first: Edge, second: Edge) -> Edge:
    """Exact product of two edges, with broadcasting."""
    largest = first.largest * second.largest
    wide = needs_wide(largest, first.largest, second.largest)
    return Edge(b.add("Mul", held(b, first, wide), held(b, second, wide)), largest, wide)


def codes_constant(b: GraphBuilder, values: Any, name: str = "") -> Edge:
    """Integers of the program as an initializer of the narrowest type, cast to a type that computes.

    They are cast and not dequantised: onnxruntime can turn a DequantizeLinear of weights before a MatMul into a kernel
    that quantises the other operand anew.

    Args:
        b: The graph.
        values: numpy array of integers.
        name: Name of the initializer; '' shares it with an equal one.
    """
    from onnx import TensorProto

    lo, hi = (int(values.min()), int(values.max())) if values.size else (0, 0)
    narrow = next((grid for grid, lowest, highest in _GRIDS if lowest <= lo and hi <= highest), "")
    if not narrow:
        return numbers_constant(b, values, name)
    stored = b.constant(values.astype(narrow), name)
    return Edge(b.add("Cast", stored, to=TensorProto.FLOAT), max(-lo, hi), False)


def numbers_constant(b: GraphBuilder, values: Any, name: str = "") -> Edge:
    """Integers as an initializer of the type that computes; arguments as of `codes_constant`."""
    largest = int(np.abs(values).max()) if values.size else 0
    wide = needs_wide(largest)
    return Edge(b.constant(values.astype(real_dtype(wide)), name), largest, wide)


def rank(b: GraphBuilder, source: ValueType) -> int:
    """Number of axes of an edge, the batch included.

    Raises:
        UnsupportedError: it is not known.
    """
    if source.shape is None:
        raise UnsupportedError(
            "this operation needs to know how many axes its input has",
            where=b.scope,
            hint="Let the batch be the first axis of the network's input.",
        )
    return len(source.shape) + 1


def gathered(b: GraphBuilder, codes: Edge, table: Any, first: int) -> Edge:
    """`table[code - first]` for a table of one row."""
    from onnx import TensorProto

    index = b.add("Sub", codes.name, scalar(b, first, codes.wide))
    positions = b.add("Cast", index, to=TensorProto.INT64)
    entries = numbers_constant(b, table.reshape(-1))
    return Edge(b.add("Gather", entries.name, positions, axis=0), entries.largest, entries.wide)


def summed(b: GraphBuilder, x: Edge, dims: tuple[int, ...], keepdim: bool) -> str:
    """Sum over axes in float64."""
    axes = b.constant(np.array(dims, dtype=np.int64))
    return b.add("ReduceSum", held(b, x, True), axes, keepdims=int(keepdim))

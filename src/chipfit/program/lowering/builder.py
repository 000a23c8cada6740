"""What lowering builds a program with: values that know their range, nodes with unique names, grids and tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.types import Grid, Node, ValueType

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of one tensor for the example and for the example with twice the batch."""


@dataclass(frozen=True)
class Value:
    """An edge of the program under construction.

    Args:
        name: The edge.
        type: Its type; shapes are filled in at the end.
        lo, hi: The codes that can occur, where that is narrower than the type.
    """

    name: str
    type: ValueType
    lo: int = 0
    hi: int = 0


@dataclass(frozen=True)
class Call:
    """One call in the traced network, as its lowering rule sees it.

    Args:
        name: Name for the node that gives the call's result.
        layer: Qualified name of the chip layer, or ''.
        shapes: Shapes of the result; of all results where there are several.
        input_shapes: Shapes of the tensors among the positional arguments.
        rounding: Rounding rule for the array, or None for the layer's own.
    """

    name: str
    layer: str
    shapes: Any
    input_shapes: tuple[Shapes, ...]
    rounding: str | None = None


def log2_of(scale: float, what: str, where: str = "") -> int:
    """Exponent of a power of two.

    Args:
        scale: The scale.
        what: Which scale, for the error.
        where: Layer, for the error.

    Raises:
        UnsupportedError: it is none; the error names the nearest ones.

    Example:
        >>> log2_of(0.25, "scale_x")
        -2
    """
    mantissa, exponent = math.frexp(scale)
    if mantissa != 0.5:
        below, above = math.ldexp(1.0, exponent - 1), math.ldexp(1.0, exponent)
        raise UnsupportedError(
            f"{what} is no power of two, and the chip only shifts",
            given=scale,
            allowed=f"{below:g} or {above:g}",
            where=where or None,
        )
    return exponent - 1


def half_even_codes(values: Any, scale: float, lo: float, hi: float) -> Any:
    """Codes of real numbers in the dtype of `values`: scale, clip, round half to even.

    Example:
        >>> half_even_codes(np.float32([0.5, 1.5, 9.0]), 1.0, -4, 3)
        array([0, 2, 3])
    """
    scaled = values * values.dtype.type(scale)
    return np.rint(np.clip(scaled, lo, hi)).astype(np.int64)


def clipped_range(limit: float | None, scale: float, lo: int, hi: int, rounding: str = "witin_nn") -> tuple[int, int]:
    """Range of codes that a clip to ±`limit` in real units leaves; None and 0 clip nothing.

    A negative limit gives the constant `limit`, as `torch.clamp` does with crossed bounds.

    A clip before a rounding is a clip to its rounded bounds after it, because rounding is monotone.

    Args:
        limit: The clip.
        scale: Codes per unit.
        lo: Lowest code without it.
        hi: Highest code without it.
        rounding: Rule by which the clipped value is rounded, 'witin_nn' or 'wtm2101'.

    Example:
        >>> clipped_range(1.53125, 16, -128, 127), clipped_range(1.53125, 16, -128, 127, "wtm2101")
        ((-24, 24), (-24, 25))
        >>> clipped_range(None, 16, -128, 127)
        (-128, 127)
    """
    if not limit:
        return lo, hi
    bound = float(np.float32(limit)) * scale
    ends = (-bound, bound) if bound > 0 else (bound, bound)
    if rounding == "witin_nn":
        codes = [round(end) for end in ends]
    else:
        codes = [math.floor(end + 0.5) if end >= 0 else math.trunc(end - 0.25) for end in ends]
    low, high = (min(max(code, lo), hi) for code in codes)
    return low, high


class Builder:
    """The program so far.

    Attributes:
        nodes: In order.
        tensors: By name.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self._used: set[str] = set()

    def unique(self, name: str) -> str:
        """A name that no edge has yet: the given one, or with '@1', '@2' and so on."""
        count, candidate = 0, name
        while candidate in self._used:
            count += 1
            candidate = f"{name}@{count}"
        self._used.add(candidate)
        return candidate

    def add(
        self,
        name: str,
        op: ops.Op,
        inputs: tuple[Value, ...],
        like: ValueType,
        lo: int | None = None,
        hi: int | None = None,
        layer: str = "",
        exact_in_float32: bool = True,
    ) -> Value:
        """Append a node.

        Args:
            name: Wanted name; see `unique`.
            op: The operation.
            inputs: Its inputs.
            like: Type of the edge.
            lo: Lowest code that can occur, default the type's.
            hi: Highest, likewise.
            layer: See `Node`.
            exact_in_float32: See `Node`.
        """
        name = self.unique(name)
        edge = replace(like, shape=None)
        self.nodes.append(Node(name, op, tuple(value.name for value in inputs), edge, layer, exact_in_float32))
        return Value(name, edge, edge.lo if lo is None else lo, edge.hi if hi is None else hi)

    def keep(self, name: str, values: Any) -> str:
        """Store a tensor of the program and return its name; equal tensors of one name are stored once."""
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
        tensor = tensor.detach().clone().cpu()
        count, candidate = 0, name
        while candidate in self.tensors and not torch.equal(self.tensors[candidate], tensor):
            count += 1
            candidate = f"{name}@{count}"
        self.tensors[candidate] = tensor
        return candidate

    def on_grid(
        self,
        name: str,
        value: Any,
        grid: ValueType,
        lo: int | None = None,
        hi: int | None = None,
    ) -> Value:
        """Bring a value to a grid: nothing where it is on it, else Quantise or Rescale; a number becomes a Constant.

        Args:
            name: Name of the node, where one is needed.
            value: A `Value`, a number or a tensor that does not depend on the input.
            grid: The grid.
            lo: Lowest code, default the grid's.
            hi: Highest code, likewise.
        """
        lo, hi = grid.lo if lo is None else lo, grid.hi if hi is None else hi
        if not isinstance(value, Value):
            numbers = torch.as_tensor(value).detach().cpu().to(torch.float32).numpy()
            codes = half_even_codes(np.asarray(numbers, dtype=np.float32), grid.scale, lo, hi)
            return self.add(name, ops.Constant(self.keep(name, codes)), (), grid, lo, hi)
        if value.type.real:
            return self.add(name, ops.Quantise(grid.scale, grid.zero, lo, hi), (value,), grid, lo, hi)
        shift = log2_of(grid.scale / value.type.scale, "ratio of scales")
        if shift == 0 and grid.zero == 0 and lo <= value.lo and value.hi <= hi:
            return value
        if grid.zero and shift < 0 and (max(abs(value.lo), value.hi) + (grid.zero << -shift)) > 1 << 24:
            raise UnsupportedError(
                "the layer adds shift_num to an input so much finer than its own grid that float32 rounds twice",
                given=f"scale {value.type.scale:g} to {grid.scale:g}",
                hint="Bring the scales closer together.",
            )
        return self.add(name, ops.Rescale(shift, grid.zero, lo, hi), (value,), grid, lo, hi)

    def aligned(self, name: str, values: list[Value]) -> list[Value]:
        """Bring values to the finest of their grids without losing anything; real ones must stay among themselves.

        Raises:
            UnsupportedError: real numbers and codes are mixed.
        """
        if all(value.type.real for value in values):
            return values
        if any(value.type.real for value in values):
            raise UnsupportedError(
                "real numbers and codes meet", hint="Put a chip layer between the network's input and this operation."
            )
        finest = max(value.type.scale for value in values)
        lo = min(value.lo * int(finest / value.type.scale) for value in values)
        hi = max(value.hi * int(finest / value.type.scale) for value in values)
        grid = type_for(lo, hi, finest)
        return [self.on_grid(f"{name}.{i}", value, grid) for i, value in enumerate(values)]


def type_for(lo: int, hi: int, grid: Grid | float | None) -> ValueType:
    """Narrowest type that holds a range of codes on a grid; a number is the n of a plain one.

    Example:
        >>> type_for(0, 200, 4.0).bits, type_for(-100, 200, 4.0).bits
        (8, 9)
    """
    if lo >= 0:
        return ValueType(None, max(hi.bit_length(), 1), False, grid)
    return ValueType(None, 1 + max(hi.bit_length(), (-lo - 1).bit_length()), True, grid)


def grid(bits: int, signed: bool, scale: float, zero: int = 0) -> ValueType:
    """Type of codes of a width and scale; the shape comes later."""
    return ValueType(None, bits, signed, Grid("plain", float(scale), zero))

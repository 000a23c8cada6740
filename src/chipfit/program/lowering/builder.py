"""What lowering builds a program with: values that know their range, nodes with unique names, grids and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.reference import compute
from chipfit.program.types import Grid, Input, Node, Program, ValueType

Shapes = tuple[tuple[int, ...], ...]
"""Shapes of one tensor for the example and for the example with twice the batch."""


@dataclass(frozen=True)
class Value:
    """An edge of the program under construction.

    Args:
        name: The edge.
        type: Its type.
        lo, hi: The codes that can occur, where that is narrower than the type.
        samples: Its values on the example and on the example with twice the batch, as the reference computes them.
        origin: What a vendor's rules want to know of how it came about.
    """

    name: str
    type: ValueType
    lo: int = 0
    hi: int = 0
    samples: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    origin: Any = field(default=None, repr=False, compare=False)

    @property
    def grid(self) -> Grid | None:
        """What its codes stand for; None for real numbers and bare sums."""
        return self.type.grid

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on the example, the batch included."""
        return tuple(self.samples[0].shape)

    @property
    def largest(self) -> int:
        """Largest magnitude of a code."""
        return max(abs(self.lo), abs(self.hi))

    @property
    def standing_in(self) -> bool:
        """Whether it stands in for something that could not be lowered."""
        return self.name == STAND_IN


STAND_IN = "?"
"""Name of what stands in for something that could not be lowered."""


def stand_in(once: tuple[int, ...], twice: tuple[int, ...]) -> Value:
    """A value in place of one that could not be lowered, so that what comes after it is looked at too."""
    return Value(STAND_IN, ValueType(None, None), samples=(torch.zeros(once), torch.zeros(twice)))


@dataclass(frozen=True)
class Call:
    """One call in the traced network, as its lowering rule sees it.

    Args:
        name: Name for the node that gives the call's result.
        layer: Qualified name of the chip layer, or ''.
        shapes: Shapes of the result; of all results where there are several.
        input_shapes: Shapes of the tensors among the positional arguments.
        options: The vendor's options of 'lower'.
    """

    name: str
    layer: str
    shapes: Any
    input_shapes: tuple[Shapes, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def inner(self, part: str) -> Call:
        """The call of a layer's part, for layers that are put together from others."""
        return replace(self, name=f"{self.name}.{part}", layer=f"{self.layer}.{part}" if self.layer else "")


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


class Builder:
    """The program so far; every node that is added is computed on the example at once, which gives its shape.

    Args:
        advice: See `Lowering`.

    Attributes:
        inputs: In order.
        nodes: In order.
        tensors: By name.
    """

    def __init__(self, advice: Mapping[str, str] | None = None) -> None:
        self.advice = dict(advice or {})
        self.inputs: list[Input] = []
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self._used: set[str] = set()
        self._types: dict[str, ValueType] = {}

    def input(self, name: str, once: Tensor, twice: Tensor) -> Value:
        """Add a real input.

        Args:
            name: Wanted name; see `unique`.
            once: The example.
            twice: The example with twice the batch.
        """
        name = self.unique(name)
        samples = tuple(x.detach().cpu().to(torch.float32) for x in (once, twice))
        edge = ValueType(_shape(*samples), None)
        self.inputs.append(Input(name, edge))
        self._types[name] = edge
        return Value(name, replace(edge, shape=None), samples=samples)

    def type(self, edge: str) -> ValueType:
        """Type of an edge so far, as `Program.type`."""
        return self._types.get(edge, ValueType(None, None))

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
        node = Node(name, op, tuple(value.name for value in inputs), edge, layer, exact_in_float32)
        by_run = zip(*(value.samples for value in inputs), strict=True) if inputs else [(), ()]
        samples = tuple(compute(node, list(args), cast(Program, self)) for args in by_run)
        self._types[name] = replace(edge, shape=_shape(*samples))
        self.nodes.append(replace(node, output=self._types[name]))
        lo, hi = edge.lo if lo is None else lo, edge.hi if hi is None else hi
        if edge.real and any(value.standing_in for value in inputs):
            name = STAND_IN  # it still stands in, for codes that nobody knows
        return Value(name, edge, lo, hi, samples)

    def number(self, first: int, call: int) -> None:
        """Say of the nodes from the `first` on that give a layer's output which call of the layer they are of."""
        for at in range(first, len(self.nodes)):
            if self.nodes[at].layer:
                self.nodes[at] = replace(self.nodes[at], call=call)

    def known_nodes(self) -> Iterator[Node]:
        """The nodes that nothing stands in for in what they depend on."""
        unknown = {STAND_IN}
        for node in self.nodes:
            if unknown & set(node.inputs):
                unknown.add(node.name)
            else:
                yield node

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
            UnsupportedError: real numbers and codes are mixed, or codes of grids that only a vendor's layers read.
        """
        known = [value for value in values if not value.standing_in] or values
        if len(known) < len(values):
            values = [replace(known[0], samples=value.samples) if value.standing_in else value for value in values]
        if all(value.type.real for value in values):
            return values
        if any(value.type.real for value in values):
            raise UnsupportedError(
                "real numbers and codes meet", hint="Put a chip layer between the network's input and this operation."
            )
        if all(value.grid == values[0].grid for value in values):
            return values
        if not all(value.grid is not None and value.grid.shiftable for value in values):
            raise UnsupportedError(
                "features of different grids meet", given=[value.grid for value in values], hint="Quantise them alike."
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


def _shape(once: Tensor, twice: Tensor) -> tuple[int, ...] | None:
    """Shape without the batch; None where axis 0 is not the batch."""
    batched = once.dim() > 0 and twice.shape[0] == 2 * once.shape[0] and once.shape[1:] == twice.shape[1:]
    return tuple(once.shape[1:]) if batched else None

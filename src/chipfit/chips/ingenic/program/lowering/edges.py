"""What the Ingenic lowering rules work with: codes that know their grid, and how to read a layer's input.

A feature is lowered to the vendor's own tuple `(tensor, bit, min)` with a value in place of the tensor. Everything here
is written from spec/ingenic.md; nothing comes from the arithmetic that trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.program.ops import PixelCodes
from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.lowering.builder import Builder, Value, type_for
from chipfit.program.types import Grid, ValueType

Lowered = Any
"""What a traced value becomes: a `Value`, or the vendor's tuples and lists with values in place of tensors."""


class Description(NamedTuple):
    """What a layer is told of its input beside the tensor (section 2).

    Args:
        bits: Width of its codes; 32 when they are not quantised.
        minimum: Below zero when it is signed; only the sign counts.
        tagged: Whether it came as the vendor's tuple.
        prepared: Mean and divisor of an image that comes from `Preprocess`.
    """

    bits: int
    minimum: float
    tagged: bool
    prepared: tuple[float, float] | None = None

    @property
    def signed(self) -> bool:
        """Whether it has negative codes."""
        return self.minimum < 0

    def around(self, value: Value) -> Lowered:
        """The same description around another value, or the bare value."""
        return (value, self.bits, self.minimum) if self.tagged else value


def read(x: Lowered, bits: int = 32, first_layer: bool = False) -> tuple[Value, Description]:
    """Read a layer's lowered input as the layer itself reads it.

    Raises:
        UnsupportedError: it is something else.
    """
    if isinstance(x, Value):
        return x, Description(bits, 0.0, False)
    if isinstance(x, (tuple, list)) and len(x) >= 3 and isinstance(x[0], Value):
        prepared = (float(x[2]), float(x[3])) if first_layer else None
        return x[0], Description(int(x[1]), float(x[-1]), True, prepared)
    if isinstance(x, Tensor):
        raise UnsupportedError("a parameter or buffer of the network's own is no feature")
    raise UnsupportedError("the layer's input cannot be read", given=type(x).__name__)


def add(
    b: Builder,
    name: str,
    op: ops.Op,
    inputs: tuple[Value, ...],
    grid: Grid | None = None,
    limits: tuple[int, int] | None = None,
    layer: str = "",
    exact: bool = True,
) -> Value:
    """Append a node.

    Args:
        b: The builder.
        name: Wanted name.
        op: The operation.
        inputs: Its inputs.
        grid: What its codes stand for; None for real numbers and for sums.
        limits: Lowest and highest code; None for real numbers.
        layer: Chip layer whose output this is, or ''.
        exact: See `Node.exact_in_float32`.
    """
    like, lo, hi = ValueType(None, None), 0, 0
    if limits is not None:
        lo, hi = limits
        like = type_for(lo, hi, grid)
    return b.add(name, op, inputs, like, lo, hi, layer, exact)


def moved(b: Builder, name: str, op: ops.Op, x: Value, layer: str = "") -> Value:
    """Append a node that only moves or selects codes."""
    return add(b, name, op, (x,), x.grid, limits_of([x]), layer)


def padded(b: Builder, name: str, x: Value, pads: tuple[int, ...], code: int) -> Value:
    """Pad with a code, `pads` from the last axis backwards; nothing where all are 0."""
    if not any(pads):
        return x
    limits = None if x.type.real else (min(x.lo, code), max(x.hi, code))
    return add(b, f"{name}.pad", ops.Pad(pads, "constant", code), (x,), x.grid, limits)


def codes(b: Builder, name: str, x: Value, given: Description, device: Device) -> Value:
    """The input of a layer as codes of the grid that its description names.

    An image from `Preprocess`, and a network's input that was described as unsigned, become codes here.

    Raises:
        UnsupportedError: it has no codes there.
    """
    wanted = tuple(grids(given, device))
    if x.grid is not None and any(x.grid.n == n for n, _ in wanted):
        return x
    if x.standing_in:
        return coded(x, given, device)
    pixels = given.prepared is not None or (any(x.name == i.name for i in b.inputs) and not given.signed)
    if pixels and x.type.real and wanted:
        n, lo, hi = wanted[0][0], 0, wanted[0][1]
        if given.prepared is not None:
            lo, hi = -int(given.prepared[0]), 255 - int(given.prepared[0])
        return add(b, f"{name}.input", PixelCodes(n, lo, hi), (x,), Grid("plain", n), (lo, hi))
    raise UnsupportedError(
        "the layer's input has no integer codes that its description names",
        given="real numbers" if x.grid is None else f"codes of 1/{x.grid.n:g}",
        allowed=" or ".join(f"codes of 1/{n:g}" for n, _ in wanted) or "a width below 32 bits",
        hint="Quantise the layer before it for this target; an image needs a Preprocess with a whole-number mean.",
    )


def coded(x: Value, given: Description, device: Device) -> Value:
    """What stands in for a feature that could not be lowered, as codes of a grid that it may lie on; others as is."""
    if not x.standing_in:
        return x
    n, largest = next(grids(given, device), (1.0, 1))
    samples = tuple(sample.to(torch.int64) for sample in x.samples)
    return replace(x, type=ValueType(None, 32, True, Grid("plain", n)), lo=-largest, hi=largest, samples=samples)


def grids(given: Description, device: Device) -> Iterator[tuple[float, int]]:
    """Grids that a described feature may lie on, as codes a unit and largest magnitude.

    A signed feature of Txx, Xs1, Xs2 is a multiple of `1 / 2^(bits-1)`, or after a Shortcut of `1 / (2^(bits-1) - 1)`;
    any other one of `1 / (2^bits - 1)`. An image is counted in steps of `1 / var`, if its mean is a whole number.

    Source:
        spec/ingenic.md, sections 1.2, 1.7 and 2.

    Example:
        >>> from chipfit.chips.ingenic.devices import device
        >>> list(grids(Description(8, -1.0, True), device("Txx", "grids")))
        [(128.0, 128), (127.0, 127)]
    """
    if given.bits >= 32:
        return
    if given.prepared is not None:
        mean, var = given.prepared
        if mean == int(mean) and var > 0:
            yield float(var), max(abs(int(mean)), abs(255 - int(mean)))
    elif given.signed and device.family == "TXX":
        half = 1 << (given.bits - 1)
        yield from ((float(n), n) for n in (half, half - 1))
    else:
        n = (1 << given.bits) - 1
        yield float(n), n


def border_code(x: Value, given: Description, device: Device, first_layer: bool = False) -> int:
    """Code that fills a border: that of 0, or of -1 where signed codes have no zero (section 1.5)."""
    lowest = device.family == "T40F" and given.signed and not first_layer
    return -round(x.grid.n if x.grid is not None else 1.0) if lowest else 0


def same_pads(size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    """Border that leaves ceil(size / stride) outputs, from the last axis backwards, before and after (section 1.5).

    Args:
        size: One number a spatial axis, first axis first.
        kernel: Likewise.
        stride: Likewise.

    Returns:
        The odd element comes after; negative numbers crop.

    Example:
        >>> same_pads((8, 9), (3, 3), (2, 2))
        (1, 1, 0, 1)
    """
    pads: list[int] = []
    for n, k, s in reversed(list(zip(size, kernel, stride, strict=True))):
        total = (-(-n // s) - 1) * s + k - n  # (outputs - 1) steps, and one kernel
        before = total // 2
        pads += [before, total - before]
    return tuple(pads)


def joined_grid(values: list[Value]) -> Grid | None:
    """The grid that several values share.

    Raises:
        UnsupportedError: they have several.
    """
    known = [value for value in values if not value.standing_in] or values
    if any(value.grid != known[0].grid for value in known):
        raise UnsupportedError(
            "features of different grids meet", given=[value.grid for value in known], hint="Quantise them alike."
        )
    grid: Grid | None = known[0].grid
    return grid


def limits_of(values: list[Value]) -> tuple[int, int] | None:
    """Range of codes of several values; None for real numbers."""
    if any(value.type.real for value in values):
        return None
    return min(value.lo for value in values), max(value.hi for value in values)


def float32(values: Any) -> Any:
    """Numbers or a parameter as a float32 array of at least one axis."""
    array = torch.as_tensor(values).detach().cpu().to(torch.float32).numpy()
    return np.atleast_1d(array)

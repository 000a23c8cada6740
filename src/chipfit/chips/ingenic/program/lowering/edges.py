"""What the Ingenic lowering rules work with: edges that know their grid, and how to read a layer's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.exact import grids
from chipfit.chips.ingenic.operators.features import Feature, pad_value
from chipfit.chips.ingenic.program.ops import PixelCodes
from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.lowering.builder import Builder, Value, type_for
from chipfit.program.reference import apply
from chipfit.program.types import Grid, ValueType

Lowered = Any
"""What a traced value becomes: an `Edge`, or the vendor's tuples and lists with edges in place of tensors."""


@dataclass(frozen=True)
class Edge:
    """An edge of the program under construction.

    Args:
        value: Its name, type and range.
        grid: What its codes stand for; None for real numbers and for sums.
        sample: Its values on the example, as the reference computes them; only their shape is used.
        left: Of real numbers that were codes a moment ago, the codes and the factors that they were multiplied by.
    """

    value: Value
    grid: Grid | None
    sample: Tensor
    left: tuple[Edge, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on the example, the batch included."""
        return tuple(self.sample.shape)

    @property
    def largest(self) -> int:
        """Largest magnitude of a code."""
        return max(abs(self.value.lo), abs(self.value.hi))


class Maker:
    """Adds nodes to a program.

    Attributes:
        builder: The program so far.
        inputs: Names of the network's inputs.
    """

    def __init__(self) -> None:
        self.builder = Builder()
        self.inputs: set[str] = set()

    def add(
        self,
        name: str,
        op: ops.Op,
        inputs: tuple[Edge, ...],
        grid: Grid | None = None,
        limits: tuple[int, int] | None = None,
        layer: str = "",
        exact: bool = True,
    ) -> Edge:
        """Append a node.

        Args:
            name: Wanted name.
            op: The operation.
            inputs: Its inputs.
            grid: What its codes stand for.
            limits: Lowest and highest code; None for real numbers.
            layer: Chip layer whose output this is, or ''.
            exact: See `Node.exact_in_float32`.
        """
        like, lo, hi = ValueType(None, None), 0, 0
        if limits is not None:
            lo, hi = limits
            like = type_for(lo, hi, grid)
        sample = apply(op, [edge.sample for edge in inputs], self.builder.tensors)
        value = self.builder.add(name, op, tuple(edge.value for edge in inputs), like, lo, hi, layer, exact)
        return Edge(value, grid, sample)

    def moved(self, name: str, op: ops.Op, x: Edge, layer: str = "") -> Edge:
        """Append a node that only moves or selects codes."""
        limits = None if x.value.type.real else (x.value.lo, x.value.hi)
        return self.add(name, op, (x,), x.grid, limits, layer)

    def padded(self, name: str, x: Edge, pads: tuple[int, ...], code: int) -> Edge:
        """Pad with a code, `pads` from the last axis backwards; nothing where all are 0."""
        if not any(pads):
            return x
        limits = None if x.value.type.real else (min(x.value.lo, code), max(x.value.hi, code))
        return self.add(f"{name}.pad", ops.Pad(pads, "constant", code), (x,), x.grid, limits)

    def codes(self, name: str, x: Edge, feature: Feature, device: Device) -> Edge:
        """The input of a layer as codes of the grid that its description names.

        An image from `Preprocess`, and a network's input that was described as unsigned, become codes here.

        Raises:
            UnsupportedError: it has no codes there.
        """
        wanted = tuple(grids(feature, device))
        if x.grid is not None and any(x.grid.n == n for n, _ in wanted):
            return x
        given = feature.prepared is not None or (x.value.name in self.inputs and not feature.signed)
        if given and x.value.type.real and wanted:
            n, lo, hi = wanted[0][0], 0, wanted[0][1]
            if feature.prepared is not None:
                lo, hi = -int(feature.prepared[0]), 255 - int(feature.prepared[0])
            return self.add(f"{name}.input", PixelCodes(n, lo, hi), (x,), Grid("plain", n), (lo, hi))
        raise UnsupportedError(
            "the layer's input has no integer codes that its description names",
            given="real numbers" if x.grid is None else f"codes of 1/{x.grid.n:g}",
            allowed=" or ".join(f"codes of 1/{n:g}" for n, _ in wanted) or "a width below 32 bits",
            hint="Quantise the layer before it for this target; an image needs a Preprocess with a whole-number mean.",
        )


def read(x: Lowered, bits: int = 32, first_layer: bool = False) -> tuple[Edge, Feature]:
    """Read a layer's lowered input as the layer itself reads it.

    Raises:
        UnsupportedError: it is something else.
    """
    if isinstance(x, Edge):
        return x, Feature(x.sample, bits, 0.0, False)
    if isinstance(x, (tuple, list)) and len(x) >= 3 and isinstance(x[0], Edge):
        prepared = (float(x[2]), float(x[3])) if first_layer else None
        return x[0], Feature(x[0].sample, int(x[1]), float(x[-1]), True, prepared)
    raise UnsupportedError("the layer's input cannot be read", given=type(x).__name__)


def carry(feature: Feature, edge: Edge) -> Lowered:
    """The same description around another edge, or the bare edge."""
    return (edge, feature.bits, feature.minimum) if feature.tagged else edge


def border_code(x: Edge, feature: Feature, device: Device, first_layer: bool = False) -> int:
    """Code that fills a border: that of 0, or of -1 where signed codes have no zero."""
    border = pad_value(feature, device, first_layer)
    return round(border * (x.grid.n if x.grid is not None else 1.0))


def joined_grid(edges: list[Edge]) -> Grid | None:
    """The grid that several edges share.

    Raises:
        UnsupportedError: they have several.
    """
    if any(edge.grid != edges[0].grid for edge in edges):
        raise UnsupportedError(
            "features of different grids meet", given=[edge.grid for edge in edges], hint="Quantise them alike."
        )
    return edges[0].grid


def joined_limits(edges: list[Edge]) -> tuple[int, int] | None:
    """Range of codes of several edges; None for real numbers."""
    if edges[0].value.type.real:
        return None
    return min(edge.value.lo for edge in edges), max(edge.value.hi for edge in edges)


def replayed(maker: Maker, sources: list[Edge], first: int, value: Value) -> Edge:
    """An edge around what a rule for plain torch made of others of one grid, its nodes beginning at `first`."""
    samples = {source.value.name: source.sample for source in sources}
    for node in maker.builder.nodes[first:]:
        samples[node.name] = apply(node.op, [samples[name] for name in node.inputs], maker.builder.tensors)
    return Edge(value, sources[0].grid, samples[value.name])


def float32(values: Any) -> Tensor:
    """Numbers or a parameter as a float32 tensor of at least one axis on the CPU."""
    tensor = torch.as_tensor(values).detach().cpu().to(torch.float32)
    return tensor if tensor.dim() else tensor.view(1)

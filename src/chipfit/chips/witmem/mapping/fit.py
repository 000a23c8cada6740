"""Placing layers on the analog array: a first-fit estimate, not the vendor's solver.

The array has two regions of 896 rows and 1024 columns. A layer is a block of its input rows by its output columns. The
tallest blocks go first, each to the lowest free place, left before right, first region before second; one that finds no
place of its full width is split over column blocks. Bias rows are counted by column over both regions.

Source: spec/wtm2101-silicon.md, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chipfit.hardware import ArrayGeometry

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Demand:
    """What one array operation needs.

    Args:
        layer: Its name.
        rows: Input rows, doubled where the input's sign takes two passes.
        columns: Outputs.
        bias_rows: Bias rows that its largest bias needs.
    """

    layer: str
    rows: int
    columns: int
    bias_rows: int = 0

    @property
    def cells(self) -> int:
        """Weight cells."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Placement:
    """One block on the array.

    Args:
        layer: The layer's name.
        region: 0 or 1.
        row: First row within the region.
        column: First column.
        rows: Height.
        columns: Width.
        first_output: The layer's output that stands in the first column.
    """

    layer: str
    region: int
    row: int
    column: int
    rows: int
    columns: int
    first_output: int


@dataclass(frozen=True)
class ArrayMap:
    """Where the layers of a network stand.

    Args:
        geometry: The array.
        demands: What was asked for, in network order.
        placements: What found a place.
        problems: What did not: one sentence a layer, saying by how much.
    """

    geometry: ArrayGeometry
    demands: tuple[Demand, ...]
    placements: tuple[Placement, ...]
    problems: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether every layer found its place."""
        return not self.problems

    @property
    def cells(self) -> int:
        """Weight cells of the array."""
        return self.geometry.rows * self.geometry.columns

    @property
    def utilisation(self) -> float:
        """Cells in use, in percent of the array."""
        return 100 * sum(block.rows * block.columns for block in self.placements) / self.cells

    def rows(self) -> list[dict[str, Any]]:
        """One row of the table per layer: rows, columns, bias rows, regions, blocks, utilisation in percent."""
        table = []
        for demand in self.demands:
            blocks = [block for block in self.placements if block.layer == demand.layer]
            table.append(
                {
                    "layer": demand.layer,
                    "rows": demand.rows,
                    "columns": demand.columns,
                    "bias_rows": demand.bias_rows,
                    "regions": sorted({block.region for block in blocks}),
                    "blocks": len(blocks),
                    "utilisation_percent": round(100 * demand.cells / self.cells, 4),
                    "placed_columns": sum(block.columns for block in blocks),
                }
            )
        return table


def fit(demands: Sequence[Demand], geometry: ArrayGeometry) -> ArrayMap:
    """Place layers on an array.

    Args:
        demands: Layers in network order; names differ.
        geometry: The array; its rows are a whole number of regions of `rows_per_pass`.

    Returns:
        The map, with what did not fit.

    Example:
        >>> from chipfit.chips.witmem.wtm2101 import WTM2101
        >>> found = fit([Demand("a", 800, 1000), Demand("b", 96, 1000), Demand("c", 897, 1)], WTM2101.array)
        >>> [(block.layer, block.region, block.row, block.column) for block in found.placements]
        [('a', 0, 0, 0), ('b', 1, 0, 0)]
        >>> print(*found.problems)
        c: 897 rows, 1 more than the 896 that one operation drives
    """
    state = _State(geometry)
    placements: list[Placement] = []
    problems: dict[str, str] = {}
    for demand in sorted(demands, key=lambda d: (-d.rows, -d.columns)):
        refused = _refusal(demand, geometry)
        if refused:
            problems[demand.layer] = f"{demand.layer}: {refused}"
            continue
        placed = state.place(demand)
        placements += placed
        left = demand.columns - sum(block.columns for block in placed)
        if left:
            lacking = f"{left} of its {demand.columns} columns x {demand.rows} rows find no place"
            problems[demand.layer] = f"{demand.layer}: {lacking}, {left * demand.rows} cells too many"
    in_order = tuple(problems[d.layer] for d in demands if d.layer in problems)
    total = sum(demand.cells for demand in demands)
    over = total - geometry.rows * geometry.columns
    if over > 0:
        in_order += (f"the network: {total} cells, {over} more than the array's {geometry.rows * geometry.columns}",)
    return ArrayMap(geometry, tuple(demands), tuple(placements), in_order)


def _refusal(demand: Demand, geometry: ArrayGeometry) -> str:
    if demand.rows > geometry.rows_per_pass:
        over = demand.rows - geometry.rows_per_pass
        return f"{demand.rows} rows, {over} more than the {geometry.rows_per_pass} that one operation drives"
    if demand.bias_rows > geometry.bias_rows:
        return f"{demand.bias_rows} bias rows, {demand.bias_rows - geometry.bias_rows} more than {geometry.bias_rows}"
    return ""


class _State:
    """How far each column of each region is filled, and its bias rows in use."""

    def __init__(self, geometry: ArrayGeometry) -> None:
        self.geometry = geometry
        regions = geometry.rows // geometry.rows_per_pass
        self.filled: list[_Ints] = [np.zeros(geometry.columns, dtype=np.int64) for _ in range(regions)]
        self.bias: _Ints = np.zeros(geometry.columns, dtype=np.int64)

    def place(self, demand: Demand) -> list[Placement]:
        """Place a layer, whole if possible, else in column blocks as wide as there is room."""
        blocks: list[Placement] = []
        left = demand.columns
        while left:
            width = min(left, self._widest_run(demand))
            if not width:
                break
            region, row, column = self._lowest(demand, width)
            blocks.append(Placement(demand.layer, region, row, column, demand.rows, width, demand.columns - left))
            self.filled[region][column : column + width] = row + demand.rows
            self.bias[column : column + width] += demand.bias_rows
            left -= width
        return blocks

    def _free(self, filled: _Ints, demand: Demand) -> npt.NDArray[np.bool_]:
        """Columns of a region that still take this layer."""
        tall_enough = filled + demand.rows <= self.geometry.rows_per_pass
        return tall_enough & (self.bias + demand.bias_rows <= self.geometry.bias_rows)

    def _widest_run(self, demand: Demand) -> int:
        widest = 0
        for filled in self.filled:
            run = 0
            for free in self._free(filled, demand).tolist():
                run = run + 1 if free else 0
                widest = max(widest, run)
        return widest

    def _lowest(self, demand: Demand, width: int) -> tuple[int, int, int]:
        """Region, row and column of the lowest place of a width that is known to exist."""
        places = []
        for region, filled in enumerate(self.filled):
            free = np.all(np.lib.stride_tricks.sliding_window_view(self._free(filled, demand), width), axis=-1)
            heights = np.lib.stride_tricks.sliding_window_view(filled, width).max(-1)
            column = int(np.argmin(np.where(free, heights, self.geometry.rows_per_pass + 1)))
            if free[column]:
                places.append((int(heights[column]), region, column))
        row, region, column = min(places)
        return region, row, column

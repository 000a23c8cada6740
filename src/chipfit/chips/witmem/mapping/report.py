"""An array map for the WTM2101: rows, columns, bias rows and region of each layer, as a table and as a picture.

The places are a first-fit estimate (`mapping/fit.py`); the vendor's compiler places with a solver of its own.

Source: spec/wtm2101-silicon.md, sections 1 and 2.
"""

from __future__ import annotations

import warnings
from html import escape
from pathlib import Path

import numpy as np
from rich.markup import escape as escape_markup
from rich.table import Table

from chipfit.chips.witmem.mapper.rules import BIAS_UNIT, CELL_LIMIT
from chipfit.chips.witmem.mapping.fit import ArrayMap, Demand, Placement, fit
from chipfit.chips.witmem.program.ops import Array, arrays
from chipfit.errors import ChipfitWarning, UnsupportedError
from chipfit.files import write_json, write_text
from chipfit.folders import replacing_folder
from chipfit.program.types import Program
from chipfit.vendor import chip as chip_named


def array_map(program: Program) -> ArrayMap:
    """Estimate where the array operations of a program stand.

    Args:
        program: From `chipfit.lower` or `load_program`; a GRU counts as two operations.

    Returns:
        The map. It says what does not fit, and by how much, instead of raising.

    Raises:
        UnsupportedError: the program's chip has no analog array.
    """
    chip = chip_named(program.chip)
    if chip.array is None:
        raise UnsupportedError("this chip has no analog array", given=program.chip, where="mapping")
    return fit([_demand(name, op, program) for name, op in _operations(program)], chip.array)


def _operations(program: Program) -> list[tuple[str, Array]]:
    """Array operations by name; one layer called twice stands on the array once."""
    found: dict[str, tuple[str, Array]] = {}
    for name, _, op in arrays(program):
        found.setdefault(op.weight_tensor, (name, op))
    return list(found.values())


def _demand(name: str, op: Array, program: Program) -> Demand:
    """Rows, columns and bias rows of one operation.

    Rows are the inputs of one output, twice where the input's sign takes a second pass; of a transposed convolution
    they are its input channels by its kernel, as its weight stands in the compiler's file.
    """
    weight = program.tensors[op.weight_tensor]
    if op.geometry.kind == "conv_transpose":
        rows, columns = weight.shape[0] * int(np.prod(weight.shape[2:])), weight.shape[1] * op.geometry.groups
    else:
        rows, columns = int(np.prod(weight.shape[1:])), weight.shape[0]
    largest = int(program.tensors[op.bias_tensor].abs().max()) if columns else 0
    bias_rows = -(-largest // (BIAS_UNIT * CELL_LIMIT))
    return Demand(name, rows * (2 if op.negative == "pn" else 1), columns, bias_rows)


def mapping_table(found: ArrayMap) -> Table:
    """The map as a table for the terminal."""
    title = f"Array map (estimate): {found.utilisation:.1f} % of {found.geometry.rows} x {found.geometry.columns} cells"
    table = Table(title=title, title_justify="left")
    for heading in ("layer", "rows", "columns", "bias rows", "region", "blocks", "utilisation %"):
        table.add_column(heading, justify="left" if heading in ("layer", "region") else "right")
    for row in found.rows():
        regions = " + ".join(str(region) for region in row["regions"]) or "none"
        short = row["columns"] - row["placed_columns"]
        table.add_row(
            escape_markup(row["layer"]),
            str(row["rows"]),
            str(row["columns"]) + (f" ({short} without a place)" if short else ""),
            str(row["bias_rows"]),
            regions,
            str(row["blocks"]),
            f"{row['utilisation_percent']:.2f}",
        )
    return table


_SCALE = 0.5  # picture points per row and column
_MARGIN, _TITLE, _LINE = 20, 50, 18
_COLOURS = ("#33628f", "#1d7f99", "#1f7a2e", "#8a7400", "#c23b4e", "#8f2a63", "#616161", "#a8501f")


def mapping_picture(found: ArrayMap) -> str:
    """The map as an SVG: one rectangle a region, the layers in it, and the table below."""
    geometry = found.geometry
    width, height = geometry.columns * _SCALE, geometry.rows_per_pass * _SCALE
    regions = geometry.rows // geometry.rows_per_pass
    below = _TITLE + height + 2 * _LINE
    entries = [*_lines(found), *found.problems]
    total_width = _MARGIN * (regions + 1) + width * regions
    total_height = below + _LINE * len(entries) + _MARGIN
    names = list(dict.fromkeys(demand.layer for demand in found.demands))
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width:g}" height="{total_height:g}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_MARGIN}" y="20" font-size="15">Array map (first-fit estimate): '
        f"{found.utilisation:.1f} % in use</text>",
    ]
    for region in range(regions):
        left = _MARGIN + region * (width + _MARGIN)
        rows = f"rows {region * geometry.rows_per_pass} to {(region + 1) * geometry.rows_per_pass - 1}"
        parts.append(f'<text x="{left:g}" y="{_TITLE - 6}">region {region}: {rows}, {geometry.columns} columns</text>')
        parts.append(
            f'<rect x="{left:g}" y="{_TITLE}" width="{width:g}" height="{height:g}" fill="#f4f4f4" stroke="#444"/>'
        )
        parts += [_block(b, left, colours[b.layer]) for b in found.placements if b.region == region]
    for i, line in enumerate(entries):
        y = below + i * _LINE
        ink = "#222"
        if i < len(names):
            parts.append(f'<rect x="{_MARGIN}" y="{y - 10:g}" width="12" height="12" fill="{colours[names[i]]}"/>')
        else:
            ink = "#bb0000"
        parts.append(f'<text x="{_MARGIN + 18}" y="{y:g}" fill="{ink}">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _block(block: Placement, left: float, colour: str) -> str:
    x, y = left + block.column * _SCALE, _TITLE + block.row * _SCALE
    width, height = block.columns * _SCALE, block.rows * _SCALE
    name = escape(block.layer)
    title = f"{name}: rows {block.row} to {block.row + block.rows - 1}, outputs from {block.first_output}"
    label = f'<text x="{x + 3:g}" y="{y + 13:g}" fill="white">{name}</text>' if width > 40 and height > 16 else ""
    rect = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{colour}" stroke="white"/>'
    return f"<g><title>{title}</title>{rect}{label}</g>"


def _lines(found: ArrayMap) -> list[str]:
    return [
        f"{row['layer']}: {row['rows']} rows x {row['columns']} columns, {row['bias_rows']} bias rows, "
        f"region {' + '.join(map(str, row['regions'])) or 'none'}, {row['utilisation_percent']:.2f} %"
        for row in found.rows()
    ]


def export_mapping(program: Program, folder: str | Path) -> list[Path]:
    """Write the map as `mapping.json` and `mapping.svg`; warns where the network does not fit.

    Returns:
        The files written.

    Raises:
        UnsupportedError: the program's chip has no analog array.
    """
    folder = Path(folder)
    found = array_map(program)
    content = {
        "estimate": "first fit; the vendor's compiler places with a solver of its own",
        "rows": found.geometry.rows,
        "columns": found.geometry.columns,
        "utilisation_percent": round(found.utilisation, 4),
        "fits": found.fits,
        "problems": list(found.problems),
        "layers": found.rows(),
        "blocks": [vars(block) for block in found.placements],
    }
    files = [folder / "mapping.json", folder / "mapping.svg"]
    with replacing_folder(folder, keep=True) as temporary:
        write_json(temporary / files[0].name, content)
        write_text(temporary / files[1].name, mapping_picture(found))
    if not found.fits:
        warnings.warn(f"the network does not fit the array: {'; '.join(found.problems)}", ChipfitWarning, stacklevel=2)
    return files

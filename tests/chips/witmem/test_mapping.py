from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from chipfit.chips.witmem.mapping.fit import Demand, fit
from chipfit.chips.witmem.mapping.report import array_map, export_mapping, mapping_picture, mapping_table
from chipfit.chips.witmem.wtm2101 import WTM2101
from chipfit.errors import ChipfitWarning
from chipfit.program import ops
from chipfit.program.types import ValueType

ARRAY = WTM2101.array
CELLS = 1792 * 1024


def placed(*demands: Demand) -> list[tuple[str, int, int, int, int]]:
    found = fit(demands, ARRAY)
    return [(b.layer, b.region, b.row, b.column, b.columns) for b in found.placements]


def test_layers_of_a_known_network(maker):
    made = maker(0)
    x = made.start((2, 8, 8), 8)
    conv = ops.Geometry("conv", (1, 1), (1, 1), (1, 1), (), 1)
    op = made.array_op("conv", conv, made.weights(4, 2, 3, 3), negative="pn")
    y = made.node("conv", op, (x,), ValueType((4, 8, 8), 8))
    up = ops.Geometry("conv_transpose", (2, 2), (1, 1), (1, 1), (1, 1), 1)
    y = made.node("up", made.array_op("up", up, made.weights(4, 3, 3, 3)), (y,), ValueType((3, 16, 16), 8))
    y = made.node("flat", ops.Reshape((-1, 768)), (y,), ValueType((768,), 8))
    op = made.array_op("fc", ops.Geometry("linear"), made.weights(10, 768))
    made.tensors["fc.bias"][:] = 0
    made.tensors["fc.bias"][3] = -128 * 276
    made.tensors["up.bias"][:] = 0
    made.tensors["conv.bias"][:] = 128 * 275
    y = made.node("fc", op, (y,), ValueType((10,), 8))
    found = array_map(made.finish(y))
    rows = {row["layer"]: (row["rows"], row["columns"], row["bias_rows"]) for row in found.rows()}
    assert rows == {"conv": (2 * 2 * 9, 4, 1), "up": (4 * 9, 3, 0), "fc": (768, 10, 2)}
    assert found.utilisation == 100 * (36 * 4 + 36 * 3 + 7680) / CELLS
    assert found.fits


def test_the_vendors_keyword_network_by_hand():
    """800-256x6-128-64-2: 800 and the first 256 columns in region 0, the rest on free columns to the right of it."""
    sizes = [(800, 256), *[(256, 256)] * 5, (256, 128), (128, 64), (64, 2)]
    found = fit([Demand(f"fc{i}", rows, columns) for i, (rows, columns) in enumerate(sizes)], ARRAY)
    assert found.fits
    assert found.utilisation == 100 * (800 * 256 + 5 * 65536 + 256 * 128 + 128 * 64 + 64 * 2) / CELLS
    places = {b.layer: (b.region, b.row, b.column) for b in found.placements}
    assert places["fc0"] == (0, 0, 0)
    assert [places[f"fc{i}"] for i in range(1, 4)] == [(0, 0, 256), (0, 0, 512), (0, 0, 768)]
    assert places["fc4"] == (1, 0, 0)


def test_wide_layers_are_split_over_columns_and_regions():
    assert placed(Demand("wide", 500, 1500)) == [("wide", 0, 0, 0, 1024), ("wide", 1, 0, 0, 476)]
    assert placed(Demand("wide", 448, 2000)) == [("wide", 0, 0, 0, 1024), ("wide", 1, 0, 0, 976)]


def test_a_layer_is_split_where_only_narrow_places_are_left():
    found = placed(Demand("a", 800, 600), Demand("b", 800, 600), Demand("c", 700, 800))
    assert found[:2] == [("a", 0, 0, 0, 600), ("b", 1, 0, 0, 600)]
    assert found[2:] == [("c", 0, 0, 600, 424), ("c", 1, 0, 600, 376)]


def test_bias_rows_are_a_budget_of_the_column():
    stacked = [Demand("a", 100, 1024, 10), Demand("b", 100, 1024, 7)]
    found = fit(stacked, ARRAY)
    assert [block.layer for block in found.placements] == ["a"]
    assert found.problems == ("b: 1024 of its 1024 columns x 100 rows find no place, 102400 cells too many",)
    assert fit([Demand("a", 100, 1024, 10), Demand("b", 100, 1024, 6)], ARRAY).fits
    assert fit([Demand("a", 1, 1, 17)], ARRAY).problems == ("a: 17 bias rows, 1 more than 16",)


def test_what_does_not_fit_says_by_how_much():
    found = fit([Demand("a", 896, 2048), Demand("b", 10, 30)], ARRAY)
    assert found.problems == (
        "b: 30 of its 30 columns x 10 rows find no place, 300 cells too many",
        f"the network: {896 * 2048 + 300} cells, 300 more than the array's {CELLS}",
    )
    assert found.utilisation == 100


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 950), st.integers(1, 1500), st.integers(0, 17)), min_size=1, max_size=8))
def test_blocks_never_overlap_and_nothing_is_lost(sizes):
    demands = [Demand(f"l{i}", rows, columns, bias) for i, (rows, columns, bias) in enumerate(sizes)]
    found = fit(demands, ARRAY)
    needs = {demand.layer: demand for demand in demands}
    for i, a in enumerate(found.placements):
        assert 0 <= a.row <= 896 - a.rows
        assert 0 <= a.column <= 1024 - a.columns
        for b in found.placements[:i]:
            apart = a.column + a.columns <= b.column or b.column + b.columns <= a.column
            assert apart or a.region != b.region or a.row + a.rows <= b.row or b.row + b.rows <= a.row
    for column in {block.column for block in found.placements}:
        here = [b for b in found.placements if b.column <= column < b.column + b.columns]
        assert sum(needs[b.layer].bias_rows for b in here) <= 16
    lacking = {problem.split(":")[0] for problem in found.problems}
    for demand in demands:
        width = sum(b.columns for b in found.placements if b.layer == demand.layer)
        assert width == demand.columns or demand.layer in lacking


def test_files_table_and_picture(two_layers, tmp_path):
    program = two_layers()
    files = export_mapping(program, tmp_path)
    assert [path.name for path in files] == ["mapping.json", "mapping.svg"]
    content = json.loads(files[0].read_text())
    assert content["fits"]
    assert [layer["layer"] for layer in content["layers"]] == ["fc1", "fc2"]
    assert content["utilisation_percent"] == round(100 * (30 + 15) / CELLS, 4)
    root = ET.fromstring(files[1].read_text())
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["fc1: rows 0 to 5, outputs from 0", "fc2: rows 0 to 4, outputs from 0"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(mapping_table(array_map(program)))
    assert "fc2" in console.export_text()


def test_a_network_that_does_not_fit_warns(maker, tmp_path):
    made = maker(0)
    x = made.start((900,), 8)
    y = made.node(
        "fc<1>", made.array_op("fc<1>", ops.Geometry("linear"), made.weights(3, 900)), (x,), ValueType((3,), 8)
    )
    program = made.finish(y)
    with pytest.warns(ChipfitWarning, match="900 rows, 4 more than the 896"):
        export_mapping(program, tmp_path)
    assert "fc&lt;1&gt;: 900 rows, 4 more" in mapping_picture(array_map(program))

"""From an integer program and the compiled placement to what the WTM2101's simulator reads and must answer.

The program is first brought into the compiler's layout, so whatever the compiler cannot take is refused here too. Of
that layout the simulator's format is known for matrix products in one chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from chipfit.chips.witmem.mapper.writer import LaidOut, lay_out, refuse_program
from chipfit.chips.witmem.program.ops import Array, arrays
from chipfit.chips.witmem.simulator.placement import COLUMNS, Place, SimulatedLayer, bias_rows, read_placement
from chipfit.errors import InvalidValueError
from chipfit.folders import replacing_folder
from chipfit.onnx_file import need_onnx
from chipfit.program.types import Program

WHERE = "witin_sim"
LINES = 2080
FIRST_BIAS_LINE = 2049
"""Logical bias row j is line 2049 + 2 j, counted from 0."""
_MOVES = ("Flatten", "Reshape")
"""Nodes that leave the codes in their order."""


def export_witin_sim(
    program: Program, samples: Tensor | Sequence[Tensor], folder: str | Path, layers: str | Path
) -> list[Path]:
    """Write `map.txt`, a raw input frame a sample and the output codes that must come of it.

    Args:
        program: From `chipfit.lower`: WitinLinear layers one behind the other, with or without ReLU, with the rounding
            rule 'wtm2101', which the simulator has.
        samples: Inputs of the network, a frame each.
        folder: Where to write `map.txt`, `in/net0/in_0000.bin` and so on, `final_output_0.txt` and so on.
        layers: `layers.txt` of the compiled network, or its text: a line `x_start,x_end,y_start,y_end,bias_start,
            bias_end,G` for each array layer, in order.

    Returns:
        The files written.

    Raises:
        UnsupportedError: what the chip, its compiler or this format cannot do.
        InvalidValueError: no samples.
        FileFormatError: a placement that is broken or does not fit the program, with the lines.
    """
    need_onnx()
    given = (samples,) if isinstance(samples, Tensor) else tuple(samples)
    if not given or not all(len(x) for x in given):
        raise InvalidValueError("the simulator needs samples", given=[tuple(x.shape) for x in given], where=WHERE)
    laid = lay_out(program, given, WHERE)
    wanted, edge = simulated_layers(laid)
    places = read_placement(layers, wanted)
    two_passes = places[0].height == 2 * wanted[0].weight.shape[0]
    count = len(given[0])
    frames = laid.codes[laid.entry].reshape(count, -1).numpy().astype(np.int8 if two_passes else np.uint8)
    expected = laid.codes[edge].reshape(count, -1).tolist()
    folder = Path(folder)
    inputs = [f"in/net0/in_{number:04d}.bin" for number in range(count)]
    outputs = [f"final_output_{number}.txt" for number in range(count)]
    with replacing_folder(folder) as temporary:
        (temporary / inputs[0]).parent.mkdir(parents=True)
        (temporary / "map.txt").write_text(_lines(array_cells(wanted, places).tolist()), encoding="utf-8")
        for name, frame in zip(inputs, frames, strict=True):
            (temporary / name).write_bytes(frame.tobytes())
        for name, codes in zip(outputs, expected, strict=True):
            (temporary / name).write_text(_lines([codes]), encoding="utf-8")
    return [folder / name for name in ("map.txt", *inputs, *outputs)]


def array_cells(layers: Sequence[SimulatedLayer], places: Sequence[Place]) -> Any:
    """All cells of the array, int16, shape `(2080, 1024)`, 0 where nothing stands.

    Args:
        layers: What stands there.
        places: Where, layer by layer.
    """
    cells = np.zeros((LINES, COLUMNS), dtype=np.int16)
    for layer, place in zip(layers, places, strict=True):
        columns = slice(place.x_start, place.x_end + 1)
        twice = place.height == 2 * layer.weight.shape[0]
        stacked = np.concatenate([layer.weight, -layer.weight]) if twice else layer.weight
        cells[place.y_start : place.y_end + 1, columns] = stacked
        for row, units in enumerate(bias_rows(layer.bias, place.bias_count), place.bias_start):
            cells[FIRST_BIAS_LINE + 2 * row, columns] = units
    return cells


def _lines(rows: list[list[int]]) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def simulated_layers(laid: LaidOut) -> tuple[list[SimulatedLayer], str]:
    """The array layers of a program in the compiler's layout, and the program's edge with the output's codes.

    Raises:
        UnsupportedError: it is more than matrix products and ReLUs in one chain, or rounds otherwise.
    """
    from onnx import numpy_helper

    layout, program = laid.layout, laid.layout.program
    _check_chain(laid)
    layers: list[SimulatedLayer] = []
    for node in layout.b.nodes:
        if node.op_type == "Gemm":
            weight, bias = (numpy_helper.to_array(layout.b.constants[name]).astype(np.int64) for name in node.input[1:])
            source = program.node(node.name)
            assert isinstance(source.op, Array)  # what else becomes a Gemm
            lowest, highest = layout.ranges[source.inputs[0]]
            signed = source.op.negative == "pn"
            layers.append(SimulatedLayer(node.name, weight, bias, int(source.op.g), signed, lowest, highest))
    return layers, next(iter(laid.outputs.values()))


def _check_chain(laid: LaidOut) -> None:
    """Refuse what the format is not known for, all of it."""
    layout = laid.layout
    found = [
        f"{name}: rounds as {op.rounding!r}, the simulator as 'wtm2101'. Lower the network with rounding='wtm2101'"
        for name, _, op in arrays(layout.program)
        if op.rounding != "wtm2101"
    ]
    known, last, products = ("Gemm", "Scale", "Relu", *_MOVES), layout.edges[laid.entry], 0
    for node in layout.b.nodes:
        if node.op_type not in known:
            found.append(
                f"{node.name} ({node.op_type}): how it stands in the simulator's files is not known, only Gemm"
            )
        elif node.input[0] != last:
            found.append(f"{node.name}: reads {node.input[0]}, not what was computed before it; allowed: one chain")
        elif node.op_type == "Relu" and not products:
            found.append(f"{node.name}: a ReLU on the network's input, where the simulator has none")
        last, products = node.output[0], products + (node.op_type == "Gemm")
    outputs = {layout.edges[edge] for edge in laid.outputs.values()}
    if not found and (outputs != {last} or not products):
        found.append(f"outputs {', '.join(sorted(outputs))}; allowed: one, of the last array layer")
    refuse_program(found, "the simulator's files")

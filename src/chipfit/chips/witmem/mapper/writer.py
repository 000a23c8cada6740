"""An integer program in the layout that the WTM2101's compiler reads: ONNX file, side file, calibration input.

The layout has no scales: the codes that one layer gives are the codes that the next one takes. So layers whose scales
do not chain are refused, with the scale that would; and so is everything else that the chip would compute otherwise
than the program. Nothing was ever run through the compiler itself.

Source: spec/wtm2101-silicon.md, sections 1 to 3.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from chipfit.chips.witmem.mapper.check import calibration_problems, model_problems
from chipfit.chips.witmem.mapper.layout import Layout
from chipfit.chips.witmem.mapper.nodes import emit_node
from chipfit.chips.witmem.mapper.rules import CALIBRATION_SAMPLES, IR_VERSION, OPSET
from chipfit.chips.witmem.mapper.side import side_text
from chipfit.chips.witmem.program.ops import Dequantise, Quantise, arrays
from chipfit.errors import ChipfitWarning, InvalidValueError, UnsupportedError
from chipfit.export.onnx.graph import write_model
from chipfit.files import write_text
from chipfit.folders import replacing_folder
from chipfit.onnx_file import need_onnx
from chipfit.program.live import simplified, stacked
from chipfit.program.reference import trace
from chipfit.program.types import Node, Program


def export_witin_mapper(program: Program, samples: Tensor | Sequence[Tensor], path: str | Path) -> list[Path]:
    """Write `<name>.onnx`, `<name>.txt` and `<name>.npy` for the WTM2101's compiler.

    Args:
        program: From `chipfit.lower`, of one input, with the rounding rule 'wtm2101'; another one gives a warning,
            since the chip has no choice.
        samples: At least 100 inputs of the network, for the compiler's calibration. Their codes also stand for what the
            first layer will see: a range that they do not use is not held against the program.
        path: The ONNX file to write.

    Returns:
        The files written. The folder's `SHA256SUMS` lists them too, so that a set of which a part was changed is
        refused.

    Raises:
        UnsupportedError: what the chip or its compiler cannot do, each with the layer, the reason and the fix.
        InvalidValueError: fewer than 100 samples.
    """
    need_onnx()
    path = Path(path)
    model, side, calibration = mapper_files(program, samples)
    files = [path, path.with_suffix(".txt"), path.with_suffix(".npy")]
    content = io.BytesIO()
    np.save(content, calibration, allow_pickle=False)
    with replacing_folder(path.parent, keep=True) as temporary:
        write_model(model, temporary / files[0].name)
        write_text(temporary / files[1].name, side_text(side))
        (temporary / files[2].name).write_bytes(content.getvalue())
    return files


def mapper_files(program: Program, samples: Tensor | Sequence[Tensor]) -> tuple[Any, dict[str, Any], Any]:
    """What `export_witin_mapper` writes, checked against every rule.

    Returns:
        The `onnx.ModelProto`, the side file's entries, the calibration codes. Arguments and errors as there.
    """
    given = (samples,) if isinstance(samples, Tensor) else tuple(samples)
    if given and len(given[0]) < CALIBRATION_SAMPLES:
        raise InvalidValueError(
            "too few samples for the compiler's calibration",
            given=len(given[0]),
            allowed=f"at least {CALIBRATION_SAMPLES}",
            where="witin_mapper",
        )
    laid = lay_out(program, samples)
    layout, codes = laid.layout, laid.codes[laid.entry]
    model = _model(laid)
    calibration = codes.reshape(len(codes), -1).numpy().astype(np.float32)
    refuse_program([*model_problems(model, layout.side), *calibration_problems(model, layout.side, calibration)])
    _warn_rounding(program)
    return model, layout.side, calibration


@dataclass(frozen=True)
class LaidOut:
    """A program in the compiler's layout, not yet a file.

    Args:
        layout: Its nodes, constants and entries of the side file.
        entry: The program's edge where the network's input has got its codes.
        outputs: The program's edges whose codes are the network's outputs, by name of the output. A stack of states
            is as many outputs as it has states.
        codes: Codes of the samples on every edge of the program.
    """

    layout: Layout
    entry: str
    outputs: dict[str, str]
    codes: dict[str, Tensor]


def lay_out(program: Program, samples: Tensor | Sequence[Tensor], where: str = "witin_mapper") -> LaidOut:
    """Bring a program into the compiler's layout.

    Args:
        program: As for `export_witin_mapper`.
        samples: Inputs of the network, any number of them.
        where: The format, for errors.

    Raises:
        UnsupportedError: what the chip or its compiler cannot do, all of it.
    """
    given = (samples,) if isinstance(samples, Tensor) else tuple(samples)
    if len(program.inputs) != 1 or len(given) != 1:
        raise UnsupportedError(
            "the compiler's calibration file holds one input", given=len(program.inputs), allowed="1", where=where
        )
    program = simplified(program)
    layout = Layout(program)
    codes = trace(program, *given)
    entry = _first_codes(program)
    layout.start(entry, codes[entry.name])
    outputs, only_stacks = _outputs(program, where)
    for node in program.nodes:
        if not node.output.real and not isinstance(node.op, Quantise) and node.name not in only_stacks:
            emit_node(layout, node)
    refuse_program(layout.problems)
    return LaidOut(layout, entry.name, outputs, codes)


def _outputs(program: Program, where: str) -> tuple[dict[str, str], set[str]]:
    """Edges whose codes leave the network by name of the output, and nodes that only stack them."""
    outputs: dict[str, str] = {}
    built: set[str] = set()
    for name in program.outputs:
        end = program.node(name)
        if not isinstance(end.op, Dequantise):
            raise UnsupportedError("an output that is changed after it left its grid", given=end.name, where=where)
        parts = stacked(program, end.inputs[0])
        outputs |= {f"{name}[{i}]": part for i, part in enumerate(parts)} if parts else {name: end.inputs[0]}
        built |= _built(program, end.inputs[0], set(parts)) if parts else set()
    for node in reversed(program.nodes):
        if any(not reader.output.real and reader.name not in built for reader in program.readers(node.name)):
            built.discard(node.name)
    return outputs, built


def _built(program: Program, edge: str, parts: set[str]) -> set[str]:
    """The nodes between parts and their stack, the stack included."""
    if edge in parts:
        return set()
    return {edge}.union(*(_built(program, name, parts) for name in program.node(edge).inputs))


def _first_codes(program: Program) -> Node:
    """The node that quantises the network's input. What moves real numbers before it is part of the data."""
    quantised = [node for node in program.nodes if isinstance(node.op, Quantise)]
    if len(quantised) != 1:
        raise UnsupportedError(
            "the network's input must get its codes in one place",
            given=", ".join(node.name for node in quantised) or "nowhere",
            where=program.inputs[0].name,
            hint="Give the layers that share the input one grid, and let nothing return to real numbers in between.",
        )
    return quantised[0]


def _model(laid: LaidOut) -> Any:
    from onnx import TensorProto, helper

    layout = laid.layout

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, *layout.shapes[name]])

    program = layout.program
    scales = [f"input codes = value * {program.type(laid.entry).scale:g}"]
    scales += [f"{name} = code / {program.type(edge).scale:g}" for name, edge in laid.outputs.items()]
    about = f"chipfit: {'; '.join(scales)}. All tensors hold integers."
    first = layout.edges[laid.entry]
    outputs = list(dict.fromkeys(layout.edges[edge] for edge in laid.outputs.values()))
    model = layout.b.model(
        "chipfit", [value(first)], [value(name) for name in outputs], opset=OPSET, ir_version=IR_VERSION, about=about
    )
    known = {first, *outputs}
    model.graph.value_info.extend(value(name) for name in layout.shapes if name not in known)
    return model


def refuse_program(problems: list[str], what: str = "the WTM2101's compiler") -> None:
    """Refuse a program for all that keeps it from something.

    Raises:
        UnsupportedError: there is anything.
    """
    if problems:
        listed = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
        raise UnsupportedError(f"{len(problems)} things keep this network from {what}:{listed}")


def _warn_rounding(program: Program) -> None:
    other = [name for name, _, op in arrays(program) if op.rounding != "wtm2101"]
    if other:
        warnings.warn(
            f"{', '.join(other)}: the program rounds as 'witin_nn', the chip rounds as 'wtm2101', so its codes will "
            "differ by up to one. Lower the network with rounding='wtm2101'.",
            ChipfitWarning,
            stacklevel=4,
        )

"""An integer program as standard ONNX, opset 21, whose codes in onnxruntime equal the interpreter's to the last one.

Quantising real inputs, and dividing an accumulator by G, are QuantizeLinear where it can say it (half to even, results
of at most 16 bits); real outputs are DequantizeLinear. Between them codes are integers in float32, and every operation
on them is exact, so that no order of summation and no optimisation can change a code. Weights are stored as int8.

Source of the operators' meaning: the ONNX operator specification, opset 21.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chipfit.errors import UnknownOptionError, UnsupportedError, nearest
from chipfit.export.onnx.arithmetic import FLOAT32_LIMIT, Edge, held, needs_wide
from chipfit.export.onnx.core import CORE
from chipfit.export.onnx.graph import GraphBuilder, write_model
from chipfit.export.onnx.metadata import metadata
from chipfit.onnx_file import need_onnx
from chipfit.program.dialect import context_of, meaning_of
from chipfit.program.types import Node, Program, ValueType

OPSET = 21
IR_VERSION = 10


def export_onnx(program: Program, path: str | Path, *, edges: Sequence[str] = ()) -> Path:
    """Write a program as ONNX.

    Args:
        program: From `chipfit.lower` or `load_program`.
        path: The file to write.
        edges: Integer edges to return too, after the program's outputs, as int64 codes: the name of a layer is the name
            of the edge that it makes.

    Returns:
        The file written. It takes and returns float32 tensors, batch first; NaN, which the interpreter refuses, gives
        undefined codes here.

    Raises:
        UnsupportedError: an operation that cannot be exact in ONNX; the package onnx is missing.
        UnknownOptionError: no such edge.
    """
    need_onnx()
    import onnx

    model = onnx_model(program, edges)
    onnx.checker.check_model(model, full_check=True)
    path = Path(path)
    write_model(model, path)
    return path


def onnx_model(program: Program, edges: Sequence[str] = ()) -> Any:
    """The `onnx.ModelProto` that `export_onnx` writes; same arguments and errors."""
    from onnx import TensorProto, helper, shape_inference

    b = GraphBuilder()
    known = {given.name: Edge(given.name, 0) for given in program.inputs}  # real numbers have no bound
    types = {given.name: given.type for given in program.inputs} | {node.name: node.output for node in program.nodes}
    problems = [
        f"{given.name}: an input of the network has no fixed number of axes. Let the batch be its first axis."
        for given in program.inputs
        if given.type.shape is None
    ]
    for node in program.nodes:
        b.scope = node.name
        try:
            known[node.name] = _node_edge(b, node, [known[name] for name in node.inputs], program)
        except UnsupportedError as error:
            problems.append(f"{node.name} ({type(node.op).__name__}): {error}")
            bound = max(-node.output.lo, node.output.hi)  # in its place, so that the nodes after it are looked at too
            known[node.name] = Edge(node.name, bound, bound > FLOAT32_LIMIT)
    if problems:
        raise UnsupportedError(f"{len(problems)} node(s) cannot be exported:\n  " + "\n  ".join(problems), where="onnx")
    outputs = [_value(_output(b, program, i), types[name]) for i, name in enumerate(program.outputs)]
    for name in edges:
        if name not in types or types[name].real:
            codes = [edge for edge, kind in types.items() if not kind.real]
            raise UnknownOptionError("no such integer edge", given=name, where="edges", hint=nearest(name, codes))
        b.scope = name
        b.add("Cast", known[name].name, output=f"{name}/codes", to=TensorProto.INT64)
        outputs.append(_value(f"{name}/codes", types[name], TensorProto.INT64))
    model = b.model(
        program.chip,
        [_value(given.name, given.type) for given in program.inputs],
        outputs,
        opset=OPSET,
        ir_version=IR_VERSION,
        about="Integer program by chipfit: edges '.../out' hold integer codes; the metadata says what they stand for.",
    )
    helper.set_model_props(model, metadata(program, {name: edge.name for name, edge in known.items()}, b.constants))
    if any(not value.type.tensor_type.HasField("shape") for value in outputs):
        inferred = shape_inference.infer_shapes(model).graph.output
        for value, found in zip(model.graph.output, inferred, strict=True):
            value.CopyFrom(found)
    return model


def _node_edge(b: GraphBuilder, node: Node, args: list[Edge], program: Program) -> Edge:
    """Add one node of the program and return its edge."""
    emit = CORE.get(type(node.op)) or meaning_of(node.op).onnx
    if emit is None:
        raise UnsupportedError("ONNX cannot say this operation", given=type(node.op).__name__, where=node.name)
    return _named(b, node, emit(b, node.op, args, context_of(node, program)))


def _output(b: GraphBuilder, program: Program, i: int) -> str:
    """Name of an output: the edge's own, or another where the edge is an input or an output already."""
    name = program.outputs[i]
    if name not in program.outputs[:i] and all(given.name != name for given in program.inputs):
        return name
    b.scope = name
    return b.add("Identity", name)


def _value(name: str, kind: ValueType, dtype: int = 1) -> Any:
    """Name, dtype (float32 unless said otherwise) and shape of an input or output; no shape where none is known."""
    from onnx import helper

    shape: list[str | int | None] | None = None if kind.shape is None else ["batch", *kind.shape]
    return helper.make_tensor_value_info(name, dtype, shape)


def _named(b: GraphBuilder, node: Node, edge: Edge) -> Edge:
    """The edge under the node's own name, its bound what its register holds where that is less."""
    if edge.name in (node.name, f"{node.name}/out"):
        return edge
    if node.output.real:
        return Edge(b.add("Identity", edge.name, output=node.name), 0)
    bound = min(edge.largest, max(-node.output.lo, node.output.hi))
    wide = needs_wide(bound)
    return Edge(b.add("Identity", held(b, edge, wide), output=f"{node.name}/out"), bound, wide)

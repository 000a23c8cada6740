"""ONNX files made by hand, and what onnxruntime says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from chipfit.convert.onnx.load import load_onnx

_KINDS = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("int64"): TensorProto.INT64}


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def node(operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
    """A node that gives y, or y0, y1, ...; attributes of numpy arrays become tensors."""
    given = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in attributes.items()}
    names = ["y"] if outputs == 1 else [f"y{i}" for i in range(outputs)]
    return helper.make_node(operator, list(inputs), names, name=f"a_{operator}", **given)


def made(
    nodes: list[Any],
    x: np.ndarray[Any, Any] | dict[str, np.ndarray[Any, Any]],
    outputs: list[str],
    opset: int = 17,
    free: bool = False,
    **constants: np.ndarray[Any, Any],
) -> Any:
    """A model.

    Args:
        nodes: In order.
        x: What it is given, for its inputs' shapes.
        outputs: Edges that it returns.
        opset: Version of the operators.
        free: Leave the first size of every input free.
        **constants: By name.
    """
    given = x if isinstance(x, dict) else {"x": x}
    inputs = [
        helper.make_tensor_value_info(
            name, _KINDS[value.dtype], ["n" if free and i == 0 else n for i, n in enumerate(value.shape)]
        )
        for name, value in given.items()
    ]
    ends = [onnx.ValueInfoProto(name=name) for name in outputs]
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, ends, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def by_onnxruntime(model: Any, x: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, x))


def difference(found: Any, expected: Any) -> float:
    """Largest difference of outputs relative to the largest number expected; their shapes and kinds must be equal."""
    outputs = found if isinstance(found, tuple) else (found,)
    assert len(outputs) == len(expected)
    worst = 0.0
    for a, b in zip(outputs, expected, strict=True):
        b = torch.from_numpy(np.asarray(b)) if not isinstance(b, Tensor) else b
        assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        assert torch.equal(a.isnan(), b.isnan())
        scale = max(float(b.nan_to_num().abs().max()), 1e-30)
        worst = max(worst, float((a - b).nan_to_num().abs().max()) / scale)
    return worst


def loaded(model: Any, folder: Path) -> torch.fx.GraphModule:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return load_onnx(path)

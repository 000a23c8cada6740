"""What is used of a file: inputs, constants, nodes; checked, so that later steps need not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chipfit.convert.onnx.read.arithmetic import dtype_of
from chipfit.convert.onnx.values import RefusedError
from chipfit.errors import FileFormatError, UnsupportedError
from chipfit.onnx_file import read_model

OPSETS = (9, 21)
"""First and last version of the operators that is read."""
_MOST_NODES = 50_000


class Input(NamedTuple):
    """An input of the file's network.

    Args:
        name: The file's name.
        dtype: Kind of its numbers.
        sizes: Its shape: a number, or the file's name of a size that is free.
    """

    name: str
    dtype: torch.dtype
    sizes: tuple[int | str, ...]


class Node(NamedTuple):
    """A node of the file.

    Args:
        operator: Its operator.
        domain: Whose it is; empty for ONNX's own.
        name: Its name, or that of what it gives.
        inputs: Edges; empty for one left out.
        outputs: Likewise.
        attributes: As the file has them.
    """

    operator: str
    domain: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: list[Any]

    def __str__(self) -> str:
        operator = f"{self.domain}.{self.operator}" if self.domain else self.operator
        return f"{operator} {self.name!r}" if len(self.name) <= 80 else f"{operator} {self.name[:77]!r}..."


class Source:
    """A file.

    Args:
        path: The file.
        shapes: Shapes of inputs, where the file leaves sizes free.

    Attributes:
        opset: Version of the operators.
        inputs: What the network is given.
        outputs: Edges that it returns.
        nodes: In order.
        constants: Tensors of the file by edge, as the file has them.

    Raises:
        FileFormatError: the file is damaged.
        UnsupportedError: another version, or free sizes besides the batch's without a shape.
    """

    def __init__(self, path: str | Path, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        self.path = path
        model = _inlined(read_model(path, beside=True), path)
        self.opset = _opset(model, path)
        graph = model.graph
        if len(graph.node) > _MOST_NODES:
            raise UnsupportedError(
                "too large a network", given=len(graph.node), allowed=f"{_MOST_NODES:,} nodes", where=str(path)
            )
        if len(graph.sparse_initializer):
            raise UnsupportedError("sparse constants are not read", where=str(path))
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes = [node_of(node) for node in graph.node]
        self.inputs = [_input(value, path) for value in graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in graph.output]
        self._check()
        self._take(shapes or {})

    def _check(self) -> None:
        """Every edge is given once, before it is read."""
        given = [value.name for value in self.inputs]
        if not given or not self.outputs:
            raise FileFormatError("a network without inputs or outputs", where=str(self.path))
        known = set(self.constants) | set(given)
        if len(known) != len(self.constants) + len(given):
            raise FileFormatError("two inputs have one name", where=str(self.path))
        for node in self.nodes:
            for edge in filter(None, node.inputs):
                if edge not in known:
                    raise FileFormatError(
                        "a node reads what no node before it gives", given=edge, where=f"{self.path}, {node}"
                    )
            for edge in filter(None, node.outputs):
                if edge in known:
                    raise FileFormatError("an edge is given twice", given=edge, where=f"{self.path}, {node}")
                known.add(edge)
        for edge in self.outputs:
            if edge not in known:
                raise FileFormatError("no node gives an output", given=edge, where=str(self.path))

    def _take(self, shapes: Mapping[str, Sequence[int]]) -> None:
        names = [value.name for value in self.inputs]
        for name, shape in shapes.items():
            if name not in names:
                raise FileFormatError("no such input", given=name, allowed=", ".join(names), where=str(self.path))
            at = names.index(name)
            own = self.inputs[at].sizes
            fits = len(own) == len(shape) and all(
                isinstance(a, str) or a == b for a, b in zip(own, shape, strict=False)
            )
            if not fits or not all(isinstance(n, int) and n > 0 for n in shape):
                raise FileFormatError(
                    "a shape that the file does not allow",
                    given=list(shape),
                    allowed=str(list(own)),
                    where=f"{self.path}, {name}",
                )
            free = own[0] if own and isinstance(own[0], str) else None
            self.inputs[at] = self.inputs[at]._replace(
                sizes=tuple(free if i == 0 and free else n for i, n in enumerate(shape))
            )

    def tensor(self, name: str) -> Tensor:
        """A constant.

        Raises:
            RefusedError: numbers of a kind that is not read.
            ValueError: it is damaged.
        """
        return tensor_of(self.constants[name])


def node_of(node: Any) -> Node:
    """A node as the file has it."""
    domain, name = "" if node.domain == "ai.onnx" else node.domain, node.name or next(iter(node.output), "")
    return Node(node.op_type, domain, name, list(node.input), list(node.output), list(node.attribute))


def tensor_of(tensor: Any) -> Tensor:
    """A tensor of the file.

    Raises:
        RefusedError: numbers of a kind that is not read.
        ValueError: it is damaged.
    """
    from onnx import numpy_helper

    dtype = dtype_of(tensor.data_type)
    if min(tensor.dims, default=0) < 0 or math.prod(tensor.dims) > 1 << 30:
        raise ValueError(f"sizes {list(tensor.dims)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = numpy_helper.to_array(tensor)
    return torch.from_numpy(found.copy()).to(dtype)


def _opset(model: Any, path: str | Path) -> int:
    found = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(found) != 1 or not OPSETS[0] <= found[0] <= OPSETS[1]:
        raise UnsupportedError(
            "another version of the operators",
            given=found[0] if len(found) == 1 else found,
            allowed=f"opset {OPSETS[0]} to {OPSETS[1]}",
            where=str(path),
            hint="Export with torch.onnx.export(..., opset_version=18), or change it with onnx.version_converter.",
        )
    return int(found[0])


def _input(value: Any, path: str | Path) -> Input:
    kind = value.type.tensor_type
    try:
        dtype = dtype_of(kind.elem_type)
    except RefusedError as error:
        raise UnsupportedError(str(error), where=f"{path}, input {value.name!r}") from error
    if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
        raise UnsupportedError("an input without a number of axes", given=value.name, where=str(path))
    sizes: list[int | str] = []
    for i, size in enumerate(kind.shape.dim):
        if size.HasField("dim_value") and not 0 < size.dim_value < 1 << 31:
            raise FileFormatError("a size that is none", given=size.dim_value, where=f"{path}, input {value.name!r}")
        sizes.append(size.dim_value if size.HasField("dim_value") else size.dim_param or f"axis {i} of {value.name}")
    if math.prod(size for size in sizes if isinstance(size, int)) > 1 << 28 or len(sizes) > 8:
        raise UnsupportedError("too large an input", given=sizes, where=f"{path}, input {value.name!r}")
    return Input(value.name, dtype, tuple(sizes))


def _inlined(model: Any, path: str | Path) -> Any:
    """The network with the file's own functions written out."""
    if not len(model.functions):
        return model
    from onnx import inliner

    bodies = {(f.domain, f.name): f.node for f in model.functions}
    sizes: dict[tuple[str, str], float] = {}

    def size(nodes: Any, inside: frozenset[tuple[str, str]]) -> float:
        total = 0.0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in inside or len(inside) > 50:
                raise FileFormatError("a function of the file calls itself", given=node.op_type, where=str(path))
            if key in bodies and key not in sizes:
                sizes[key] = size(bodies[key], inside | {key})
            total += sizes.get(key, 1)
        return total

    if size(model.graph.node, frozenset()) > _MOST_NODES:
        raise UnsupportedError("too large a network", allowed=f"{_MOST_NODES:,} nodes", where=str(path))
    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # whatever the package says of functions that do not fit together
        raise FileFormatError(
            "the file's functions cannot be written out", given=str(error), where=str(path)
        ) from error

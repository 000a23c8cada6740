"""A small builder of ONNX graphs: nodes, constants, edge names."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chipfit.errors import FileFormatError, UnsupportedError
from chipfit.files import replacing
from chipfit.reading import checked
from chipfit.version import __version__


class GraphBuilder:
    """Collects nodes and constants; every edge has a name.

    Attributes:
        nodes: Nodes so far, in order.
        constants: Initializers by name.
        scope: What the builder's own names begin with, so that they differ from every name given.
    """

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.scope = ""
        self._known: dict[tuple[object, ...], str] = {}
        self._count = itertools.count(1)

    def body(self) -> GraphBuilder:
        """A builder for a graph inside this one: nodes of its own, constants and names in common."""
        inner = GraphBuilder()
        inner.constants, inner.scope, inner._known, inner._count = self.constants, self.scope, self._known, self._count
        return inner

    def add(self, kind: str, *inputs: str, output: str = "", name: str = "", **attributes: Any) -> str:
        """Add a node of one output.

        Args:
            kind: Operator.
            *inputs: Names of its inputs.
            output: Name of its output; default one of the builder's own.
            name: Name of the node; default that of its output.
            **attributes: Its attributes.

        Returns:
            The output's name.
        """
        return self.add_many(kind, *inputs, outputs=(output or self.fresh(kind),), name=name, **attributes)[0]

    def add_many(
        self, kind: str, *inputs: str, outputs: tuple[str, ...], name: str = "", **attributes: Any
    ) -> tuple[str, ...]:
        """Add a node of any number of outputs; returns their names."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name or outputs[0], **attributes))
        return outputs

    def constant(self, values: Any, name: str = "") -> str:
        """Add an initializer, or find an equal unnamed one that is there already.

        Args:
            values: A numpy array.
            name: Its name; default one of the builder's own.

        Returns:
            Its name.
        """
        from onnx import numpy_helper

        array = np.ascontiguousarray(values).reshape(np.shape(values))
        key = (str(array.dtype), array.shape, array.tobytes())
        if not name and key in self._known:
            return self._known[key]
        label = name or self.fresh("constant")
        self.constants[label] = numpy_helper.from_array(array, label)
        self._known.setdefault(key, label)
        return label

    def fresh(self, kind: str) -> str:
        """A name that no other edge has."""
        return f"{self.scope}/{kind.lower()}_{next(self._count)}"

    def model(
        self, name: str, inputs: list[Any], outputs: list[Any], *, opset: int, ir_version: int, about: str = ""
    ) -> Any:
        """The finished `onnx.ModelProto`.

        Args:
            name: Name of the graph.
            inputs: Its `ValueInfoProto`s.
            outputs: Likewise.
            opset: Version of the default domain.
            ir_version: Version of the file format.
            about: A sentence for whoever opens the file.
        """
        from onnx import helper

        graph = helper.make_graph(self.nodes, name, inputs, outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="chipfit", producer_version=__version__)
        model.ir_version = ir_version
        model.doc_string = about
        return model


def need_onnx() -> None:
    """Check that the `onnx` package is there.

    Raises:
        UnsupportedError: it is not.
    """
    try:
        import onnx  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise UnsupportedError(
            "this export needs the package onnx", hint="Install it with: pip install 'chipfit[export]'."
        ) from error


def read_model(path: str | Path) -> Any:
    """An ONNX file's `ModelProto`.

    Raises:
        FileFormatError: no such file, not an ONNX file, one that was changed since the folder's sums were written, or
            one that takes tensors from other files, which are not opened: a file's text names no file.
        UnsupportedError: the package `onnx` is missing.
    """
    need_onnx()
    import onnx

    if not Path(path).is_file():
        raise FileFormatError("no such file", given=Path(path).name, where=str(path))
    raw = checked(path)
    try:
        model = onnx.load_from_string(raw)
    except Exception as error:
        raise FileFormatError("not an ONNX file", given=str(error), where=str(path)) from error
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise FileFormatError(
                "the file takes a tensor from another file",
                given=tensor.name,
                allowed="all tensors in the file itself",
                where=str(path),
                hint="Save it with onnx.save(model, path, save_as_external_data=False).",
            )
    return model


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors of a graph, those of nodes and of graphs inside it included."""
    yield from graph.initializer
    yield from (part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices))
    for node in graph.node:
        for entry in node.attribute:
            yield from (entry.t, *entry.tensors)
            sparse_tensors = (entry.sparse_tensor, *entry.sparse_tensors)
            yield from (part for sparse in sparse_tensors for part in (sparse.values, sparse.indices))
            for inner in (entry.g, *entry.graphs):
                yield from _tensors(inner)


def refuse_broken(problems: list[str], rules: str, path: str | Path) -> None:
    """Refuse a file that breaks rules, and list all of them.

    Args:
        problems: The rules that it breaks, in words.
        rules: Whose rules they are.
        path: The file.

    Raises:
        FileFormatError: there are any.
    """
    if problems:
        listed = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
        raise FileFormatError(f"{len(problems)} rules of {rules} are broken:{listed}", where=str(path))


def write_model(model: Any, path: Path) -> None:
    """Write a model in one piece or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString())

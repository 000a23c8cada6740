"""A small builder of ONNX graphs: nodes, constants, edge names."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from chipfit.errors import FileFormatError
from chipfit.files import replacing
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

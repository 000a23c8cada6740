"""ONNX files: reading them, with no tensor from where it should not come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chipfit.errors import FileFormatError, UnsupportedError


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
        FileFormatError: no such file, not an ONNX file, or one that takes tensors from other files, which are not
            opened: a file's text names no file.
        UnsupportedError: the package `onnx` is missing.
    """
    need_onnx()
    import onnx

    if not Path(path).is_file():
        raise FileFormatError("no such file", given=Path(path).name, where=str(path))
    try:
        model = onnx.load(path, load_external_data=False)
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

"""ONNX files: reading them, with no tensor from where it should not come."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chipfit.errors import FileFormatError, UnsupportedError
from chipfit.reading import checked

LARGEST = 1 << 30
"""Bytes that a file may have, alone and with those beside it."""


def need_onnx() -> None:
    """Check that the `onnx` package is there.

    Raises:
        UnsupportedError: it is not.
    """
    try:
        import onnx  # noqa: F401  # only whether it is there
    except ImportError as error:
        raise UnsupportedError(
            "ONNX files need the package onnx", hint="Install it with: pip install 'chipfit[export]'."
        ) from error


def read_model(path: str | Path, beside: bool = False) -> Any:
    """An ONNX file's `ModelProto`.

    Args:
        path: The file.
        beside: Take tensors from other files too, if these lie in the file's folder.

    Raises:
        FileFormatError: no such file, not an ONNX file, one that was changed since the folder's sums were written, or
            one that takes tensors from other files, which are not opened: a file's text names no file.
        UnsupportedError: the package `onnx` is missing.
    """
    need_onnx()
    import onnx

    if not Path(path).is_file():
        raise FileFormatError("no such file", given=Path(path).name, where=str(path))
    raw = checked(path, most=LARGEST)
    try:
        model = onnx.load_from_string(raw)
    except Exception as error:
        raise FileFormatError("not an ONNX file", given=str(error), where=str(path)) from error
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL and beside:
            _take_from_beside(tensor, Path(path))
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise FileFormatError(
                "the file takes a tensor from another file",
                given=tensor.name,
                allowed="all tensors in the file itself",
                where=str(path),
                hint="Save it with onnx.save(model, path, save_as_external_data=False).",
            )
    return model


def _take_from_beside(tensor: Any, path: Path) -> None:
    """Read a tensor's numbers from another file, which must lie in the folder of the first one."""
    from onnx import TensorProto, helper

    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.resolve().parent
    wrong = {"given": location, "where": f"{path}, {tensor.name}", "allowed": "a file in the folder of the first one"}
    try:
        other = (folder / location).resolve()
        if Path(location).is_absolute() or not other.is_relative_to(folder) or not other.is_file():
            raise FileFormatError("the file takes a tensor from a file that is not beside it", **wrong)
        offset, length = (int(entries.get(key, otherwise)) for key, otherwise in (("offset", "0"), ("length", "-1")))
        item = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        size = math.prod(tensor.dims) * item
        if offset < 0 or length not in (-1, size) or not 0 <= size <= LARGEST or offset + size > other.stat().st_size:
            raise FileFormatError("a tensor's numbers are not all in the file beside it", **wrong)
        with other.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(size)
    except (OSError, ValueError, KeyError, OverflowError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError("the file takes a tensor from a file that cannot be read", **wrong) from error
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


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

"""An integer program on disk: a folder with program.json (the graph), tensors.safetensors (weights and tables), sums.

The graph is plain JSON, checked field by field on the way in and then for sense; nothing is ever unpickled. Integer
tensors are stored in the narrowest type that holds them.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from chipfit.errors import FileFormatError, InvalidValueError, nearest
from chipfit.files import write_json
from chipfit.folders import replacing_folder
from chipfit.program.core.base import Op
from chipfit.program.dialect import operations
from chipfit.program.live import numbered_calls
from chipfit.program.sense import refuse_senseless
from chipfit.program.types import VERSION, Input, Node, Program
from chipfit.program.upgrade import from_version_1
from chipfit.reading import LARGEST_TEXT, checked, json_in, reading

GRAPH_FILE, TENSOR_FILE = "program.json", "tensors.safetensors"
_FORMAT = "chipfit integer program"
_ADDED = {(Node, "call"), (Node, "share")}
"""Fields that older files of this version do not have."""
_NARROW = (torch.int8, torch.int16, torch.int32)


def save_program(folder: Path | str, program: Program) -> None:
    """Write a program as `program.json`, `tensors.safetensors` and their sums: the whole folder, or nothing of it.

    Args:
        folder: Made where it is missing; what an earlier writing left in it goes, a user's own files stay.
        program: The program.

    Raises:
        WritingError: the folder cannot be written; it is as it was then.
    """
    content = {
        "format": _FORMAT,
        "version": VERSION,
        "chip": program.chip,
        "inputs": [_encoded(given) for given in program.inputs],
        "nodes": [_encoded(node) for node in program.nodes],
        "outputs": list(program.outputs),
    }
    with replacing_folder(folder) as temporary:
        write_json(temporary / GRAPH_FILE, content)
        save_file({name: _narrowed(tensor) for name, tensor in program.tensors.items()}, temporary / TENSOR_FILE)


def load_program(folder: Path | str) -> Program:
    """Read what `save_program` wrote, with this version of chipfit or an earlier one.

    Raises:
        FileFormatError: a file is missing, damaged or was changed, of an unknown version, names an unknown operation or
            field, holds a value of the wrong kind or one that makes no sense, or edges and tensors do not fit together.
    """
    with reading("the program", folder):
        program = _loaded(Path(folder))
        refuse_senseless(program, str(folder))
    return program


def _loaded(folder: Path) -> Program:
    where = str(folder / GRAPH_FILE)
    content = json_in(checked(folder / GRAPH_FILE, listed=True, most=LARGEST_TEXT), where)
    with reading("the tensors", folder / TENSOR_FILE):
        stored = load(checked(folder / TENSOR_FILE, listed=True))
    tensors = {name: _widened(tensor) for name, tensor in stored.items()}
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FileFormatError("not an integer program", given=str(content)[:80], allowed=repr(_FORMAT), where=where)
    if content.get("version") == 1:
        content = from_version_1(content, tensors)
    if content.get("version") != VERSION:
        raise FileFormatError(
            "unknown version of the program format",
            given=content.get("version"),
            allowed=f"1 to {VERSION}",
            where=where,
            hint="Lower the network again with this version of chipfit.",
        )
    _check_keys(content, {"format", "version", "chip", "inputs", "nodes", "outputs"}, where)
    nodes = _decoded(tuple[Node, ...], content["nodes"], f"{where}, nodes")
    # as written before calls had numbers, and none was dropped
    if not any("call" in node for node in content["nodes"]):
        nodes = numbered_calls(nodes)
    return Program(
        VERSION,
        _decoded(str, content["chip"], f"{where}, chip"),
        nodes,
        _decoded(tuple[Input, ...], content["inputs"], f"{where}, inputs"),
        _decoded(tuple[str, ...], content["outputs"], f"{where}, outputs"),
        tensors,
    )


def _narrowed(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().contiguous().cpu()
    if tensor.dtype != torch.int64 or not tensor.numel():
        return tensor.clone()
    lo, hi = int(tensor.min()), int(tensor.max())
    for dtype in _NARROW:
        limits = torch.iinfo(dtype)
        if limits.min <= lo and hi <= limits.max:
            return tensor.to(dtype)
    return tensor.clone()


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.is_floating_point else tensor.to(torch.int64)


def _encoded(value: Any) -> Any:
    """A dataclass as a dictionary of its fields; an operation also says its kind."""
    if is_dataclass(value):
        entries = {entry.name: _encoded(getattr(value, entry.name)) for entry in fields(value)}
        return {"op": type(value).__name__, **entries} if isinstance(value, Op) else entries
    return [_encoded(entry) for entry in value] if isinstance(value, tuple) else value


def _decoded(hint: Any, value: Any, where: str) -> Any:
    """A value of the annotated type, or an error that says where it is not one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Op:
        name = value.get("op") if isinstance(value, dict) else None
        known = operations()
        if not isinstance(name, str) or name not in known:
            raise FileFormatError("unknown operation", given=name, where=where, hint=nearest(str(name), known))
        return _decoded(known[name], value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return _decoded_fields(hint, value, where)
    if origin is tuple and isinstance(value, list) and (arguments[-1] is ... or len(value) == len(arguments)):
        return tuple(_decoded(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        (other,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _decoded(other, value, where)
    if origin is typing.Literal and value in arguments:
        return value
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if hint in (int, bool, str) and type(value) is hint:
        return value
    raise FileFormatError("a value of the wrong kind", given=value, allowed=str(hint), where=where)


def _decoded_fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise FileFormatError("a value of the wrong kind", given=value, allowed=kind.__name__, where=where)
    given = dict(value)
    if issubclass(kind, Op) and given.pop("op", kind.__name__) != kind.__name__:
        raise FileFormatError("the wrong operation", given=value["op"], allowed=kind.__name__, where=where)
    hints = typing.get_type_hints(kind)
    names = [entry.name for entry in fields(kind) if (kind, entry.name) not in _ADDED or entry.name in given]
    _check_keys(given, set(names), where)
    label = f"{where} ({given['name']})" if isinstance(given.get("name"), str) else where
    values = {name: _decoded(hints[name], given[name], f"{label}, {name}") for name in names}
    try:
        return kind(**values)
    except InvalidValueError as error:
        raise FileFormatError("values that do not fit together", given=str(error), where=label) from error


def _check_keys(content: Mapping[str, Any], allowed: set[str], where: str) -> None:
    for name in sorted(allowed ^ set(content)):
        problem = "a field is missing" if name in allowed else "an unknown field"
        raise FileFormatError(problem, given=name, allowed=", ".join(sorted(allowed)), where=where)

"""From a file of the vendor's kit to a network of chipfit's operators."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import fx

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.devices import DEVICES
from chipfit.chips.ingenic.magik.kit.builder import Kit, Unread
from chipfit.chips.ingenic.magik.kit.layers import LAYERS, Rule
from chipfit.chips.ingenic.magik.kit.moves import MOVES, shuffled
from chipfit.chips.ingenic.magik.kit.source import Source, marker, op_attr
from chipfit.chips.ingenic.magik.kit.tails import all_fields
from chipfit.chips.ingenic.magik.rules import OPSET
from chipfit.errors import ChipfitError, ChipfitWarning, FileFormatError
from chipfit.export.onnx.graph import refuse_broken

_RULES: dict[str, Rule] = {**MOVES, **LAYERS}
_MISFITS = (
    ChipfitError, LookupError, RuntimeError, TypeError, ValueError, AttributeError, StopIteration, ArithmeticError,
)  # fmt: skip
"""What a rule raises where nodes are not as it takes them to be."""


def read_kit(model: Any, path: str | Path) -> fx.GraphModule:
    """Read a file of the vendor's kit; see `read_magik`.

    Args:
        model: `onnx.ModelProto`.
        path: Where it comes from, for errors.

    Raises:
        FileFormatError: something cannot be read; the message lists everything.
    """
    try:
        source = Source(model)
        refuse_broken(_unknown(model, source), "the vendor's kit", path)
        kit = Kit(source, DEVICES[_targets(source).pop()])
        problems = _built(kit, path)
        refuse_broken(problems, "the vendor's kit", path)
        return kit.network()
    except FileFormatError:
        raise
    except (*_MISFITS, Unread) as error:
        problem = "the file of the vendor's kit cannot be read"
        raise FileFormatError(problem, given=str(error), where=str(path)) from error


def _unknown(model: Any, source: Source) -> list[str]:
    """What no rule reads, and a header of another kind."""
    found = []
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if opsets.get("", 0) != OPSET:
        found.append(f"the file's opsets are {opsets}; allowed: the default domain at {OPSET}")
    targets = sorted(_targets(source))
    if len(targets) != 1 or targets[0] not in DEVICES:
        allowed = ", ".join(DEVICES)
        found.append(f"the file's targets are {', '.join(targets) or 'none'}; allowed: one of {allowed}")
    for i, node in enumerate(source.nodes):
        if node.op_type not in _RULES and node.op_type != "Shape" and node.output[0] not in source.constants:
            function = f" ({all_fields(node).get('operator')})" if node.op_type == "ATen" else ""
            found.append(f"{_label(node, i)}: {node.op_type}{function} is no operator of the kit that is read")
    return found


def _targets(source: Source) -> set[str]:
    """The targets that nodes name; a weight's may be another one's."""
    named = [all_fields(node).get("target_device") for node in source.nodes if node.op_type != "QuantizeWeight"]
    return {str(name) for name in named if name is not None}


def _label(node: Any, position: int) -> str:
    return f"node {node.name or position} ({node.op_type}, gives {', '.join(node.output)})"


def _built(kit: Kit, path: str | Path) -> list[str]:
    """Read all nodes, and say what could not be read."""
    problems = []
    for edge in kit.source.inputs:
        _prepare(kit, edge, path)
    for i, node in enumerate(kit.source.nodes):
        if id(node) in kit.done or node.output[0] in kit.source.constants:
            continue
        try:
            shape = tuple(kit.at(node.input[0]).tensor.shape) if node.op_type == "Shape" else None
            if not kit.source.fold(node, shape):
                (shuffled if marker(node) == "pixel_shuffle_start" else _RULES[node.op_type])(kit, node)
        except Unread:
            continue  # said where it stands
        except _MISFITS as error:
            problems.append(f"{_label(node, i)}: {str(error) or type(error).__name__}")
    if not problems:
        missing = [edge for edge in kit.source.outputs if not _there(kit, edge)]
        problems += [f"output {edge}: what gives it could not be read" for edge in missing]
    return problems


def _there(kit: Kit, edge: str) -> bool:
    try:
        kit.at(edge)
    except Unread:
        return False
    return True


def _prepare(kit: Kit, edge: str, path: str | Path) -> None:
    """Put a Preprocess behind an input that a first layer takes, with what the file says of it."""
    source = kit.source
    marks = [node for node in source.nodes if marker(node) == "preprocess_end" and source.origin(node.input[0]) == edge]
    given = [op_attr(node) for node in marks if isinstance(op_attr(node), dict)]
    firsts = [f for f in _first_layers(source, edge) if f.get("first_layer") or f.get("is_input")]
    if not (marks or firsts) or kit.device.family == "T02":  # which has no Preprocess
        return
    if given:
        mean, var = float(given[0]["mean"]), float(given[0]["var"])
    else:
        mean, var, known = _guessed(firsts)
        if not known:
            warnings.warn(
                f"{path}, input {edge}: the file does not say the image's mean; taken for {mean:g}, with divisor "
                f"{var:g}. If the network was trained with another one, set `mean` of its Preprocess.",
                ChipfitWarning,
                stacklevel=5,
            )
    layer = chips.Preprocess(mean, var, kit.device)
    kit.values[edge] = kit.call("", "preprocess", layer, kit.values[edge])


def _guessed(firsts: list[dict[str, Any]]) -> tuple[float, float, bool]:
    """Mean and divisor from what first layers say of codes a unit and of the sign, and whether no other could be."""
    f = firsts[0] if firsts else {}
    var = float(f.get("img_var", 255.0))
    low = f.get("clip_min_pre", f.get("input_min_value"))
    signed = var not in (1.0, 255.0) if low is None else float(low) < 0
    return (var if signed else 0.0), var, low is not None and not signed


def _first_layers(source: Source, edge: str) -> list[dict[str, Any]]:
    """What the layers behind an input, or their quantisers, say of it; a normalisation's quantiser has its sign."""
    found: list[dict[str, Any]] = []
    for node in source.nodes:
        layer = node.op_type in LAYERS and node.op_type not in ("Pad", "NOp", "QuantizeWeight", "aweight")
        if layer and source.origin(node.input[0]) == edge:
            found.append(all_fields(node))
            for f in map(all_fields, _quantisers(source, node.output[0])):
                told = {"clip_min_pre": f.get("clip_min_value")} if node.op_type == "BatchNormalization" else {}
                found.append(told | f)
    return found


def _quantisers(source: Source, edge: str) -> list[Any]:
    """The first quantiser in each direction behind an edge."""
    found: list[Any] = []
    open_edges = [edge]
    while open_edges and len(found) < 100:
        for node in source.behind(open_edges.pop()):
            if node.op_type == "QuantizeFeature":
                found.append(node)
            elif node.op_type in ("Add", "BatchNormalization", "PRelu", "LeakyRelu", "NOp", "Relu", "Clip"):
                open_edges += node.output
    return found

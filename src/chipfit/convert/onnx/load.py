"""An ONNX file as a plain torch network."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from chipfit.convert import names
from chipfit.convert.made import finished
from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read import (  # noqa: F401  # each enters its operators into the table
    activations,
    arithmetic,
    moves,
    normalisation,
    padding,
    parts,
    pools,
    recurrent,
    reductions,
    resize,
    weighted,
)
from chipfit.convert.onnx.source import Node, Source, node_of, tensor_of
from chipfit.convert.onnx.table import READS
from chipfit.convert.onnx.tidy import tidy
from chipfit.convert.onnx.values import BATCHES, RefusedError, UnfitError, Value
from chipfit.errors import ChipfitWarning, FileFormatError, UnsupportedError

_DAMAGED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    AssertionError,
    MemoryError,
)
"""What torch, numpy and the onnx package raise where a node makes no sense."""


def load_onnx(path: str | Path, shapes: Mapping[str, Sequence[int]] | None = None) -> fx.GraphModule:
    """Read a float network from an ONNX file.

    Weights become parameters of `nn.Conv2d`, `nn.Linear`, `nn.BatchNorm2d`, `nn.GRU` and so on, so that the network can
    be trained, and `chipfit.convert` maps it as one written in torch. Its `code` shows what calls what. The first size
    of its inputs, or the one that the file leaves free, is the batch's and stays free, also where the file fixes it.

    Args:
        path: The file: float, operators of opset 9 to 21. Tensors may lie in other files of its folder.
        shapes: Shapes of inputs by name, where the file leaves sizes besides the batch's free.

    Returns:
        A network in evaluation, which takes the file's inputs in order and returns its output, or a tuple of several.
        Names of the file that are more than plain words are replaced: `meta["file_names"]` has the file's name for each
        place, `meta["outputs"]` the names of the outputs, `meta["shapes"]` the inputs' shapes with None for the batch.

    Raises:
        FileFormatError: no such file, or a damaged one.
        UnsupportedError: operators or attributes that are not read, all of them with their nodes and the reasons; or
            the package `onnx` is missing.

    Example:
        >>> import tempfile, warnings, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> file = Path(tempfile.mkdtemp()) / "model.onnx"
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     torch.onnx.export(net, (torch.zeros(1, 1, 8, 8),), file, dynamo=False, opset_version=17)
        >>> again = load_onnx(file)
        >>> again.get_submodule("0"), again(torch.zeros(5, 1, 8, 8)).shape
        (Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1)), torch.Size([5, 2]))
    """
    source = Source(path, shapes)
    first: list[Problem] = []
    for plan in _plans(source):
        built = _Network(source, plan)
        if not built.problems:
            if plan.fixed and first:
                warnings.warn(
                    f"{path}: the network works for the batch of the file only, {plan.batch}: {first[0]}",
                    ChipfitWarning,
                    stacklevel=2,
                )
            return built.finished()
        first = first or built.problems
        if any(problem.refused for problem in built.problems):
            break
    raise _error(first, path)


class Problem:
    """A node that cannot be read.

    Args:
        node: The node.
        reason: Why.
        refused: Because of what it is, not of what flows into it.
    """

    def __init__(self, node: Node | str, reason: str, refused: bool) -> None:
        self.node, self.reason, self.refused = node, reason, refused

    def __str__(self) -> str:
        return f"{self.node}: {self.reason}"


def _error(problems: list[Problem], path: str | Path) -> Exception:
    listed = "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
    if any(problem.refused for problem in problems):
        return UnsupportedError(
            f"{len(problems)} nodes cannot be read:{listed}\n",
            where=str(path),
            hint="docs/bring-onnx.md lists what is read. Leave these parts out of the export, or write them otherwise",
        )
    return FileFormatError(f"{len(problems)} nodes do not fit together:{listed}", where=str(path))


class Plan:
    """Which axis of each input is the batch's.

    Args:
        axes: By input; None for one without.
        batch: The batch's size in the file, where it has one.
        fixed: Keep that size.
    """

    def __init__(self, axes: list[int | None], batch: int | None, fixed: bool = False) -> None:
        self.axes, self.batch, self.fixed = axes, batch, fixed


def _plans(source: Source) -> list[Plan]:
    """Ways to free the batch, the likeliest first; last, where the file has one size, to keep that."""
    inputs = source.inputs
    if any(isinstance(size, str) for value in inputs for size in value.sizes):
        return [_open(source)]
    batch = inputs[0].sizes[0] if inputs[0].sizes else None
    if not isinstance(batch, int):
        return [Plan([None] * len(inputs), 1, fixed=True)]
    leading = [0 if value.sizes and value.sizes[0] == batch else None for value in inputs]
    states = [1 if len(value.sizes) == 3 and value.sizes[1] == batch else None for value in inputs[1:]]
    second = [leading[0], *(a if b is None else b for a, b in zip(leading[1:], states, strict=True))]
    plans = [Plan(leading, batch), *([Plan(second, batch)] if second != leading else [])]
    if len(inputs[0].sizes) == 3 and inputs[0].sizes[1] == 1 and batch != 1:  # sequences, steps first
        plans.insert(0, Plan([1 if len(v.sizes) == 3 and v.sizes[1] == 1 else None for v in inputs], 1))
    return [*plans, Plan([None] * len(inputs), batch, fixed=True)]


def _open(source: Source) -> Plan:
    """The plan of a file that leaves the batch free."""
    inputs = source.inputs
    free = [size for value in inputs for size in value.sizes if isinstance(size, str)]
    first = [value.sizes[0] for value in inputs if value.sizes and isinstance(value.sizes[0], str)]
    batch = {first[0] if first else free[0]}
    if any("axis 0 of" in str(name) for name in batch):  # the file does not name it
        batch |= {name for name in first if "axis 0 of" in str(name)}
    others = [f"{value.name}: {list(value.sizes)}" for value in inputs if (set(value.sizes) & set(free)) - batch]
    if others:
        raise UnsupportedError(
            "sizes besides the batch's are free",
            given=others,
            where=str(source.path),
            hint="Give them: load_onnx(path, shapes={'input': (1, 3, 224, 224)}), or export with fixed sizes.",
        )
    return Plan([next((i for i, size in enumerate(v.sizes) if size in batch), None) for v in inputs], None)


class _Network:
    """A file, read by one plan.

    Attributes:
        problems: What could not be read.
    """

    def __init__(self, source: Source, plan: Plan) -> None:
        self.source, self.plan = source, plan
        stems = {name.rpartition(".")[0]: "weight" in name.rpartition(".")[2] for name in source.constants}
        reserved = {stem for stem, weighs in stems.items() if weighs}
        reserved |= {stem[:at] for stem in stems for at, letter in enumerate(stem) if letter == "."}
        self.builder = Builder(source.opset, None if plan.fixed else plan.batch, reserved)
        self.problems: list[Problem] = []
        self.values: dict[str, Value | None] = {"": None}
        self.guessed: set[str] = set()
        """Edges whose node could not be read; stand-ins flow on, so that the nodes behind it are looked at too."""
        self.arguments = names.arguments([value.name for value in source.inputs])
        self.counts = Counter([*(edge for node in source.nodes for edge in node.inputs), *source.outputs])
        for given, axis in zip(source.inputs, plan.axes, strict=True):
            shapes = tuple(tuple(b if i == axis else int(n) for i, n in enumerate(given.sizes)) for b in BATCHES)
            self.values[given.name] = self.builder.argument(self.arguments[given.name], shapes, given.dtype, axis)
        for node in source.nodes:
            self._read(node)

    def _read(self, node: Node) -> None:
        try:
            made = self._made(node)
        except (RefusedError, UnfitError, *_DAMAGED) as error:
            refused = isinstance(error, RefusedError)
            if refused or not self._behind(node):
                self.problems.append(Problem(node, _said(error), refused))
            self._stand_in(node)
            return
        for edge, value in zip(node.outputs, made, strict=False):
            if edge:
                self.values[edge] = value
                if value.node is not None:
                    self.builder.readers[value.node] = self.counts[edge]
        for edge in node.outputs[len(made) :]:
            if edge and self.counts[edge]:
                self.problems.append(Problem(node, f"its output {edge!r} is not read", True))
                self._stand_in(node)
        if self._behind(node):
            self.guessed |= set(node.outputs)

    def _behind(self, node: Node) -> bool:
        return any(edge in self.guessed for edge in node.inputs)

    def _made(self, node: Node) -> list[Value]:
        if node.domain:
            raise RefusedError(f"an operator of {node.domain!r}, not of ONNX, is not read")
        if node.operator not in (*READS, "If"):
            quantised = "Quantize" in node.operator or "QLinear" in node.operator or node.operator.endswith("Integer")
            raise RefusedError("only float networks are read" if quantised else "this operator is not read")
        if node.operator == "If":
            return self._branch(node)
        rule, attributes = READS[node.operator], _attributes(node)
        misfit = rule.misfit(len(node.inputs), attributes)
        if misfit:
            raise RefusedError(misfit)
        builder = self.builder
        builder.operator, builder.name, builder.outputs = node.operator, node.name, len(node.outputs)
        given = [self._value(edge) for edge in node.inputs]
        if any(value is None for value in given[: rule.least]):
            raise UnfitError("an input is left out")
        made = rule.function(builder, *given, **attributes)
        return made if isinstance(made, list) else [made]

    def _branch(self, node: Node) -> list[Value]:
        """What a branch gives whose condition is known: exporters leave such behind."""
        condition = self._value(node.inputs[0])
        if condition is None or not condition.constant:
            raise RefusedError("a branch whose condition is computed from values is not read")
        name = "then_branch" if bool(self.builder.number(condition)) else "else_branch"
        graph = next(entry.g for entry in node.attributes if entry.name == name)
        self.source.constants.update((tensor.name, tensor) for tensor in graph.initializer)
        for inner in graph.node:
            self._read(node_of(inner))
        found = [self._value(value.name) for value in graph.output]
        if None in found:
            raise UnfitError("a branch gives what is left out")
        return [value for value in found if value is not None]

    def _value(self, edge: str) -> Value | None:
        if edge not in self.values and edge in self.source.constants:
            self.values[edge] = self.builder.known(self.source.tensor(edge), edge)
        return self.values[edge]

    def _stand_in(self, node: Node) -> None:
        """Let the first input flow on in place of what a node gives."""
        first = next((v for v in map(self.values.get, node.inputs) if v is not None and v.live), None)
        if first is None:
            first = next(v for v in self.values.values() if v is not None)
        for edge in filter(None, node.outputs):
            self.values[edge] = first
            self.guessed.add(edge)

    def finished(self) -> fx.GraphModule:
        """The network."""
        builder, source = self.builder, self.source
        ends = []
        for edge in source.outputs:
            value = self._value(edge)
            assert value is not None  # checked when the file was read
            ends.append(value.node if value.node is not None else builder.attribute(value, trained=False))
        builder.graph.output(ends[0] if len(ends) == 1 else tuple(ends))
        tidy(builder.graph, builder.shapes)
        own = ({name: path} for path, name in builder.files.items())  # a layer and a constant may share a name
        made = finished("OnnxNetwork", builder.root, builder.graph, self.arguments, *own)
        made.delete_all_unused_submodules()
        made.meta["outputs"] = list(source.outputs)
        made.meta["shapes"] = {
            self.arguments[v.name]: tuple(None if i == axis else int(n) for i, n in enumerate(v.sizes))
            for v, axis in zip(source.inputs, self.plan.axes, strict=True)
        }
        return made


def _attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as Python's values."""
    from onnx import AttributeProto as Kind
    from onnx import helper

    found: dict[str, Any] = {}
    for entry in node.attributes:
        if entry.type == Kind.TENSOR:
            tensor = tensor_of(entry.t)
            found[entry.name] = Value(None, (tensor, tensor))
        elif entry.type in (Kind.FLOAT, Kind.INT, Kind.FLOATS, Kind.INTS):
            value = helper.get_attribute_value(entry)
            found[entry.name] = list(value) if entry.type in (Kind.FLOATS, Kind.INTS) else value
        elif entry.type == Kind.STRING:
            found[entry.name] = entry.s.decode("utf-8", "replace")
        elif entry.type == Kind.STRINGS:
            found[entry.name] = [part.decode("utf-8", "replace") for part in entry.strings]
        else:
            raise RefusedError(f"attribute {entry.name} holds a graph or a kind of value that is not read")
    return found


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, (RefusedError, UnfitError)):
        return str(error)
    return f"does not fit what flows into it: {lines[0][:200] if lines else type(error).__name__}"

"""The integer program: a small typed graph that says, code for code, what a chip computes.

`lower` makes one from a network, `run` computes it, `save_program` and `load_program` keep it on disk. It knows no
network and no training arithmetic.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from chipfit.errors import FileFormatError, UnknownOptionError, nearest
from chipfit.program.core.base import Op
from chipfit.program.grid import Grid as Grid

VERSION = 2
"""Version of the program format that this code writes; it reads version 1 too."""


@dataclass(frozen=True, init=False)
class ValueType:
    """What flows along an edge: codes on a grid, bare sums, or (outside the integer part) float32 numbers.

    Args:
        shape: Shape without the batch, which is axis 0; None where axis 0 is not the batch.
        bits: Width of a register that holds every code; None for real numbers.
        signed: Whether the codes are two's complement.
        grid: What the codes stand for; None for real numbers, and for sums that have no unit. A number n is short for
            `Grid("plain", n)`.

    Example:
        >>> kind = ValueType((10,), bits=8, grid=32.0)
        >>> kind.lo, kind.grid
        (-128, Grid(kind='plain', n=32.0, zero=0))
    """

    shape: tuple[int, ...] | None
    bits: int | None
    signed: bool
    grid: Grid | None

    def __init__(
        self, shape: tuple[int, ...] | None, bits: int | None, signed: bool = True, grid: Grid | float | None = None
    ) -> None:
        given = grid if grid is None or isinstance(grid, Grid) else Grid("plain", float(grid))
        for name, value in (("shape", shape), ("bits", bits), ("signed", signed), ("grid", given)):
            object.__setattr__(self, name, value)

    @property
    def scale(self) -> float:
        """Codes a unit, of either kind of grid; 1.0 where there is no grid."""
        return 1.0 if self.grid is None else self.grid.n

    @property
    def zero(self) -> int:
        """Code that stands for 0.0 on a plain grid; 0 where there is no grid."""
        return 0 if self.grid is None else self.grid.zero

    @property
    def real(self) -> bool:
        """Whether the edge carries real numbers instead of codes."""
        return self.bits is None

    @property
    def lo(self) -> int:
        """Lowest code that the width can hold; 0 for real numbers."""
        return 0 if self.bits is None or not self.signed else -(1 << (self.bits - 1))

    @property
    def hi(self) -> int:
        """Highest code that the width can hold; 0 for real numbers."""
        return 0 if self.bits is None else (1 << (self.bits - self.signed)) - 1


@dataclass(frozen=True)
class Input:
    """A real input of the program."""

    name: str
    type: ValueType


@dataclass(frozen=True)
class Node:
    """One operation and the edge that it makes, which has the node's name.

    Args:
        name: Unique name: the network's name for a layer ('blocks.0.conv'; '…@1' at its second call), that and a suffix
            for what belongs to it ('blocks.0.conv.input' quantises or rescales its input), or the traced name.
        op: What is computed.
        inputs: Names of the edges that it reads, in the operation's order.
        output: Type of the edge that it makes.
        layer: Qualified name of the chip layer whose output this edge is, or ''.
        exact_in_float32: Whether a float32 forward of the layer is sure to give these codes: accumulators below 2^24,
            no table entry so close to a tie that float32 decides it. If not, float64 gives them.
        call: Which call of `layer` this is, 0 the first; a call whose result nobody reads has no node.
        share: Which of how many equal shares of the layer's output along its last axis this is: (1, 2) is the backward
            half of a GRU that reads both ways.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    output: ValueType
    layer: str = ""
    exact_in_float32: bool = True
    call: int = 0
    share: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Program:
    """A whole network as integer operations, in an order in which each node's inputs come before it.

    Args:
        version: Version of the format.
        chip: Name of the chip, as in `chipfit.chip(name)`.
        nodes: The operations.
        inputs: The real inputs, in the order of the network's arguments.
        outputs: Names of the real edges to return (made by `Dequantise`), in the network's order.
        tensors: Weights, biases and tables by name: int64, but `exact_bias_tensor`s, which are float64,
            and the scales, biases and slopes of Ingenic layers, which are float32.

    Raises:
        FileFormatError: a node reads an edge or a tensor that does not exist, or a name is used twice.

    Example:
        >>> from chipfit.program.core.ops import Dequantise, Quantise, Relu
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> program = Program(
        ...     VERSION,
        ...     "wtm2101",
        ...     (
        ...         Node("q", Quantise(16.0, 0, -128, 127), ("x",), codes),
        ...         Node("relu", Relu(), ("q",), codes),
        ...         Node("y", Dequantise(), ("relu",), real),
        ...     ),
        ...     (Input("x", real),),
        ...     ("y",),
        ...     {},
        ... )
        >>> program.node("relu").inputs, program.type("q").scale
        (('q',), 16.0)
    """

    version: int
    chip: str
    nodes: tuple[Node, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        names = Counter([*(given.name for given in self.inputs), *(node.name for node in self.nodes)])
        for name, count in names.items():
            if count > 1:
                raise FileFormatError("two edges of one name", given=name, where="program")
        known = {given.name for given in self.inputs}
        for node in self.nodes:
            for name in node.inputs:
                if name not in known:
                    raise FileFormatError(
                        "a node reads an edge that no node before it makes", given=name, where=node.name
                    )
            for name in tensor_names(node.op):
                if name not in self.tensors:
                    raise FileFormatError("a node reads a tensor that is not there", given=name, where=node.name)
            known.add(node.name)
        for name in self.outputs:
            if name not in known:
                raise FileFormatError("an output is no edge", given=name, where="program")

    def node(self, name: str) -> Node:
        """The node of a name.

        Raises:
            UnknownOptionError: there is none.
        """
        if name not in self._named:
            raise UnknownOptionError("no such node", given=name, where="program", hint=nearest(name, self._named))
        return self._named[name]

    @functools.cached_property
    def _named(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def type(self, edge: str) -> ValueType:
        """Type of an edge: of an input, or of the node of that name.

        Raises:
            UnknownOptionError: there is none.
        """
        for given in self.inputs:
            if given.name == edge:
                return given.type
        return self.node(edge).output

    def readers(self, edge: str) -> tuple[Node, ...]:
        """The nodes that read an edge."""
        return tuple(node for node in self.nodes if edge in node.inputs)

    def export(
        self,
        out_dir: str | Path,
        formats: Iterable[str] = ("onnx",),
        *,
        samples: Tensor | Sequence[Tensor] | None = None,
        model: Any = None,
        **options: Any,
    ) -> list[Path]:
        """Write the program in one or more formats: `chipfit.export.export` of this program."""
        from chipfit.export import export  # export stands above integer; this is only its front door

        return export(self, out_dir, formats, samples=samples, model=model, **options)

    def arrays(self) -> Iterator[tuple[str, Node, Any]]:
        """Every operation of an analog array, with a name and its node. Deprecated: it is the chip's own `arrays`."""
        from chipfit.vendor import vendor_function

        said = "Program.arrays() is deprecated: take `arrays` of the chip's operations"
        warnings.warn(said, DeprecationWarning, stacklevel=2)
        arrays: Iterator[tuple[str, Node, Any]] = vendor_function("arrays")(self)
        return arrays


def owner_of(node: Node, layers: Iterable[str]) -> str:
    """The layer that a node belongs to: the one whose output it is, else the one that its name begins with, or ''.

    Args:
        node: The node.
        layers: Qualified names.

    Example:
        >>> from chipfit.program.ops import Relu
        >>> owner_of(Node("gru.l0@1", Relu(), ("x",), ValueType((2,), 8)), ["fc", "gru"])
        'gru'
    """
    name = node.name.partition("@")[0]
    own = [layer for layer in layers if name == layer or name.startswith(f"{layer}.")]
    return node.layer or max(own, key=len, default="")


def tensor_names(op: object) -> Iterator[str]:
    """Names of all tensors that an operation reads, those of operations inside it included.

    Example:
        >>> from chipfit.program.core.ops import Constant
        >>> list(tensor_names(Constant("two")))
        ['two']
    """
    if not is_dataclass(op):
        return
    for entry in fields(op):
        value = getattr(op, entry.name)
        if entry.name.endswith("_tensor"):
            if value is not None:
                yield value
        else:
            yield from tensor_names(value)

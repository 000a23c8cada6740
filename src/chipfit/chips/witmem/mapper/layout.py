"""The state of a program on its way to the WTM2101's compiler."""

from __future__ import annotations

from torch import Tensor

from chipfit.chips.witmem.mapper.side import SideEntry
from chipfit.errors import UnsupportedError
from chipfit.export.onnx.graph import GraphBuilder
from chipfit.program.types import Node, Program


class Layout:
    """A program on its way to the compiler's layout.

    Attributes:
        program: The program.
        b: The graph so far.
        side: Entries of the side file so far.
        edges: Name in the graph of each edge of the program.
        shapes: Shape without the batch of each edge in the graph.
        ranges: Lowest and highest code that an edge of the program can carry.
        pads: Zeros around an edge that the convolution behind it is to add: top, left, bottom, right.
        problems: What cannot be done, in words.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.b = GraphBuilder()
        self.side: dict[str, SideEntry] = {}
        self.edges: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.pads: dict[str, tuple[int, int, int, int]] = {}
        self.problems: list[str] = []

    def start(self, entry: Node, codes: Tensor) -> None:
        """The network's input: its range is that of the codes that samples have."""
        self.made(entry, "input", (int(codes.min()), int(codes.max())))

    def made(self, node: Node, name: str, codes: tuple[int, int]) -> None:
        """Note what became of a node."""
        self.edges[node.name], self.ranges[node.name] = name, codes
        self.shapes.setdefault(name, self.shape(node))

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node's edge without the batch.

        Raises:
            UnsupportedError: the batch is not its first axis.
        """
        if node.output.shape is None:
            raise UnsupportedError(
                "the batch must stay the first axis",
                where=node.name,
                hint="Build recurrent layers with batch_first=True, and leave axis 0 where it is.",
            )
        return node.output.shape

    def problem(self, where: str, text: str) -> None:
        """Note that a node cannot be mapped."""
        self.problems.append(f"{where}: {text}")

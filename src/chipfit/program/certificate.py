"""What a program needs and where it loses: one row for every operation that sums or combines codes.

The static part holds for any input: how wide the accumulators become, whether float32 counts them exactly, which
outputs can leave their range at all. The part that needs data says how often they did, and how many of the codes were
used. Which rows a program has, and what a vendor adds to them, stands in the tables of the dialects.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from chipfit.errors import CalibrationError
from chipfit.program.batches import batch_inputs
from chipfit.program.dialect import computing, dialect_of, meaning_of
from chipfit.program.ranges import code_ranges
from chipfit.program.reference import trace
from chipfit.program.rows import COLUMNS, Column, Counting, Row, as_plain
from chipfit.program.rows import Seen as Seen
from chipfit.program.types import Program


@dataclass(frozen=True)
class Certificate:
    """The rows of a program.

    Args:
        rows: One for each operation that sums or combines codes, in the program's order.
        in_float64: Operations that float32 is not sure to compute exactly, those without a row included: the exact path
            computes them in pieces, or in float64.
        samples: Samples seen.
        columns: Columns of the table.
    """

    rows: tuple[Row, ...]
    in_float64: tuple[str, ...]
    samples: int
    columns: tuple[Column, ...] = COLUMNS

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as plain data."""
        return [as_plain(row) for row in self.rows]

    def table(self) -> Table:
        """The rows as a table to print with rich."""
        table = Table(title=self._title(), title_justify="left")
        table.add_column("layer", no_wrap=True)
        shown = [column for column in self.columns if self.samples or not column.of_data]
        for column in shown:
            table.add_column(column.heading, justify="right", overflow="fold")
        for row in self.rows:
            table.add_row(escape(row.name), *(column.cell(row) for column in shown))
        return table

    def _title(self) -> str:
        if not self.in_float64:
            return "Every layer is exact in float32, whatever the order of summation"
        return (
            f"One float32 sum may not be exact; computed in pieces or in float64: {escape(', '.join(self.in_float64))}"
        )


def certify(program: Program, loader: Iterable[Any] | None = None) -> Certificate:
    """Say what each operation of a program that sums or combines codes needs, and with data what it does.

    Args:
        program: From `lower` or `load_program`.
        loader: Batches as for `verify`; None leaves out what only data can show.

    Returns:
        The certificate; `certificate.table()` prints with rich, `certificate.as_dicts()` is plain data.

    Raises:
        CalibrationError: the loader gives no sample.

    Example:
        >>> import torch
        >>> from chipfit.program.core import ops
        >>> from chipfit.program.types import VERSION, Input, Node, ValueType
        >>> q = Node("q", ops.Quantise(128.0, 0, -128, 127), ("x",), ValueType((2,), 8, True, 128.0))
        >>> total = Node("fc", ops.Accumulate("linear", "w", 128), ("q",), ValueType((1,), 12, True))
        >>> inputs, tensors = (Input("x", ValueType((2,), None)),), {"w": torch.tensor([[3, -1]])}
        >>> (row,) = certify(Program(VERSION, "my_chip", (q, total), inputs, (), tensors)).rows
        >>> row.kind, row.inputs, row.bound, row.bits, row.weight_codes
        ('linear', 2, 512, 11, 2)
    """
    ranges = functools.cache(lambda: code_ranges(program))
    counts: list[Counting] = []
    rowless = []
    for node in program.nodes:
        make = meaning_of(node.op).row
        if make is not None:
            with computing(node.name):
                counts += make(node, program, ranges)
        elif not node.exact_in_float32:
            rowless.append(node.name)
    samples = 0
    for batch in loader if loader is not None else ():
        inputs = batch_inputs(batch, [i.name for i in program.inputs], "certify")
        edges = trace(program, *inputs)
        for count in counts:
            count.add(edges)
        samples += len(inputs[0])
    if loader is not None and not samples:
        raise CalibrationError("the loader gave no sample", where="certify")
    with computing("certify"):
        rows = tuple(count.row() for count in counts)
    wide = [row.name for row in rows if not row.exact_in_float32]
    dialect = dialect_of(program)
    columns = dialect.columns if dialect is not None and dialect.columns else COLUMNS
    return Certificate(rows, (*wide, *rowless), samples, columns)

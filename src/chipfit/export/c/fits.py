"""What a program needs as C, layer by layer, before anything is written: memory, constants, multiplications."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from rich.table import Table as Printed

from chipfit.export.c.text import Constants
from chipfit.export.c.writer import CProgram, build
from chipfit.program.types import Program


@dataclass(frozen=True)
class Layer:
    """One step of the C program.

    Args:
        nodes: Names of the program's nodes that it computes.
        live: Bytes of the arena that live while it runs.
        constants: Bytes of constants that it is the first to read.
        macs: Multiplications.
        peak: Whether no step needs more.
    """

    nodes: tuple[str, ...]
    live: int
    constants: int
    macs: int
    peak: bool


@dataclass(frozen=True)
class Fit:
    """What a program needs against what there is.

    Args:
        layers: Step by step.
        arena: Bytes of RAM, scratch included.
        constants: Bytes of constants.
        macs: Multiplications.
        living: Edges that live at the peak.
        ram: Bytes that there are, or None.
        flash: Likewise.
    """

    layers: tuple[Layer, ...]
    arena: int
    constants: int
    macs: int
    living: tuple[str, ...]
    ram: int | None = None
    flash: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it fits."""
        return (self.ram is None or self.arena <= self.ram) and (self.flash is None or self.constants <= self.flash)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        parts = [_against("RAM", self.arena, self.ram), _against("constants", self.constants, self.flash)]
        return "; ".join([*parts, f"{self.macs:,} multiplications", f"at the peak live {', '.join(self.living)}"])

    def table(self) -> Printed:
        """One row a step, to print with rich."""
        table = Printed("layers", title=str(self), title_justify="left")
        for heading in ("live bytes", "constants", "multiplications"):
            table.add_column(heading, justify="right")
        for layer in self.layers:
            live = f"{layer.live:,}" + (" (peak)" if layer.peak else "")
            table.add_row(" + ".join(layer.nodes), live, f"{layer.constants:,}", f"{layer.macs:,}")
        return table


def _against(what: str, need: int, have: int | None) -> str:
    if have is None:
        return f"{what} {need:,} bytes"
    return f"{what} {need:,} of {have:,} bytes" + ("" if need <= have else ", TOO MUCH")


def fits(
    program: Program, ram: int | None = None, flash: int | None = None, layout: str = "auto", weights: str = "int8"
) -> Fit:
    """Say what a program needs as C.

    The weights' values do not matter, so a network that was converted and calibrated on a few samples will do: nothing
    has to be trained.

    Args:
        program: From `lower` or `load_program`.
        ram: Bytes of memory, for instance 327680 on a WTM2101.
        flash: Bytes for constants.
        layout: As for `export`.
        weights: As for `export`.

    Example:
        >>> from chipfit.program import ops
        >>> from chipfit.program.types import VERSION, Input, Node, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> relu, y = Node("relu", ops.Relu(), ("q",), codes), Node("y", ops.Dequantise(), ("relu",), real)
        >>> found = fits(Program(VERSION, "wtm2101", (q, relu, y), (Input("x", real),), ("y",), {}), ram=2000)
        >>> found.ok, found.arena, found.living
        (True, 1040, ('q',))
    """
    made = build(program, layout, weights)
    constants, layers, seen = Constants(made.builder.rank), [], set[str]()
    for index, step in enumerate(made.builder.steps):
        constants.fields(step.fields)
        own = sum(table.bytes for name, table in constants.tables.items() if name not in seen)
        seen |= set(constants.tables)
        live = sum(b.bytes for b in made.builder.buffers if b.alias_of is None and b.first <= index <= b.last)
        layers.append(Layer(step.nodes, live, own, step.macs, live == made.plan.lower_bound))
    total = sum(table.bytes for table in constants.tables.values())
    macs = sum(step.macs for step in made.builder.steps)
    return Fit(tuple(layers), made.arena, total, macs, made.plan.living, ram, flash)


def picture(made: CProgram) -> str:
    """The plan as SVG: time from left to right, addresses from below."""
    steps, size = max(len(made.builder.steps), 1), max(made.plan.bytes, 1)
    width, height = 900, 360
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height + 40}" font-family="sans-serif" '
        'font-size="11">',
        f'<text x="4" y="14">{size:,} bytes, {steps} steps; scratch of {made.arena - size:,} bytes above</text>',
    ]
    for buffer in made.builder.buffers:
        if buffer.alias_of is not None:
            continue
        x = max(buffer.first, 0) * width / (steps + 1)
        across = (min(buffer.last, steps) - max(buffer.first, 0) + 1) * width / (steps + 1)
        tall = buffer.bytes * height / size
        y = 20 + height - (buffer.offset + buffer.bytes) * height / size
        name = escape(buffer.name)
        lines.append(
            f"<g><title>{name}: {buffer.bytes:,} bytes at {buffer.offset:,}, steps {buffer.first} to {buffer.last}"
            f'</title><rect x="{x:.1f}" y="{y:.1f}" width="{across:.1f}" height="{tall:.1f}" fill="#9ecae1" '
            f'stroke="#08519c"/><text x="{x + 3:.1f}" y="{y + 12:.1f}">{name if tall > 13 else ""}</text></g>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"

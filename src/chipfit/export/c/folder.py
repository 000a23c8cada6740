"""The folder c/: the C program, its constants, its self-test, what runs it on a host, and what they are."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from chipfit.errors import InvalidValueError, UnsupportedError
from chipfit.export.c.fits import picture
from chipfit.export.c.text import Constants, c_type, held_as, kernels, literal, table_text
from chipfit.export.c.views import TYPES, Table
from chipfit.export.c.words import CHUNK
from chipfit.export.c.writer import CProgram, Edge, build, example_inputs
from chipfit.export.formats import Request
from chipfit.program.reference import trace
from chipfit.program.types import Program
from chipfit.reading import SUMS, digest
from chipfit.version import __version__

SAMPLES = 2
"""Samples of the self-test."""
SCHEMA = 1
"""Version of net.json."""
_BYTES = {**TYPES, "uint32": 4}
_ERRORS = ("OK", "ERROR_SIZE", "ERROR_ALIGNMENT", "ERROR_LAYER", "ERROR_INDEX", "ERROR_DIFFERENT")


def write_c(program: Program, folder: Path, request: Request) -> list[Path]:
    """Write a program below `folder`/c; see docs/c.md.

    Raises:
        UnsupportedError: operations that C cannot say, or more memory than `ram` allows; nothing is written then.
    """
    options = request.options
    samples = _samples(program, request.samples)
    made = build(program, options["layout"], options["weights"], samples)
    if options["ram"] is not None and made.arena > options["ram"]:
        raise UnsupportedError(
            "the arena is larger than the memory",
            given=f"{made.arena:,} bytes",
            allowed=f"ram={options['ram']:,}",
            where="c",
            hint=f"At the peak live: {', '.join(made.plan.living)}; scratch: {made.arena - made.plan.bytes:,} bytes.",
        )
    files = files_of(made, samples, options["unroll"], options["target"] != "host")
    target = folder / "c"
    target.mkdir(parents=True, exist_ok=True)  # below a folder that `export` stages as a whole and syncs
    for name, content in files.items():
        (target / name).write_text(content, encoding="utf-8")
    return [target / name for name in files]


def _samples(program: Program, given: Any) -> tuple[Tensor, ...]:
    if given is None:
        return example_inputs(program, SAMPLES)
    parts = (given,) if isinstance(given, Tensor) else tuple(given)
    if not parts or not all(len(x) for x in parts):
        raise InvalidValueError("the self-test needs samples", given=[tuple(x.shape) for x in parts], where="c")
    return tuple(x[:SAMPLES] for x in parts)


def files_of(
    made: CProgram, samples: tuple[Tensor, ...], unroll: bool | None = None, bare: bool = False
) -> dict[str, str]:
    """Every file of the folder by name; SHA256SUMS last."""
    constants = Constants(made.builder.rank)
    steps = []
    for step in made.builder.steps:
        constants.functions.setdefault(step.kernel)
        steps.append((step.kernel, constants.named(f"{step.kernel}_t", constants.fields(step.fields))))
    weights = [table for table in made.builder.tables.values() if table.name in constants.tables]
    report = net_json(made, weights)
    files = {
        "net.h": _header(made),
        "net.c": _program(made, constants, steps, weights, unroll),
        "net_weights.c": _weights(weights, constants),
        "net_data.c": _data(made, samples),
        **{name: _own(name) for name in ("net_test.h", "net_test.c", "net_main.c", "Makefile")},
        "net.json": json.dumps(report, indent=1) + "\n",
        "plan.svg": picture(made),
    }
    if bare:
        files |= {name: _own(name) for name in ("bare_main.c", "net.ld")}
    files[SUMS] = "".join(f"{digest(text.encode())}  {name}\n" for name, text in sorted(files.items()))
    return files


def _own(name: str) -> str:
    return (resources.files("chipfit.export.c") / "files" / name).read_text("utf-8")


def _comment(text: str) -> str:
    return text.replace("*/", "* /").replace("/*", "/ *").replace("\n", " ").replace("\\", "/").replace("??", "? ?")


def bytes_of(edge: Edge) -> int:
    """Bytes of one of an edge's numbers in golden vectors."""
    return _BYTES[edge.dtype]


def _header(made: CProgram) -> str:
    lines = [
        f"/* A network for {_comment(made.program.chip)} as C99, written by chipfit {__version__}. See net.json. */",
        "#ifndef NET_H",
        "#define NET_H",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        "/* Bytes that the network works in, inputs and outputs included; the caller owns them, aligned to 8. */",
        f"#define NET_ARENA {max(made.arena, 16)}u",
        f"#define NET_LAYERS {len(made.builder.steps)}",
        f"#define NET_INPUTS {len(made.inputs)}",
        f"#define NET_OUTPUTS {len(made.outputs)}",
        f"#define NET_EDGES {len(made.edges)}",
        f"#define NET_AXES {max([1, *(len(edge.view.shape) for edge in made.edges.values())])}",
        "",
        "enum { NET_INT8, NET_UINT8, NET_INT16, NET_UINT16, NET_INT32 };",
        "enum { " + ", ".join(f"NET_{name}" for name in _ERRORS) + " };",
        "",
        "/* Inputs and outputs: where number 0 lies in the arena, its type in memory, and for each axis (the first is",
        "   the sample's, 1) the length and the distance from one number to the next. What codes stand for: value =",
        "   (code - ZERO) / N, or (code + N) / N - 1 where ODD is 1. The memory of an input is used again: write it",
        "   before each run. */",
    ]
    for side, edges in (("INPUT", made.inputs), ("OUTPUT", made.outputs)):
        for i, edge in enumerate(edges):
            lines += _edge_macros(made, f"NET_{side}_{i}", edge)
    lines += [
        "",
        "typedef struct {",
        "    unsigned char *arena;",
        "} net_t;",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "/* Takes an arena: NET_OK, NET_ERROR_SIZE or NET_ERROR_ALIGNMENT. */",
        "int net_init(net_t *net, void *arena, size_t size);",
        "/* Where an input's or output's numbers lie; 0 for a number that there is not. */",
        "void *net_input(const net_t *net, int32_t i);",
        "const void *net_output(const net_t *net, int32_t i);",
        "/* From inputs to outputs: NET_OK, or NET_ERROR_INDEX where an index lies outside its table. */",
        "int net_run(net_t *net);",
        "/* One layer alone, 0 to NET_LAYERS - 1 in order. */",
        "int net_run_layer(net_t *net, int32_t k);",
        "/* Back to the state before the first run: nothing is kept from one run to the next. */",
        "void net_reset(net_t *net);",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _edge_macros(made: CProgram, prefix: str, edge: Edge) -> list[str]:
    view, kind = edge.view, made.program.type(edge.name)
    lines = [
        "",
        f"/* {_comment(edge.name)}: shape {view.shape}, {edge.dtype}"
        + (f" from {view.low} to {view.high} */" if not kind.real else " */"),
        f"#define {prefix}_AT {view.at}u",
        f"#define {prefix}_TYPE {held_as(view.type)}",
        f"#define {prefix}_SIZE {math.prod(view.shape)}u",
        f"#define {prefix}_SHAPE {{{', '.join(map(str, view.shape))}}}",
        f"#define {prefix}_STRIDE {{{', '.join(map(str, view.strides))}}}",
    ]
    if kind.grid is not None:
        lines.append(f"#define {prefix}_N {float(np.float32(kind.grid.n))!r}f")
        lines.append(f"#define {prefix}_ZERO {kind.grid.zero}")
        lines.append(f"#define {prefix}_ODD {int(kind.grid.kind == 'odd')}")
    return lines


def _program(
    made: CProgram,
    constants: Constants,
    steps: list[tuple[str, str]],
    weights: list[Table],
    unroll: bool | None,
) -> str:
    body = kernels(constants.functions, made.builder.texts)
    unrolled = "defined(__riscv) || defined(__mips__)" if unroll is None else str(int(unroll))
    lines = [
        '#include "net.h"',
        "",
        f"#define RANK {made.builder.rank}",
        f"#define CHUNK {CHUNK}",
        "/* Whether the innermost loop is written out four times: small cores gain, vector units lose. */",
        f"#if {unrolled}",
        "#define NET_UNROLL 1",
        "#else",
        "#define NET_UNROLL 0",
        "#endif",
        "/* Scratch: rows of 16 bits, and numbers of 32. */",
        f"#define NET_ROWS(net) ((int16_t *)(void *)((net)->arena + {made.rows_at}u))",
        f"#define NET_WIDE(net) ((int32_t *)(void *)((net)->arena + {made.wide_at}u))",
        "",
        body,
        *(_declared(table) for table in weights),
        "",
        *constants.lines,
        "",
        "typedef struct {",
        "    int (*run)(const net_t *net, const void *given);",
        "    const void *given;",
        "} layer_t;",
        f"static const layer_t layers[{max(len(steps), 1)}] = {{",
        *(f"    {{{kernel}, &{name}}}," for kernel, name in steps),
        *([] if steps else ["    {0, 0}"]),
        "};",
        "",
        "int net_init(net_t *net, void *arena, size_t size)",
        "{",
        "    net->arena = 0;",
        "    if (size < NET_ARENA)",
        "        return NET_ERROR_SIZE;",
        "    if (!arena || (uintptr_t)arena % 8)",
        "        return NET_ERROR_ALIGNMENT;",
        "    net->arena = (unsigned char *)arena;",
        "    return NET_OK;",
        "}",
        "",
        *_pointers("void *net_input", "INPUT", len(made.inputs)),
        *_pointers("const void *net_output", "OUTPUT", len(made.outputs)),
        "int net_run_layer(net_t *net, int32_t k)",
        "{",
        "    if (!net->arena || k < 0 || k >= NET_LAYERS)",
        "        return NET_ERROR_LAYER;",
        "    return layers[k].run(net, layers[k].given);",
        "}",
        "",
        "int net_run(net_t *net)",
        "{",
        "    int32_t k;",
        "    int error = NET_OK;",
        "    for (k = 0; k < NET_LAYERS && error == NET_OK; ++k)",
        "        error = net_run_layer(net, k);",
        "    return error;",
        "}",
        "",
        "void net_reset(net_t *net)",
        "{",
        "    (void)net;",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _pointers(head: str, side: str, count: int) -> list[str]:
    cases = [f"    case {i}:\n        return net->arena + NET_{side}_{i}_AT;" for i in range(count)]
    body = ["    switch (i) {", *cases, "    default:", "        return 0;", "    }"]
    return [f"{head}(const net_t *net, int32_t i)", "{", *body, "}", ""]


def _declared(table: Table) -> str:
    return f"extern const {c_type(table.type)} {table.name}[];"


def _weights(weights: list[Table], constants: Constants) -> str:
    lines = ["/* Weights, biases and tables. */", "#include <stdint.h>", ""]
    if any(table.type == "extra_t" for table in weights):
        lines += ["typedef struct {", "    uint16_t out, at;", "    int32_t by;", "} extra_t;", ""]
    lines += [*(_declared(table) for table in weights), ""]
    for table in weights:
        lines += table_text(table)
    return "\n".join(lines) + "\n"


def golden_array(value: Tensor, edge: Edge) -> Any:
    """An edge's values as golden vectors hold them."""
    dtype = {"float32": "<f4", "int8": "i1", "uint8": "u1"}.get(edge.dtype, "<" + edge.dtype[0] + str(bytes_of(edge)))
    array = value.numpy()
    if edge.dtype.startswith(("int", "uint")) and array.dtype.kind == "f":
        array = np.trunc(array)
    return np.ascontiguousarray(array.astype(dtype))


def traced(made: CProgram, samples: tuple[Tensor, ...], index: int) -> dict[str, Any]:
    """Every edge in memory as the reference computes it for one sample."""
    found = trace(made.program, *(x[index : index + 1] for x in samples))
    return {name: golden_array(found[name], edge) for name, edge in made.edges.items()}


def _data(made: CProgram, samples: tuple[Tensor, ...]) -> str:
    edges = list(made.edges.values())
    where = {edge.name: i for i, edge in enumerate(edges)}
    axes = max([1, *(len(edge.view.shape) for edge in edges)])
    count = len(samples[0]) if samples else 1
    codes = [traced(made, samples, i) for i in range(count)]
    lines = ["/* Edges, names of layers, and the codes of the self-test's samples. */", '#include "net_test.h"', ""]
    lines.append("const net_edge_t net_edges[NET_EDGES] = {")
    for edge in edges:
        view = edge.view
        shape = [*[1] * (axes - len(view.shape)), *view.shape]
        strides = [*[0] * (axes - len(view.shape)), *view.strides]
        size = math.prod(view.shape)
        signed = int(not edge.dtype.startswith("u"))
        lines.append(
            f"    {{{literal(edge.name)}, {view.at}u, {held_as(view.type)}, {size}u, {bytes_of(edge)}u, {signed}u, "
            f"{edge.last}, {{{', '.join(map(str, shape))}}}, {{{', '.join(map(str, strides))}}}}},"
        )
    lines += ["};", ""]
    for side, of in (("inputs", made.inputs), ("outputs", made.outputs)):
        lines.append(f"const uint32_t net_{side}[] = {{{', '.join(f'{where[e.name]}u' for e in of)}}};")
    names = [literal(" + ".join(step.nodes)) for step in made.builder.steps] or ['""']
    lines += ["const char *const net_layer_names[] = {", *(f"    {name}," for name in names), "};", ""]
    lines.append(f"const uint32_t net_samples = {count}u;")
    for side, of in (("inputs", made.inputs), ("outputs", made.outputs)):
        numbers = [_as_int32(run[edge.name]) for run in codes for edge in of]
        flat = np.concatenate([n.reshape(-1) for n in numbers]).tolist() if numbers else [0]
        lines += list(table_text(Table(f"net_test_{side}", "int32", np.asarray(flat, np.int32))))
    sums = [zlib.crc32(run[edge.name].tobytes()) for run in codes for edge in edges]
    lines += list(table_text(Table("net_test_crc", "uint32", np.asarray(sums, np.uint32))))
    return "\n".join(lines) + "\n"


def _as_int32(array: Any) -> Any:
    return array.view("<i4") if array.dtype.kind == "f" else array.astype(np.int64).astype(np.uint32).view(np.int32)


def net_json(made: CProgram, weights: list[Table]) -> dict[str, Any]:
    """What a host has to know."""

    def entry(edge: Edge) -> dict[str, Any]:
        view = edge.view
        return {
            "dtype": edge.dtype,
            "shape": list(view.shape[1:]) if view.shape[:1] == (1,) else list(view.shape),
            "type": view.type,
            "offset": view.at,
            "strides": list(view.strides),
            "bytes": math.prod(view.shape) * TYPES[view.type],
            "first": edge.first,
            "last": edge.last,
        }

    edges: Mapping[str, dict[str, Any]] = {name: entry(edge) for name, edge in made.edges.items()}

    def short(edge: Edge) -> dict[str, Any]:
        return {"edge": edge.name, "dtype": edge.dtype, "shape": edges[edge.name]["shape"]}

    return {
        "format": "chipfit c",
        "version": SCHEMA,
        "chipfit": __version__,
        "chip": made.program.chip,
        "layout": made.builder.layout,
        "inputs": [short(edge) for edge in made.inputs],
        "outputs": [short(edge) for edge in made.outputs],
        "edges": edges,
        "in_registers": made.hidden,
        "arena": made.arena,
        "scratch": made.arena - made.plan.bytes,
        "arena_lower_bound": made.plan.lower_bound,
        "peak": {"layer": made.plan.peak, "edges": list(made.plan.living)},
        "macs": sum(step.macs for step in made.builder.steps),
        "constants": sum(table.bytes for table in weights),
        "layers": [
            {"nodes": list(step.nodes), "kernel": step.kernel, "macs": step.macs} for step in made.builder.steps
        ],
        "codes": made.builder.classes,
    }

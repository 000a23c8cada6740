"""Known-answer vectors for whoever writes the firmware: the codes into and out of each layer, for some samples.

A folder with manifest.json, one .npy file and one C header for each edge, the real inputs and outputs as .npy, and
SHA256SUMS in the form that `sha256sum -c` reads. What an edge's codes stand for is its grid: see `Grid`.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from chipfit.errors import FileFormatError, InvalidValueError
from chipfit.files import write_json
from chipfit.folders import replacing_folder
from chipfit.program.dialect import meaning_of
from chipfit.program.reference import trace
from chipfit.program.types import Program, ValueType
from chipfit.reading import SUMS, check_sum, content, json_in, npy_in, reading, sums_of
from chipfit.version import __version__

FORMAT, VERSION = "chipfit golden vectors", 2
"""Version 1, which `verify_golden` reads too, had a scale and a zero for each edge, whatever its grid."""
MANIFEST = "manifest.json"
_UNPRINTED = re.compile(r"[^ -~]")
"""What has no place in a C comment: a line's end, above all."""
_LONGEST = 80
"""Letters of a name that a file's name keeps."""
_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")


def export_golden(program: Program, samples: Tensor | Sequence[Tensor], folder: str | Path) -> list[Path]:
    """Compute samples and write every layer's input and output codes.

    Args:
        program: From `chipfit.lower` or `load_program`.
        samples: The network's input for a batch of samples, or a tuple of its inputs.
        folder: Where to write; made where it is missing.

    Returns:
        The files written, SHA256SUMS last.

    Raises:
        InvalidValueError: no samples.
    """
    folder = Path(folder)
    given = (samples,) if isinstance(samples, Tensor) else tuple(samples)
    if not given or not all(len(x) for x in given):
        raise InvalidValueError("golden vectors need samples", given=[tuple(x.shape) for x in given], where="golden")
    codes = trace(program, *given)
    manifest = _manifest(program, len(given[0]))
    with replacing_folder(folder) as temporary:
        names = []
        for name, entry in manifest["edges"].items():
            array = codes[name].numpy().astype(entry["dtype"])
            entry["shape"] = list(array.shape)
            _write_npy(temporary / entry["npy"], array)
            text = header_text(entry["symbol"], name, array, entry)
            (temporary / entry["header"]).write_text(text, encoding="utf-8")
            names += [entry["npy"], entry["header"]]
        for name, file in _real_files(manifest):
            _write_npy(temporary / file, codes[name].numpy())
            names.append(file)
        write_json(temporary / MANIFEST, manifest)
    return [folder / name for name in (*names, MANIFEST, SUMS)]


def _manifest(program: Program, samples: int) -> dict[str, Any]:
    """All of it but the shapes of the edges."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "chipfit": __version__,
        "chip": program.chip,
        "samples": samples,
        "order": "row-major (C); axis 0 is the sample unless batch_first is false",
        "value": {"plain": "(code - zero) / n", "odd": "(code + n) / n - 1", "null": "a sum without a unit"},
        **{side: _file_names(side, names) for side, names in _real_edges(program).items()},
        "layers": _layers(program),
        "edges": _edge_entries(program),
    }


def _real_files(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """The files of real inputs and outputs, with the names of their edges."""
    return [*manifest["inputs"].items(), *manifest["outputs"].items()]


def verify_golden(folder: str | Path, program: Program | None = None) -> int:
    """Read golden vectors again and check them: sums, manifest, ranges, headers, and the program where it is given.

    Args:
        folder: What `export_golden` wrote.
        program: The program to compute again from the stored inputs.

    Returns:
        How many codes were checked.

    Raises:
        FileFormatError: a file is missing or was changed, does not fit the manifest, or holds other codes than its
            header or the program.
    """
    folder = Path(folder)
    with reading("the golden vectors", folder):
        sums = sums_of(folder)
        if sums is None:
            raise FileFormatError("no such file", given=SUMS, where=str(folder))
        files = {name: _summed(folder, name, sums) for name in sums}
        manifest = _read_manifest(folder, files)
        arrays = {name: _edge(folder, name, entry, files, manifest) for name, entry in manifest["edges"].items()}
        real = {name: npy_in(files[file], folder / file) for name, file in _real_files(manifest)}
        for name, array in real.items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise FileFormatError("no real numbers", given=name, allowed="finite float32", where=str(folder))
        if program is not None:
            _compare(folder, manifest, arrays, real, program)
        return sum(int(array.size) for array in arrays.values())


def _summed(folder: Path, name: str, sums: dict[str, str]) -> bytes:
    if not (folder / name).is_file():
        raise FileFormatError("no such file", given=name, where=str(folder))
    raw = content(folder / name)
    check_sum(raw, sums, name, folder)
    return raw


def _edge(folder: Path, name: str, entry: dict[str, Any], files: dict[str, bytes], manifest: dict[str, Any]) -> Any:
    """An edge's codes, checked against the manifest and the C header."""
    where = str(folder / entry["npy"])
    array = npy_in(files[entry["npy"]], where)
    if str(array.dtype) != entry["dtype"] or list(array.shape) != entry["shape"]:
        allowed = f"{entry['dtype']}, {entry['shape']}"
        raise FileFormatError(
            "not as the manifest says", given=(array.dtype, array.shape), allowed=allowed, where=where
        )
    if array.size and not entry["lo"] <= int(array.min()) <= int(array.max()) <= entry["hi"]:
        raise FileFormatError(
            "codes outside the edge's range",
            given=f"{array.min()} to {array.max()}",
            allowed=f"{entry['lo']} to {entry['hi']}",
            where=where,
        )
    written = header_text if manifest["version"] == VERSION else _header_text_1
    if files[entry["header"]].decode("utf-8") != written(entry["symbol"], name, array, entry):
        raise FileFormatError("the C header and the .npy file differ", given=entry["header"], where=where)
    return array


def header_text(symbol: str, name: str, array: Any, entry: dict[str, Any]) -> str:
    """A C99 header that holds an edge's codes as one flat array.

    Its macros say what the codes stand for: `_GRID` is `CHIPFIT_PLAIN`, `CHIPFIT_ODD`, or `CHIPFIT_NONE` for a sum
    without a unit, and `_VALUE(code)` computes the float of a code as the chip's own training does. `_LOG2_SCALE` is
    there where n is a power of two, so that firmware can shift.

    Args:
        symbol: C identifier.
        name: Name of the edge, for the comment.
        array: Codes.
        entry: The edge's entry in the manifest; its `grid` is written as macros.

    Example:
        >>> codes = np.array([[1, -2]], dtype=np.int8)
        >>> print(header_text("fc1", "fc1", codes, {"grid": {"kind": "plain", "n": 16.0, "zero": 0}}), end="")
        /* fc1: codes of shape (1, 2), row-major; value = (code - zero) / n = (code - 0) / 16 */
        #ifndef CHIPFIT_GOLDEN_FC1_H
        #define CHIPFIT_GOLDEN_FC1_H
        #include <stdint.h>
        #ifndef CHIPFIT_NONE
        #define CHIPFIT_NONE 0
        #define CHIPFIT_PLAIN 1
        #define CHIPFIT_ODD 2
        #endif
        #define FC1_SAMPLES 1
        #define FC1_SIZE 2
        #define FC1_GRID CHIPFIT_PLAIN
        #define FC1_N 16.0f
        #define FC1_ZERO 0
        #define FC1_LOG2_SCALE 4
        #define FC1_VALUE(code) ((float)((code) - FC1_ZERO) / FC1_N)
        static const int8_t fc1[FC1_SIZE] = {
          1, -2
        };
        #endif
    """
    upper = symbol.upper()
    meaning, macros = _meaning(upper, entry["grid"])
    return (
        f"/* {_comment(name, array)}; {meaning} */\n"
        f"#ifndef CHIPFIT_GOLDEN_{upper}_H\n#define CHIPFIT_GOLDEN_{upper}_H\n#include <stdint.h>\n"
        "#ifndef CHIPFIT_NONE\n#define CHIPFIT_NONE 0\n#define CHIPFIT_PLAIN 1\n#define CHIPFIT_ODD 2\n#endif\n"
        f"#define {upper}_SAMPLES {array.shape[0]}\n#define {upper}_SIZE {array.size}\n"
        + "".join(f"#define {upper}_{macro}\n" for macro in macros)
        + _array_text(symbol, array)
    )


def _meaning(upper: str, grid: dict[str, Any] | None) -> tuple[str, list[str]]:
    """What codes stand for, in words and as the ends of macros."""
    if grid is None:
        return "a sum without a unit", ["GRID CHIPFIT_NONE"]
    n = float(np.float32(grid["n"]))
    macros = [f"GRID CHIPFIT_{grid['kind'].upper()}", f"N {n!r}f"]
    if grid["kind"] == "odd":
        said = f"value = (code + n) / n - 1 with n = {n:g}; only odd codes, none of them 0.0"
        return said, [*macros, f"VALUE(code) (((float)(code) + {upper}_N) / {upper}_N - 1.0f)"]
    mantissa, exponent = math.frexp(n)
    macros.append(f"ZERO {grid['zero']}")
    if mantissa == 0.5:
        macros.append(f"LOG2_SCALE {exponent - 1}")
    said = f"value = (code - zero) / n = (code - {grid['zero']}) / {n:g}"
    return said, [*macros, f"VALUE(code) ((float)((code) - {upper}_ZERO) / {upper}_N)"]


def _comment(name: str, array: Any) -> str:
    said = f"{_UNPRINTED.sub('_', name)}: codes of shape {tuple(array.shape)}, row-major"
    return said.replace("*/", "* /")


def _array_text(symbol: str, array: Any) -> str:
    values = [str(v) for v in array.reshape(-1).tolist()]
    lines = ",\n".join("  " + ", ".join(values[i : i + 20]) for i in range(0, len(values), 20))
    return f"static const {array.dtype}_t {symbol}[{symbol.upper()}_SIZE] = {{\n{lines}\n}};\n#endif\n"


def _header_text_1(symbol: str, name: str, array: Any, entry: dict[str, Any]) -> str:
    """The header of version 1."""
    upper = symbol.upper()
    return (
        f"/* {_comment(name, array)}; value = (code - {upper}_ZERO) / 2^{upper}_LOG2_SCALE */\n"
        f"#ifndef CHIPFIT_GOLDEN_{upper}_H\n#define CHIPFIT_GOLDEN_{upper}_H\n#include <stdint.h>\n"
        f"#define {upper}_SAMPLES {array.shape[0]}\n#define {upper}_SIZE {array.size}\n"
        f"#define {upper}_LOG2_SCALE {round(math.log2(entry['scale']))}\n#define {upper}_ZERO {entry['zero']}\n"
        + _array_text(symbol, array)
    )


def narrowest(kind: ValueType) -> str:
    """The narrowest C type that holds an edge's codes.

    Example:
        >>> narrowest(ValueType((1,), 8, signed=False)), narrowest(ValueType((1,), 10))
        ('uint8', 'int16')
    """
    for dtype in _DTYPES:
        limits = np.iinfo(dtype)
        if limits.min <= kind.lo and kind.hi <= limits.max:
            return dtype
    raise InvalidValueError("no C type holds these codes", given=f"{kind.bits} bits", where="golden")


def _layers(program: Program) -> list[dict[str, Any]]:
    """Layers in order, each with the edges it reads and makes, and what its operation says of itself."""
    layers = []
    for node in program.nodes:
        facts = meaning_of(node.op).facts
        if node.layer or facts is not None:
            entry: dict[str, Any] = {"name": node.name, "layer": node.layer, "op": type(node.op).__name__}
            entry |= {} if facts is None else facts(node.op)
            layers.append(entry | {"inputs": list(node.inputs), "output": node.name})
    return layers


def _edge_entries(program: Program) -> dict[str, dict[str, Any]]:
    """The edges of all layers in order of the program, with everything but the shape."""
    wanted = {name for layer in _layers(program) for name in (*layer["inputs"], layer["output"])}
    entries: dict[str, dict[str, Any]] = {}
    for node in program.nodes:
        kind = node.output
        if node.name in wanted and not kind.real:
            symbol = f"e{len(entries):03d}_{_symbol(node.name)}"
            entries[node.name] = {
                "npy": f"{symbol}.npy",
                "header": f"{symbol}.h",
                "symbol": symbol,
                "dtype": narrowest(kind),
                "bits": kind.bits,
                "signed": kind.signed,
                "lo": kind.lo,
                "hi": kind.hi,
                "grid": None if kind.grid is None else asdict(kind.grid),
                "batch_first": kind.shape is not None,
            }
    return entries


def _real_edges(program: Program) -> dict[str, list[str]]:
    return {"inputs": [given.name for given in program.inputs], "outputs": list(program.outputs)}


def _symbol(name: str) -> str:
    """A name as part of a file's name and of a C identifier."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)[:_LONGEST]


def _file_names(side: str, names: list[str]) -> dict[str, str]:
    """A file for each input or output, also where two names differ in signs only.

    Example:
        >>> _file_names("inputs", ["a.b", "a_b"])
        {'a.b': 'inputs_a_b.npy', 'a_b': 'inputs_a_b_.npy'}
    """
    found: dict[str, str] = {}
    for name in names:
        file, taken = f"{side}_{_symbol(name)}", {other.lower() for other in found.values()}
        while f"{file}.npy".lower() in taken:
            file += "_"
        found[name] = f"{file}.npy"
    return found


def _write_npy(path: Path, array: Any) -> None:
    raw = io.BytesIO()
    np.save(raw, array, allow_pickle=False)
    path.write_bytes(raw.getvalue())


def _read_manifest(folder: Path, files: dict[str, bytes]) -> dict[str, Any]:
    where = str(folder / MANIFEST)
    if MANIFEST not in files:
        raise FileFormatError("the sums do not list the file", given=MANIFEST, where=str(folder))
    manifest: dict[str, Any] = json_in(files[MANIFEST], where)
    if manifest.get("format") != FORMAT or manifest.get("version") not in (1, VERSION):
        given = (manifest.get("format"), manifest.get("version"))
        raise FileFormatError("unknown format", given=given, allowed=f"{FORMAT!r}, version 1 or {VERSION}", where=where)
    said = {name for layer in manifest["layers"] for name in (*layer["inputs"], layer["output"])}
    if manifest["version"] == VERSION and not manifest["edges"].keys() <= said:
        raise FileFormatError("edges that no layer names", given=sorted(manifest["edges"].keys() - said), where=where)
    for name, entry in manifest["edges"].items():
        if not {entry["npy"], entry["header"]} <= files.keys():
            raise FileFormatError("the sums do not list an edge's files", given=name, where=where)
    for name, file in _real_files(manifest):
        if file not in files:
            raise FileFormatError("the sums do not list an input's or output's file", given=name, where=where)
    described = {entry[kind] for entry in manifest["edges"].values() for kind in ("npy", "header")}
    for name in files.keys() - described - {file for _, file in _real_files(manifest)} - {MANIFEST}:
        raise FileFormatError("the manifest does not say what a file is", given=name, where=where)
    if not manifest["outputs"] or (manifest["layers"] and not manifest["edges"]):
        raise FileFormatError("the manifest lists nothing to check", given=manifest["outputs"], where=where)
    return manifest


def _compare(
    folder: Path, manifest: dict[str, Any], arrays: dict[str, Any], real: dict[str, Any], program: Program
) -> None:
    """Every edge and every real output against the program, and the manifest against the one that it would have now."""
    codes = trace(program, *(torch.from_numpy(real[name]) for name in manifest["inputs"]))
    for name, stored in (*arrays.items(), *((name, real[name]) for name in manifest["outputs"])):
        if name not in codes:
            raise FileFormatError("the program has no such edge", given=name, where=str(folder))
        computed = codes[name].numpy()
        different = int((computed != stored).sum()) if computed.shape == stored.shape else stored.size
        if different:
            given = f"{different} of {stored.size}"
            raise FileFormatError("codes differ from the program's", given=given, where=f"{folder}, {name}")
    if manifest["version"] == VERSION:
        _compare_manifest(folder, manifest, program, len(real[program.inputs[0].name]))


def _compare_manifest(folder: Path, manifest: dict[str, Any], program: Program, samples: int) -> None:
    wanted = json.loads(json.dumps(_manifest(program, samples)))
    for name, entry in wanted["edges"].items():
        if name in manifest["edges"]:
            entry["shape"] = manifest["edges"][name]["shape"]  # compared with the arrays before
    for part in (wanted.keys() | manifest.keys()) - {"chipfit"}:
        if wanted.get(part) != manifest.get(part):
            raise FileFormatError("the manifest is not that of the program", given=part, where=str(folder / MANIFEST))

"""`verify`: a network and its program, and the program on engines, in every code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from chipfit.engines import c, onnxruntime
from chipfit.engines.engine import Engine
from chipfit.errors import CalibrationError, ChipfitError, InvalidValueError, UnknownOptionError, nearest
from chipfit.export.c.writer import example_inputs
from chipfit.program.batches import batch_inputs
from chipfit.program.proof import EngineResult, Proof, difference
from chipfit.program.proof import verify as verify_network
from chipfit.program.reference import trace
from chipfit.program.types import Program

ENGINES = (c.ENGINE, onnxruntime.ENGINE)
_DRAWN = 16
"""Samples of random codes, and as many of extreme ones, where no loader gives any."""


def known_engines() -> dict[str, Engine]:
    """Every engine by name.

    Example:
        >>> list(known_engines())
        ['c', 'onnxruntime']
    """
    return {engine.name: engine for engine in ENGINES}


def verify(
    model: nn.Module | None,
    program: Program,
    loader: Iterable[Any] | None = None,
    engines: Sequence[str] = (),
    **options: Any,
) -> Proof:
    """Compare a network with its program, and its program with what it runs on, every code.

    The network and the program are compared as `chipfit.program.proof.verify` does. Each engine then computes the same
    inputs as the int64 reference, and every edge that it can show must be equal.

    Args:
        model: The network that was lowered; None to compare only engines.
        program: Its program.
        loader: Batches: tensors, or tuples that begin with the program's inputs. None, without a network, draws random
            and extreme codes.
        engines: Names of engines: 'c' (the exported C, compiled here), 'onnxruntime'.
        **options: Options of the engines; for 'c': cc (the compiler), runner (what runs its programs), cflags, folder
            (a folder c/ that was exported), layout, weights.

    Returns:
        The proof, with a result an engine.

    Raises:
        UnknownOptionError: no such engine or option.
        InvalidValueError: a network without a loader, or neither network nor engine.
        CalibrationError: the loader gives no batch.
        UnsupportedError: the network's layers are not the program's, or an engine is not there or fails.

    Example:
        >>> import torch
        >>> from chipfit.program import ops
        >>> from chipfit.program.types import VERSION, Input, Node, ValueType
        >>> real, codes = ValueType((2,), None), ValueType((2,), 8, True, 16.0)
        >>> q = Node("q", ops.Quantise(16.0, 0, -128, 127), ("x",), codes)
        >>> y = Node("y", ops.Dequantise(), ("q",), real)
        >>> program = Program(VERSION, "wtm2101", (q, y), (Input("x", real),), ("y",), {})
        >>> bool(verify(None, program, engines=["c"]))
        True
    """
    chosen = _chosen([engines] if isinstance(engines, str) else engines, options)
    if model is not None:
        if loader is None:
            raise InvalidValueError("a network is compared on data", given=None, allowed="loader=", where="verify")
        batches = list(loader) if chosen else loader
        proof = verify_network(model, program, batches)
    else:
        if not chosen:
            raise InvalidValueError("nothing to compare", allowed="model= or engines=", where="verify")
        proof = Proof(0, {}, (), (), (), None)
        batches = list(loader) if loader is not None else drawn(program)
    results = []
    for engine in chosen:
        own = {name: options.get(name, option.default) for name, option in engine.options.items()}
        results.append(compared(engine, program, batches, own))
    if model is None and results:
        proof = replace(proof, samples=results[0].samples, codes=dict(results[0].codes))
    return replace(proof, engines=tuple(results))


def _chosen(names: Sequence[str], options: dict[str, Any]) -> list[Engine]:
    known = known_engines()
    for name in names:
        if name not in known:
            allowed = ", ".join(known)
            raise UnknownOptionError(
                "unknown engine", given=name, allowed=allowed, where="verify", hint=nearest(name, known)
            )
    chosen = [known[name] for name in names]
    allowed_options = {name for engine in chosen for name in engine.options}
    for name in options:
        if name not in allowed_options:
            raise UnknownOptionError(
                "unknown option",
                given=name,
                allowed=", ".join(sorted(allowed_options)) or "none",
                where="verify",
                hint=nearest(name, allowed_options),
            )
    return chosen


def drawn(program: Program) -> list[tuple[Tensor, ...]]:
    """Random codes, and extreme ones."""
    return [example_inputs(program, _DRAWN, seed=1), example_inputs(program, _DRAWN, seed=2, extreme=True)]


def compared(engine: Engine, program: Program, batches: Iterable[Any], options: dict[str, Any]) -> EngineResult:
    """Compare an engine with the reference, to the first batch with a difference.

    Raises:
        CalibrationError: there is no batch.
    """
    counts: dict[str, int] = {}
    samples, mismatch = 0, None
    with engine.prepare(program, options) as ready:
        for batch in batches:
            inputs = tuple(x.detach().cpu().float() for x in batch_inputs(batch, len(program.inputs)))
            for name, expected, got in ready.edges(inputs, trace(program, *inputs)):
                counts[name] = counts.get(name, 0) + expected.numel()
                mismatch = mismatch or difference(name, expected, got, samples)
            samples += len(inputs[0])
            if mismatch:
                break
        version = ready.version
    if not samples:
        raise CalibrationError("the loader gave no sample", where="verify")
    return EngineResult(engine.name, version, samples, counts, mismatch)


def compiled_line(program: Program, batches: Iterable[Any]) -> str:
    """One line for people: a program as C, compiled here and compared, or why not."""
    try:
        return f"As C: {verify(None, program, batches, ['c']).engines[0]}"
    except ChipfitError as error:
        return f"As C: not compiled here: {error}"

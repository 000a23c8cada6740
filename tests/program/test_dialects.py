"""Every operation of every dialect has its row, and a row says all that is asked of it."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from chipfit.errors import InvalidValueError, UnsupportedError
from chipfit.export.onnx.core import CORE
from chipfit.program import FastProgram, Grid, Input, Node, Program, ValueType, certify, dialect, lower, ops, run, trace
from chipfit.program.core.base import Op
from chipfit.program.dialect import Dialect, Meaning, context_of, dialects, meaning_of, meanings
from chipfit.program.ranges import code_ranges
from chipfit.program.types import VERSION
from witin_nn import WitinLayerConfig, WitinLinear


def defined(room: str) -> set[type[Op]]:
    """The operations that a room defines."""
    kinds = vars(importlib.import_module(room)).values()
    return {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Op) and kind is not Op}


def test_every_operation_has_a_row() -> None:
    rooms = ["chipfit.program.core.ops", *(f"chipfit.chips.{d.name}.program.ops" for d in dialects()[1:])]
    assert len(rooms) >= 3
    assert set.union(*map(defined, rooms)) == set(meanings())
    assert set(CORE) == {row.op for row in dialects()[0].meanings}


@pytest.mark.parametrize("row", [row for d in dialects() for row in d.meanings], ids=lambda row: row.op.__name__)
def test_a_row_is_complete(row: Meaning) -> None:
    assert callable(row.reference)
    assert row.op in CORE or callable(row.onnx)
    assert row.op.__doc__ and all(f.type is not None for f in dataclasses.fields(row.op))


@dataclass(frozen=True)
class Halve(Op):
    """Shift codes right by one."""


@dataclass(frozen=True)
class Relu(Op):
    """Of the same name as the core's."""


def another(monkeypatch: pytest.MonkeyPatch, *rows: Meaning) -> None:
    known = (*dialects(), Dialect("another", rows))
    monkeypatch.setattr(dialect, "dialects", lambda: known)
    meanings.cache_clear()


@pytest.fixture
def fresh() -> Any:
    yield
    meanings.cache_clear()


def halved(codes: int) -> Program:
    real, kind = ValueType((codes,), None), ValueType((codes,), 8, True, 4.0)
    nodes = (
        Node("q", ops.Quantise(4.0, 0, -128, 127), ("x",), kind),
        Node("half", Halve(), ("q",), kind),
        Node("y", ops.Dequantise(), ("half",), real),
    )
    return Program(VERSION, "their_chip", nodes, (Input("x", real),), ("y",), {})


def test_an_operation_of_another_package(monkeypatch: pytest.MonkeyPatch, fresh: Any) -> None:
    """One row, and the reference, the fast path and the ranges know it."""
    program, x = halved(3), torch.tensor([[1.0, -0.75, 40.0]])
    with pytest.raises(UnsupportedError, match=r"no dialect has this operation.*Halve"):
        run(program, x)
    another(monkeypatch, Meaning(Halve, lambda op, args, _: args[0] >> 1))
    assert run(program, x).tolist() == [[0.5, -0.5, 15.75]]
    assert torch.equal(FastProgram(program)(x), run(program, x))
    assert code_ranges(program)["half"] == (-128, 127)
    assert certify(program).rows == ()


def test_names_are_each_operation_s_own(monkeypatch: pytest.MonkeyPatch, fresh: Any) -> None:
    another(monkeypatch, Meaning(Relu, lambda op, args, _: args[0]))
    with pytest.raises(InvalidValueError, match=r"two operations of one name.*Relu"):
        meanings()


# --- the sum of products that any chip can use


def summing(weight: torch.Tensor, bias: torch.Tensor | None, **options: Any) -> Program:
    shape, kind = options.pop("shape"), options.pop("kind")
    tensors = {"w": weight} | ({} if bias is None else {"b": bias})
    real, codes = ValueType(shape, None), ValueType(shape, 8, True, 1.0)
    total = ops.Accumulate(kind, "w", 128, bias_tensor=None if bias is None else "b", **options)
    nodes = (
        Node("q", ops.Quantise(1.0, 0, -128, 127), ("x",), codes),
        Node("sum", total, ("q",), ValueType(None, 32)),
        Node("y", ops.Rescale(-7, 0, -128, 127), ("sum",), ValueType(None, 8, True, 2.0**-7)),
        Node("out", ops.Dequantise(), ("y",), ValueType(None, None)),
    )
    return Program(VERSION, "their_chip", nodes, (Input("x", real),), ("out",), tensors)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_sum_of_products_with_a_bias(kind: str, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shape: tuple[int, ...] = (6,) if kind == "linear" else (6, 5, 5)
    weight = torch.randint(-128, 128, (4, 6) if kind == "linear" else (4, 3, 3, 3), generator=generator)
    bias = torch.tensor([5000, -70000, 0, 12]) if biased else None
    options = {} if kind == "linear" else {"stride": (1, 2), "dilation": (1, 1), "groups": 2}
    program = summing(weight, bias, shape=shape, kind=kind, **options)
    x = torch.randint(-128, 128, (7, *shape), generator=generator).float()
    edges = trace(program, x)
    if kind == "linear":
        expected = torch.nn.functional.linear(x.long(), weight, bias)
    else:
        expected = torch.nn.functional.conv2d(x.long(), weight, bias, (1, 2), groups=2)
    assert torch.equal(edges["sum"], expected)
    assert torch.equal(FastProgram(program)(x), edges["out"])
    (row,) = certify(program, [x]).rows
    largest = 0 if bias is None else bias.abs()
    bound = int((weight.abs().flatten(1).sum(1) * 128 + largest).max())
    assert (row.name, row.kind, row.inputs, row.channels, row.bound) == ("sum", kind, weight[0].numel(), 4, bound)
    lo, hi = code_ranges(program)["sum"]
    assert (row.lo, row.hi) == (lo, hi) and lo <= int(expected.min()) <= int(expected.max()) <= hi
    assert row.seen is not None and row.seen.outputs == expected.numel()
    assert certify(program, [x]).as_dicts()[0]["seen"]["outputs"] == expected.numel()


def test_its_bias_in_onnx(tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the export extra is not installed")
    from chipfit.export.onnx.writer import export_onnx

    weight = torch.tensor([[3, -100, 127], [-128, 1, 0]])
    program = summing(weight, torch.tensor([-3000, 77777]), shape=(3,), kind="linear")
    nodes = tuple(dataclasses.replace(n, output=dataclasses.replace(n.output, shape=(2,))) for n in program.nodes[1:])
    program = dataclasses.replace(program, nodes=(program.nodes[0], *nodes))
    session = onnxruntime.InferenceSession(
        export_onnx(program, tmp_path / "sum.onnx", edges=["q", "sum"]), providers=["CPUExecutionProvider"]
    )
    x = torch.randint(-128, 128, (50, 3), generator=torch.Generator().manual_seed(1)).float()
    edges = trace(program, x)
    for found, edge in zip(session.run(None, {"x": x.numpy()}), ("out", "q", "sum"), strict=True):
        assert torch.equal(torch.from_numpy(found), edges[edge]), edge


# --- ranges


def test_ranges_of_core_operations() -> None:
    kind = ValueType((2, 4), 8)
    nodes = (
        Node("q", ops.Quantise(1.0, 0, -3, 2), ("x",), kind),
        Node("up", ops.Rescale(2, 1, -10, 127), ("q",), kind),
        Node("down", ops.Rescale(-1, 0, -128, 127), ("q",), kind),
        Node("relu", ops.Relu(), ("q",), kind),
        Node("clamp", ops.Clamp(-1, 9), ("q",), kind),
        Node("add", ops.Add(0, -5, 127), ("q", "relu"), kind),
        Node("mul", ops.Mul(0, -9, 9), ("q", "q"), kind),
        Node("mean", ops.Mean((2,), True, -100, 100), ("q",), kind),
        Node("two", ops.Constant("t"), (), kind),
        Node("table", ops.LookUp("f", "f", -5), ("q",), kind),
        Node("edge", ops.Pad((1, 1), "replicate", -99), ("q",), kind),
    )
    tensors = {"t": torch.tensor([7, -2]), "f": torch.tensor([[90, 91, 10, 11, 12, -13, 14, 15, 92]])}
    program = Program(VERSION, "their_chip", nodes, (Input("x", ValueType((2, 4), None)),), (), tensors)
    assert code_ranges(program) == {
        "q": (-3, 2),
        "up": (-10, 9),
        "down": (-2, 1),
        "relu": (0, 2),
        "clamp": (-1, 2),
        "add": (-3, 4),
        "mul": (-9, 9),
        "mean": (-3, 2),
        "two": (-2, 7),
        "table": (-13, 15),  # not what stands beyond the codes that come in
        "edge": (-3, 2),
    }


def test_largest_of_real_numbers_on_the_fast_path() -> None:
    """It selects before there are codes: 0.5 stays 0.5."""
    real = ValueType((2, 3), None)
    nodes = (
        Node("max", ops.Max((2,), False), ("x",), ValueType((2,), None)),
        Node("q", ops.Quantise(4.0, 0, -128, 127), ("max",), ValueType((2,), 8, True, 4.0)),
        Node("y", ops.Dequantise(), ("q",), ValueType((2,), None)),
    )
    program = Program(VERSION, "their_chip", nodes, (Input("x", real),), ("y",), {})
    x = torch.tensor([[[0.5, 0.25, -1.0], [-0.75, -2.0, -1.5]]])
    assert run(program, x).tolist() == [[0.5, -0.75]]
    assert torch.equal(FastProgram(program)(x), run(program, x))


# --- old spellings


@pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
def test_old_spellings_say_where_things_are() -> None:
    from chipfit.chips.witmem.program.ops import Array, arrays

    program = lower(WitinLinear(3, 2, layer_config=WitinLayerConfig(1, use_quantization=True)), torch.zeros(1, 3))
    assert len(list(arrays(program))) == 1
    with pytest.warns(DeprecationWarning, match="arrays"):
        assert list(program.arrays()) == list(arrays(program))
    with pytest.warns(DeprecationWarning, match=r"chipfit\.chips\.witmem\.program\.ops\.Array"):
        assert ops.Array is Array
    with pytest.raises(AttributeError, match="no attribute 'Convolve'"):
        _ = ops.Convolve


def test_a_grid_names_its_codes() -> None:
    q = Node("q", ops.Quantise(16.0, 8, 0, 255), ("x",), ValueType((1,), 8, False, Grid("plain", 16.0, 8)))
    program = Program(VERSION, "their_chip", (q,), (Input("x", ValueType((1,), None)),), (), {})
    assert context_of(q, program).output == q.output and meaning_of(q.op).op is ops.Quantise
    assert (q.output.scale, q.output.zero) == (16.0, 8)
    assert ValueType((1,), 8, False, 16).grid == Grid("plain", 16.0) and ValueType((1,), 8).grid is None


@pytest.mark.parametrize(
    ("given", "said"), [(("plain", 0.0), "above 0"), (("even", 2.0), "plain, odd"), (("odd", 3.0, 1), "has no zero")]
)
def test_a_grid_that_is_none(given: Any, said: str) -> None:
    with pytest.raises(InvalidValueError, match=said):
        Grid(*given)

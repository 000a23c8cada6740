"""C from integer programs: every edge that lies in memory equal to the reference, whatever the compiler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import chipfit
from chipfit.chips.ingenic.program.ops import FloatMean
from chipfit.chips.witmem.program import ops
from chipfit.engines.c import SOURCES, STRICT, check_sums
from chipfit.errors import FileFormatError, InvalidValueError, UnknownOptionError, UnsupportedError
from chipfit.export.c.plan import plan
from chipfit.export.c.staircase import _codes_by_line, line_row, staircase
from chipfit.export.c.views import Buffer
from chipfit.export.c.writer import CBuilder, build, example_inputs
from chipfit.program import Program, lower
from chipfit.program.core import ops as core
from chipfit.program.types import Grid, ValueType
from support.ingenic import random_networks as drawn
from support.networks import EXAMPLES, DsCnn, GruKeywords, LstmClassifier, UNet
from support.on_chip import on_chip
from support.programs import Maker
from support.random_networks import PlainNetwork

pytestmark = [
    pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]
SANITIZED = "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all"


def assert_equal(program: Program, samples: int = 4, **options: str) -> None:
    batches = [example_inputs(program, samples, 1), example_inputs(program, 2, 2, extreme=True)]
    proof = chipfit.verify(None, program, batches, ["c"], **{"cc": "gcc", "cflags": "-O1", **options})
    assert proof.equal, str(proof)
    assert sum(proof.codes.values()) > 0


@pytest.mark.parametrize(
    ("kind", "chip"), [(UNet, "wtm2101"), (LstmClassifier, "wtm2101"), (GruKeywords, "wtm2101"), (DsCnn, "t40")]
)
def test_networks(kind, chip):
    assert_equal(on_chip(kind, chip))


@pytest.mark.parametrize("flags", ["-O0", "-O3", "-Os", SANITIZED, "-std=gnu11 -Ofast -march=native"])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("chip", ["wtm2101", "t40"])
@pytest.mark.slow
def test_compilers(chip, cc, flags):
    if shutil.which(cc) is None:
        pytest.skip(f"{cc} is not installed")
    assert_equal(on_chip(DsCnn, chip), cc=cc, cflags=flags)
    assert_equal(on_chip(UNet, chip), cc=cc, cflags=flags, weights="int16", layout="nchw")


@pytest.mark.parametrize("seed", [3, 18, 159, pytest.param(range(60), marks=pytest.mark.slow)])
def test_random_ingenic_networks(seed):
    for each in [seed] if isinstance(seed, int) else seed:
        net, example, more = drawn.draw(each)
        try:
            program = lower(net, example)
        except UnsupportedError:
            continue
        proof = chipfit.verify(None, program, [torch.cat([example, more])], ["c"], cc="gcc", cflags="-O1")
        assert proof.equal, (each, str(proof))


@pytest.mark.parametrize("chip", ["wtm2101", "t40"])
@pytest.mark.slow
def test_random_plain_networks(chip):
    count = 0
    for seed in range(60):
        net = PlainNetwork(seed)
        try:
            fitted = chipfit.convert(net, chip, net.example)
            chipfit.calibrate(fitted, [net.example])
            program = lower(chipfit.set_mode(fitted, "quant"), net.example)
        except chipfit.errors.ChipfitError:
            continue
        proof = chipfit.verify(None, program, [net.example], ["c"], cc="gcc", cflags="-O1")
        assert proof.equal, (seed, str(proof))
        count += 1
    assert count > 25


@pytest.mark.parametrize("negative", ["unsigned", "signed", "pn", "shift"])
def test_ways_to_take_negative_inputs_and_transposed_convolutions(negative):
    made = Maker(np.random.default_rng(5))
    zero = 33 if negative == "shift" else 0
    signed = negative in ("signed", "pn")
    options = {"negative": negative, "x_bits": 9 if negative == "signed" else 8, "shift_code": zero}
    x = made.start((3, 9, 8), 9 if signed else 8, signed, zero)
    conv = ops.Geometry("conv", (2, 1), (1, 2), (1, 2), (), 1)
    y = made.node("conv", made.array_op("conv", conv, made.weights(4, 3, 3, 2), **options), (x,), codes((4, 5, 10)))
    up = ops.Geometry("conv_transpose", (2, 2), (1, 1), (1, 1), (1, 0), 1)
    y = made.node("relu", ops.Relu(), (y,), codes((4, 5, 10)))
    y = made.node("up", made.array_op("up", up, made.weights(4, 2, 3, 3)), (y,), codes((2, 10, 19)))
    assert_equal(made.finish(y), cflags=SANITIZED)


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        *[((1, n), {}) for n in (1, 5, 7, 8, 33, 67)],
        ((23, 24), {"keepdim": False}),
        ((130, 127), {}),
        # more than 4096 rows of four vectors, and some left over
        pytest.param((363, 362), {"keepdim": False}, marks=pytest.mark.slow),
        ((9, 11), {"kernel": (3, 2), "stride": (2, 3)}),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_float_means_are_added_in_the_order_of_the_reference(size, windows, turned):
    made = Maker(np.random.default_rng(5))
    x = made.start((2, *size), 9, True)
    if turned:
        size = size[::-1]
        x = made.node("turned", core.Permute((0, 1, 3, 2)), (x,), codes((2, *size)))
    if "kernel" in windows:
        steps = zip(size, windows["kernel"], windows["stride"], strict=True)
        shape = (2, *((length - kernel) // stride + 1 for length, kernel, stride in steps))
    else:
        shape = (2, 1, 1) if windows.get("keepdim", True) else (2,)
    kind = ValueType(shape, None, True)
    y = made.node("mean", FloatMean(Grid("plain", 127.0, 3), **windows), (x,), kind)
    assert_equal(made.finish(y), cflags=SANITIZED)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("negative", ["unsigned", "pn"])
def test_split_inputs(bits, negative):
    made = Maker(np.random.default_rng(bits))
    x = made.start((20,), bits + (negative == "pn"), negative == "pn")
    op = made.array_op("fc", ops.Geometry("linear"), made.weights(30, 20), negative=negative, split=True, x_bits=bits)
    y = made.node("fc", op, (x,), codes((30,)))
    assert_equal(made.finish(y), 20, cflags=SANITIZED)


def test_wide_inputs_are_cut_in_two():
    made = Maker(np.random.default_rng(3))
    x = made.start((12,), 20, True, scale=1024.0)
    total = ops.Accumulate("linear", made.tensor("w", made.weights(5, 12)), 1 << 19)
    y = made.node("sum", total, (x,), ValueType((5,), 32, True))
    y = made.node("y", ops.Rescale(-14, 0, -128, 127), (y,), codes((5,)))
    assert_equal(made.finish(y), 20, cflags=SANITIZED)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_divide_hypot_layer_norm_and_padding(mode):
    made = Maker(np.random.default_rng(1))
    x, other = made.start((3, 6, 4), 8, scale=16.0), made.start((3, 6, 4), 8, scale=16.0)
    y = made.node("divide", ops.Divide(3, -128, 127), (x, other), codes((3, 6, 4)))
    z = made.node("hypot", ops.Hypot(4, -2, 0, 127), (x, other), codes((3, 6, 4)))
    z = made.node("norm", ops.LayerNorm(False, 12, 0, -(2**54), 2**54, -128, 127), (z,), codes((3, 6, 4)))
    y = made.node("product", ops.Mul(-4, -128, 127), (y, z), codes((3, 6, 4)))
    y = made.node("pad", ops.Pad((1, 2, 2, 0), mode, 0), (y,), codes((3, 8, 7)))
    y = made.node("pool", ops.MaxPool((3, 2), (2, 2), (1, 1), (1, 1), True), (y,), codes((3, 5, 4)))
    y = made.node("flip", ops.Flip((3,)), (y,), codes((3, 5, 4)))
    y = made.node("mean", ops.Mean((2, 3), False, -(2**54), 2**54), (y,), codes((3,)))
    assert_equal(made.finish(y), 20, cflags=SANITIZED)


def codes(shape: tuple[int, ...]) -> ValueType:
    return ValueType(shape, 8, True, Grid("plain", 8.0))


def test_the_folder(tmp_path):
    program = on_chip(DsCnn, "wtm2101")
    files = chipfit.export(program, tmp_path, ["c"], samples=torch.rand(3, *EXAMPLES[DsCnn]))
    folder = tmp_path / "c"
    assert {path.name for path in files} >= {"net.h", "net.c", "net_weights.c", "net.json", "Makefile", "SHA256SUMS"}
    check_sums(folder)
    done = subprocess.run(["make", "-C", str(folder), "test", "CC=gcc", "CFLAGS=-O1"], capture_output=True, text=True)
    assert done.returncode == 0 and "equal" in done.stdout, done.stderr
    said = json.loads((folder / "net.json").read_text())
    assert said["arena_lower_bound"] <= said["arena"] - said["scratch"] <= 1.02 * said["arena_lower_bound"]
    assert said["scratch"] <= 4096 and said["inputs"][0]["dtype"] == "int16"
    assert not re.search(r"\b(malloc|printf|memcpy|float|double)\b", (folder / "net.c").read_text())
    again = tmp_path / "again"
    chipfit.export(program, again, ["c"], samples=torch.rand(3, *EXAMPLES[DsCnn]))
    assert (again / "c" / "net.c").read_bytes() == (folder / "net.c").read_bytes()
    half = subprocess.run([folder / "net_main"], input=b"12345", capture_output=True)
    unknown = subprocess.run([folder / "net_main", "--edge", "nothing"], capture_output=True)
    assert half.returncode == unknown.returncode == 2


def test_the_self_test_names_the_layer_that_differs(tmp_path):
    program = on_chip(DsCnn, "t40")
    chipfit.export(program, tmp_path, ["c"])
    folder = tmp_path / "c"
    weights = (folder / "net_weights.c").read_text()
    (folder / "net_weights.c").write_text(
        re.sub(r"(int16_t net_c\d+\[256\] = \{\n    )-?\d+", r"\g<1>9999", weights, count=1)
    )
    subprocess.run(["gcc", "-O1", "-o", folder / "a", *(folder / name for name in SOURCES)], check=True)
    done = subprocess.run([folder / "a", "--test"], capture_output=True, text=True)
    assert done.returncode == 1 and "edge features.6 differs" in done.stdout, done.stdout
    with pytest.raises(FileFormatError, match="was changed"):
        chipfit.verify(None, program, engines=["c"], folder=folder)


@pytest.mark.parametrize("chip", ["wtm2101", "t40"])
def test_nothing_is_undefined_and_no_memory_is_static(tmp_path, chip):
    chipfit.export(on_chip(DsCnn, chip), tmp_path, ["c"])
    for source in ("net.c", "net_weights.c"):
        subprocess.run(["gcc", *STRICT, "-O2", "-ffreestanding", "-c", source], cwd=tmp_path / "c", check=True)
    subprocess.run(["ld", "-r", "-o", "net.o2", "net.o", "net_weights.o"], cwd=tmp_path / "c", check=True)
    names = subprocess.run(
        ["nm", "-u", "net.o2"], cwd=tmp_path / "c", capture_output=True, text=True, check=True
    ).stdout
    assert not [name for name in names.split() if name not in ("U", "_GLOBAL_OFFSET_TABLE_")], names
    sizes = subprocess.run(["size", "net.o"], cwd=tmp_path / "c", capture_output=True, text=True, check=True).stdout
    assert sizes.splitlines()[1].split()[2] == "0"  # .bss


def test_errors(tmp_path):
    program = on_chip(DsCnn, "wtm2101")
    with pytest.raises(UnsupportedError, match=r"larger than the memory.*At the peak live"):
        chipfit.export(program, tmp_path, ["c"], ram=1000)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnsupportedError, match="no such program on this machine"):
        chipfit.verify(None, program, engines=["c"], cc="no-such-compiler")
    with pytest.raises(UnsupportedError, match="no such program on this machine"):
        chipfit.verify(None, program, engines=["c"], cc="gcc", runner="no-such-runner")
    with pytest.raises(UnsupportedError, match="gcc ended with"):
        chipfit.verify(None, program, engines=["c"], cc="gcc", cflags="-no-such-flag")
    with pytest.raises(UnknownOptionError, match="unknown engine"):
        chipfit.verify(None, program, engines=["d"])
    with pytest.raises(UnknownOptionError, match="unknown option"):
        chipfit.verify(None, program, engines=["c"], compiler="gcc")
    with pytest.raises(InvalidValueError, match="nothing to compare"):
        chipfit.verify(None, program)
    with pytest.raises(FileFormatError, match="no such file"):
        chipfit.verify(None, program, engines=["c"], cc="gcc", folder=tmp_path / "moved")


def test_plans_reach_their_bound():
    rng = np.random.default_rng(0)
    for _ in range(20):
        starts = rng.integers(0, 10, 12)
        buffers = [
            Buffer("int8", int(size), "", int(first), int(first + length))
            for first, length, size in zip(starts, rng.integers(1, 4, 12), rng.integers(1, 900, 12), strict=True)
        ]
        found = plan(buffers, 14)
        assert found.lower_bound <= found.bytes <= 1.1 * found.lower_bound
        for a in buffers:
            for b in buffers:
                if a is not b and a.first <= b.last and b.first <= a.last:
                    assert a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset


def test_lines_are_the_staircase_everywhere():
    rng = np.random.default_rng(0)
    program = on_chip(DsCnn, "wtm2101")
    for scale in (3e-2, 7e-4, 1e-5):
        gain = (rng.uniform(0.5, 1.5, 6) * scale * np.where(rng.random(6) < 0.3, -1, 1)).astype(np.float32)
        shift = rng.uniform(-40, 140, 6).astype(np.float32)

        def rounded(x, gain=gain, shift=shift):
            return np.clip(np.rint(x.astype(np.float32) * gain + shift), 0, 255).astype(np.int64)

        reach = np.full(6, min(int(300 / scale), 2_000_000))
        stairs = staircase(rounded, -reach, reach)
        assert stairs is not None
        row = line_row(CBuilder(program, {}), stairs, -reach, reach)
        assert row is not None and row.kernel == "line"
    assert callable(_codes_by_line)


def test_two_quantisers_of_one_input_are_two_inputs():
    made = Maker(np.random.default_rng(2))
    x = made.start((6,), 8)
    second = made.node("x0.again", ops.Quantise(64.0, 0, -128, 127), ("x0",), ValueType((6,), 8, True, 64.0))
    y = made.node("sum", ops.Add(-2, -128, 127), (x, second), codes((6,)))
    program = made.finish(y)
    assert [edge.name for edge in build(program).inputs] == ["x0.q", "x0.again"]
    assert_equal(program)


def test_onnxruntime_is_an_engine_too():
    proof = chipfit.verify(None, on_chip(DsCnn, "wtm2101"), engines=["onnxruntime", "c"], cc="gcc")
    assert proof.equal and [result.name for result in proof.engines] == ["onnxruntime", "c"]
    assert "onnxruntime" in str(proof) and Path("gcc").name in str(proof)

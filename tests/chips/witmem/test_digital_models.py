"""Forward of the digital-unit layers against models written independently in numpy, on int64 codes where there are any.

Inputs are float64, so that both sides divide in the same precision and the comparison is exact for any scale.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chipfit.chips.witmem import digital
from chipfit.chips.witmem.config.config import WitinLayerConfig

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")

SCALES = st.one_of(st.sampled_from([0.5, 2.0, 8.0, 16.0, 32.0, 64.0, 256.0]), st.floats(1.0, 300.0))
BITS = st.integers(2, 12)
CLIPS = st.sampled_from([None, 0, 0.7, 3])
SHIFTS = st.sampled_from([0, 2, 4, 8])
SEEDS = st.integers(0, 2**31)
Array = np.ndarray[Any, Any]


def layer(name: str, *args: Any, **options: Any) -> torch.nn.Module:
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, **options)
    made: torch.nn.Module = getattr(digital, name)(*args, layer_config=config).double()
    return made


def data(seed: int, *shape: int, scale: float = 16.0) -> Array:
    """Values over and beyond the range, a share of them exact ties of the grid."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 2.5
    return np.where(rng.random(shape) < 0.3, np.round(x * scale * 2) / (scale * 2), x)


def codes(x: Array, scale: float, bits: int, signed: bool = True) -> Array:
    """Integer codes: half to even, then saturate."""
    lo, hi = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return np.clip(np.rint(x * scale), lo, hi).astype(np.int64)


def output(v: Array, scale: float, bits: int, clip: float | None = None, signed: bool = True) -> Array:
    v = np.clip(v, -clip, clip) if clip else v
    return codes(v, scale, bits, signed) / scale


def same(module: torch.nn.Module, want: Array, *inputs: Array) -> None:
    got = module(*[torch.from_numpy(x) for x in inputs])
    np.testing.assert_array_equal(got.detach().numpy(), want)


@given(SEEDS, SCALES, SCALES, BITS, BITS, CLIPS, st.sampled_from([None, 0, 0.17, 1]), st.sampled_from(["none", "tanh"]))
@settings(max_examples=40, deadline=None)
def test_gelu(
    seed: int, sx: float, sy: float, bx: int, by: int, clip: float | None, shift: float | None, approximate: str
) -> None:
    x = data(seed, 40, scale=sx)
    u = codes(x, sx, bx) / sx
    v = torch.nn.functional.gelu(torch.from_numpy(u), approximate=approximate).numpy() + (shift or 0)
    module = layer(
        "WitinGELU",
        approximate,
        scale_x=sx,
        scale_y=sy,
        x_quant_bits=bx,
        y_quant_bits=by,
        output_fp_clip=clip,
        gelu_shift_num=shift,
    )
    same(module, output(v, sy, by + bool(shift), clip), x)


@given(SEEDS, SCALES, SCALES, BITS, BITS, CLIPS, CLIPS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_sigmoid_and_tanh(
    seed: int, sx: float, sy: float, bx: int, by: int, x_clip: float | None, fp_clip: float | None, is_tanh: bool
) -> None:
    x = data(seed, 40, scale=sx)
    u = torch.from_numpy(codes(np.clip(x, -x_clip, x_clip) if x_clip else x, sx, bx) / sx)
    v = (u.tanh() if is_tanh else u.sigmoid()).numpy()
    module = layer(
        "WitinTanh" if is_tanh else "WitinSigmoid",
        scale_x=sx,
        scale_y=sy,
        x_quant_bits=bx,
        y_quant_bits=by,
        x_clip=x_clip,
        output_fp_clip=fp_clip,
    )
    same(module, output(v, sy, by, signed=is_tanh), x)


@given(SEEDS, SCALES, SCALES, SCALES, BITS, BITS, BITS, CLIPS, st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_prelu(
    seed: int, sx: float, sy: float, sw: float, bx: int, by: int, bw: int, clip: float | None, channels: int
) -> None:
    x = data(seed, 2, 3, 5, scale=sx)
    module = layer(
        "WitinPReLU",
        channels,
        scale_x=sx,
        scale_y=sy,
        scale_weight=sw,
        x_quant_bits=bx,
        y_quant_bits=by,
        weight_quant_bits=bw,
        output_fp_clip=clip,
    )
    slope = data(seed + 1, channels, scale=sw)
    module.weight.data = torch.from_numpy(slope)
    u, w = codes(x, sx, bx) / sx, (codes(slope, sw, bw) / sw).reshape(1, channels, 1)
    same(module, output(np.where(u > 0, u, u * w), sy, by, clip), x)


@given(SEEDS, SCALES, SCALES, SCALES, BITS, BITS, BITS, CLIPS, st.sampled_from(["Add", "Mul", "Divide", "MatMul"]))
@settings(max_examples=120, deadline=None)
def test_pairs(
    seed: int, sl: float, sr: float, sy: float, bl: int, br: int, by: int, clip: float | None, op: str
) -> None:
    x1, x2 = data(seed, 3, 4, 4, scale=sl), data(seed + 1, 4, 4, scale=sr)
    x2[0, 0] = 0.0
    a, b = codes(x1, sl, bl), codes(x2, sr, br)
    if op == "Add":
        s = min(sl, sr)
        want = codes((codes(x1, s, bl) + codes(x2, s, br)) / (s / sy), 1, by) / sy
    elif op == "Mul":
        want = codes(a * b / (sl * sr / sy), 1, by) / sy
    elif op == "MatMul":
        want = output(np.matmul(a, b) / sl / sr, sy, by)
    else:
        whole = np.rint(a / (b + 1e-8))
        want = output(np.clip(whole / sl * sr, -8, 8), sy, by, clip)
    module = layer(
        "WitinMatMul" if op == "MatMul" else f"WitinElement{op}",
        scale_x_left=sl,
        scale_x_right=sr,
        scale_y=sy,
        x_left_quant_bits=bl,
        x_right_quant_bits=br,
        y_quant_bits=by,
        output_fp_clip=clip,
    )
    same(module, want, x1, x2)


@given(SEEDS, SCALES, SCALES, SCALES, BITS, BITS, BITS, CLIPS, st.sampled_from([0, 1, -1]))
@settings(max_examples=40, deadline=None)
def test_cat(
    seed: int, sl: float, sr: float, sy: float, bl: int, br: int, by: int, clip: float | None, dim: int
) -> None:
    x1, x2 = data(seed, 3, 3, scale=sl), data(seed + 1, 3, 3, scale=sr)
    wide = max(bl, br)
    fine_l, fine_r = sl * 2 ** (wide - bl), sr * 2 ** (wide - br)
    v = np.concatenate([codes(x1, fine_l, wide) / fine_l, codes(x2, fine_r, wide) / fine_r], axis=dim)
    module = layer(
        "WitinCat",
        dim,
        scale_x_left=sl,
        scale_x_right=sr,
        scale_y=sy,
        x_left_quant_bits=bl,
        x_right_quant_bits=br,
        y_quant_bits=by,
        output_fp_clip=clip,
    )
    same(module, output(v, sy, by, clip), x1, x2)


def root(v: Array, shift: int) -> Array:
    return np.array([math.isqrt(int(n) << shift) for n in v.ravel()], dtype=np.int64).reshape(v.shape)


@given(SEEDS, SCALES, SCALES, BITS, BITS, SHIFTS, CLIPS, st.sampled_from(["Sqrt", "InvSqrt", "Hypot"]))
@settings(max_examples=90, deadline=None)
def test_roots(seed: int, sx: float, sy: float, bx: int, by: int, shift: int, clip: float | None, op: str) -> None:
    x, x2 = data(seed, 40, scale=sx), data(seed + 1, 40, scale=sx)
    half = 2.0 ** (shift // 2)
    if op == "Hypot":
        r = root(codes(x, sx, bx) ** 2 + codes(x2, sx, bx) ** 2, shift)
        v = r / half / sx
    else:
        r = root(codes(x, sx, bx, signed=False), shift)
        v = r / half / np.sqrt(sx) if op == "Sqrt" else np.where(r == 0, 0.0, half * np.sqrt(sx) / np.maximum(r, 1))
    module = layer(
        f"Witin{op}",
        scale_x=sx,
        scale_x_left=sx,
        scale_y=sy,
        x_quant_bits=bx,
        x_left_quant_bits=bx,
        y_quant_bits=by,
        sqrt_left_shift_bits=shift,
        output_fp_clip=clip,
    )
    same(module, output(v, sy, by, clip, signed=False), *([x, x2] if op == "Hypot" else [x]))


def mean_code(q: Array, axis: Any, bits: int) -> Array:
    total = np.clip(q.sum(axis=axis, keepdims=True), -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    return np.rint(total / (q.size // total.size)).astype(np.int64)


@given(SEEDS, SCALES, BITS, st.sampled_from([5, 9, 55]), st.sampled_from([None, 0, 1, -1]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_mean(seed: int, sx: float, bx: int, sum_bits: int, dim: int | None, keepdim: bool) -> None:
    x = data(seed, 3, 4, 5, scale=sx)
    mean = mean_code(codes(x, sx, bx), dim, sum_bits) / sx
    want = mean if keepdim and dim is not None else mean.squeeze(axis=dim)
    same(layer("WitinMean", dim, keepdim, scale_x=sx, x_quant_bits=bx, mean_sum_quant_bits=sum_bits), want, x)


@given(SEEDS, SCALES, SCALES, BITS, BITS, SHIFTS, CLIPS, st.sampled_from([6, 55]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_cumulative_layer_norm(
    seed: int, sx: float, sy: float, bx: int, by: int, shift: int, clip: float | None, sum_bits: int, simple: bool
) -> None:
    x = data(seed, 2, 3, 4, 5, scale=sx)
    x[0, :, 1] = 0.5  # a row without variance
    q = codes(x, sx, bx)
    d = q if simple else q - mean_code(q, (1, 3), sum_bits)
    r = root(mean_code(d * d, (1, 3), sum_bits), shift) + np.zeros_like(d)
    v = np.where(r == 0, 0.0, d * 2.0 ** (shift // 2) / np.maximum(r, 1))
    module = layer(
        "WitinClnBn2d",
        scale_x=sx,
        scale_y=sy,
        x_quant_bits=bx,
        y_quant_bits=by,
        sqrt_left_shift_bits=shift,
        output_fp_clip=clip,
        mean_sum_quant_bits=sum_bits,
        cln_simple=simple,
    )
    same(module, output(v, sy, by, clip), x)


@given(SEEDS, SCALES, SCALES, SCALES, BITS, BITS, st.integers(2, 8), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_batch_norm(
    seed: int, sx: float, sy: float, sw: float, bx: int, by: int, bw: int, affine: bool, training: bool
) -> None:
    rng = np.random.default_rng(seed)
    x = data(seed, 4, 3, 2, 5, scale=sx)
    module = layer(
        "WitinBatchNorm2d",
        3,
        1e-3,
        0.2,
        affine,
        scale_x=sx,
        scale_y=sy,
        scale_weight=sw,
        x_quant_bits=bx,
        y_quant_bits=by,
        weight_quant_bits=bw,
    ).train(training)
    running = {"running_mean": rng.normal(size=3), "running_var": rng.random(3) + 0.2}
    gamma, beta = rng.normal(size=3), rng.normal(size=3)
    parameters = {"weight": gamma, "bias": beta} if affine else {}
    values = {name: torch.from_numpy(v) for name, v in {**running, **parameters}.items()}
    module.load_state_dict({**module.state_dict(), **values})
    flat = x.transpose(1, 0, 2, 3).reshape(3, -1)
    mean, var = (flat.mean(1), flat.var(1)) if training else (running["running_mean"], running["running_var"])

    q, channel = codes(x, sx, bx), (1, 3, 1, 1)
    if affine:
        w = gamma / np.sqrt(var + 1e-3)
        b = codes(beta - mean * w, sx * sw, bx + bw)
        total = q * codes(w, sw, bw).reshape(channel) + b.reshape(channel)
        want = output(total / (sx * sw), sy, by) if training else codes(total / (sx * sw / sy), 1, by) / sy
    else:
        q_mean, q_std = (codes(v, sx, bx).reshape(channel) for v in (mean, np.sqrt(var)))
        want = output((q - q_mean) / (q_std + 1e-3), sy, by)
    got = module(torch.from_numpy(x)).detach().numpy()
    if training:  # torch and numpy sum the statistics in another order: a tie may then round the other way
        assert np.mean(got != want) < 0.02
        np.testing.assert_allclose(got, want, atol=2 / sy * (1 + 1e3 * (not affine)))
        np.testing.assert_allclose(module.running_mean, 0.8 * running["running_mean"] + 0.2 * mean, rtol=1e-9)
        np.testing.assert_allclose(module.running_var, 0.8 * running["running_var"] + 0.2 * var * 40 / 39, rtol=1e-9)
    else:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bits", [8, 9, 10, 11, 12])
def test_float32_root_is_the_integer_root_at_the_default_shift(bits: int) -> None:
    from chipfit.chips.witmem.digital.roots import integer_root

    operands = torch.arange(1 << bits, dtype=torch.float32)
    want = torch.tensor([math.isqrt(n << 8) for n in range(1 << bits)], dtype=torch.float32)
    assert torch.equal(integer_root(operands, 8), want)


def test_sums_beyond_float32_are_exact() -> None:
    options = {"x_left_quant_bits": 12, "x_right_quant_bits": 12, "y_quant_bits": 12}
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, **options)
    a = torch.cat([torch.full((1, 2048), 2047.0), torch.full((1, 2048), -2047.0)], dim=1)
    b = torch.full((4096, 1), 2047.0)
    b[5] = 2046.0
    assert (a @ b).item() != -2047.0  # float32 loses it on the way
    assert digital.WitinMatMul(layer_config=config)(a, b).item() == -2047.0


def test_float32_hypot_can_be_one_too_high_where_float64_is_exact() -> None:
    """The length of (6, 288) lies just below a multiple of 1/16; float32 takes it for that multiple, as upstream."""
    options = {"x_left_quant_bits": 12, "y_quant_bits": 20, "scale_y": 16}
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, **options)
    hypot = digital.WitinHypot(layer_config=config)
    a, b = torch.tensor([6.0]), torch.tensor([288.0])
    root = math.isqrt((6 * 6 + 288 * 288) << 8)
    assert hypot(a.double(), b.double()).item() * 16 == root
    assert hypot(a, b).item() * 16 == root + 1


def test_float32_hypot_of_8_bits_is_exact() -> None:
    from chipfit.chips.witmem.digital.roots import integer_root

    side = torch.arange(129, dtype=torch.float32) ** 2
    squares = (side.unsqueeze(1) + side).flatten()
    want = torch.tensor([math.isqrt(int(n) << 8) for n in squares.tolist()], dtype=torch.float32)
    assert torch.equal(integer_root(squares, 8), want)

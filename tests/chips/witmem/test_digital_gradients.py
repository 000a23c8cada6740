"""Gradients of the digital-unit layers against a composition of elementary float64 operations with straight-through
rounding, written here from the text of the specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chipfit.chips.witmem import digital
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.digital.roots import integer_root, over_root

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")

OPTIONS = {
    "scale_x": 16.0,
    "scale_y": 24.0,
    "scale_weight": 32.0,
    "scale_x_left": 16.0,
    "scale_x_right": 12.0,
    "x_quant_bits": 7,
    "x_left_quant_bits": 7,
    "x_right_quant_bits": 6,
    "y_quant_bits": 7,
    "output_fp_clip": 2.0,
    "x_clip": 3.0,
    "sqrt_left_shift_bits": 8,
    "mean_sum_quant_bits": 9,
}
SX, SY, SW, SL, SR = 16.0, 24.0, 32.0, 16.0, 12.0


def ste(exact: Tensor, v: Tensor) -> Tensor:
    """Value of `exact`, gradient of `v`."""
    return v + (exact - v).detach()


def rounded(v: Tensor) -> Tensor:
    return ste(v.round(), v)


def to_bits(v: Tensor, bits: int, signed: bool = True) -> Tensor:
    lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    r = rounded(v)
    return torch.where((r < lo) | (r > hi), r.detach().clamp(lo, hi), r)


def limit(v: Tensor, c: float) -> Tensor:
    return torch.where(v.abs() > c, v.detach().clamp(-c, c), v)


def out(v: Tensor, clip: bool = True, signed: bool = True) -> Tensor:
    return to_bits((limit(v, 2.0) if clip else v) * SY, 7, signed) / SY


def isqrt(v: Tensor, k: int = 8) -> Tensor:
    zero = v == 0  # a root has no gradient there, the layer's is 0
    r = torch.where(zero, 1.0, v * 2.0**k).sqrt()
    r = torch.where(zero, 0.0, r)
    return ste(r.floor(), r)


def add(a: Tensor, b: Tensor) -> Tensor:
    return to_bits((to_bits(a * SR, 7) + to_bits(b * SR, 6)) / (SR / SY), 7) / SY


def mul(a: Tensor, b: Tensor) -> Tensor:
    return to_bits(to_bits(a * SL, 7) * to_bits(b * SR, 6) / (SL * SR / SY), 7) / SY


def div(a: Tensor, b: Tensor) -> Tensor:
    return out(limit(rounded(to_bits(a * SL, 7) / (to_bits(b * SR, 6) + 1e-8)) / SL * SR, 8.0))


def matmul(a: Tensor, b: Tensor) -> Tensor:
    return out(to_bits(a * SL, 7) @ to_bits(b * SR, 6) / SL / SR, clip=False)


def cat(a: Tensor, b: Tensor) -> Tensor:
    return out(torch.cat([to_bits(a * SL, 7) / SL, to_bits(b * SR * 2, 7) / (SR * 2)]))


def hypot(a: Tensor, b: Tensor) -> Tensor:
    qa, qb = to_bits(a * SL, 7), to_bits(b * SL, 7)
    return out(isqrt(qa * qa + qb * qb) / 16 / SL, signed=False)


def inv_sqrt(x: Tensor) -> Tensor:
    return out(16 * 4.0 / isqrt(to_bits(x * SX, 7, signed=False)), signed=False)


def mean(x: Tensor) -> Tensor:
    return rounded(limit_sum(to_bits(x * SX, 7).sum(1)) / x.shape[1]) / SX


def limit_sum(v: Tensor) -> Tensor:
    return torch.where((v < -256) | (v > 255), v.detach().clamp(-256, 255), v)


def cln(x: Tensor) -> Tensor:
    q, n = to_bits(x * SX, 7), x.shape[1] * x.shape[3]
    d = q - rounded(limit_sum(q.sum((1, 3), keepdim=True)) / n)
    return out(d * 16 / isqrt(rounded(limit_sum((d * d).sum((1, 3), keepdim=True)) / n)))


SQUARE: dict[str, tuple[Callable[..., Tensor], int, tuple[int, ...]]] = {
    "WitinElementAdd": (add, 2, (5, 5)),
    "WitinElementMul": (mul, 2, (5, 5)),
    "WitinElementDivide": (div, 2, (5, 5)),
    "WitinMatMul": (matmul, 2, (5, 5)),
    "WitinCat": (cat, 2, (5, 5)),
    "WitinHypot": (hypot, 2, (5, 5)),
    "WitinGELU": (lambda x: out(torch.nn.functional.gelu(to_bits(x * SX, 7) / SX)), 1, (40,)),
    "WitinSigmoid": (lambda x: out((to_bits(limit(x, 3.0) * SX, 7) / SX).sigmoid(), False, signed=False), 1, (40,)),
    "WitinTanh": (lambda x: out((to_bits(limit(x, 3.0) * SX, 7) / SX).tanh(), False), 1, (40,)),
    "WitinMean": (mean, 1, (5, 6)),
    "WitinInvSqrt": (inv_sqrt, 1, (40,)),
    "WitinClnBn2d": (cln, 1, (2, 2, 3, 3)),
}


def layer(name: str, *args: Any, **options: Any) -> torch.nn.Module:
    config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, **{**OPTIONS, **options})
    made: torch.nn.Module = getattr(digital, name)(*args, layer_config=config).double()
    return made


def values(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator) * 2


def assert_same_gradients(got: Callable[..., Tensor], want: Callable[..., Tensor], *leaves: Tensor) -> None:
    pair = []
    for function in (got, want):
        tensors = [x.clone().requires_grad_() for x in leaves]
        y = function(*tensors)
        upstream = values(1, *y.shape)
        pair.append((y.detach(), *torch.autograd.grad(y, tensors, upstream)))
    for a, b in zip(*pair, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SQUARE)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_input_gradients(name: str, seed: int) -> None:
    reference, n, shape = SQUARE[name]
    inputs = [values(seed + i, *shape) for i in range(n)]
    if name == "WitinInvSqrt":
        inputs = [x.abs() + 1 / SX for x in inputs]
    assert_same_gradients(layer(name, *([1] if name == "WitinMean" else [])), reference, *inputs)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_prelu_gradients(seed: int) -> None:
    module = layer("WitinPReLU", 3)

    def reference(x: Tensor, w: Tensor) -> Tensor:
        u, slope = to_bits(x * SX, 7) / SX, to_bits(w * SW, 8) / SW
        return out(torch.where(u > 0, u, u * slope.view(1, 3, 1)))

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": w}, (x,))

    assert_same_gradients(ours, reference, values(seed, 2, 3, 4), values(seed + 1, 3))


@pytest.mark.parametrize("training", [True, False])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_batch_norm_gradients(training: bool, seed: int) -> None:
    module = layer("WitinBatchNorm2d", 3).train(training)

    def reference(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        centre, var = torch.zeros(3).double(), torch.ones(3).double()
        if training:
            centre = x.mean((0, 2, 3))
            var = ((x - centre.view(1, 3, 1, 1)) ** 2).mean((0, 2, 3))
        w = gamma / (var + 1e-5).sqrt()
        b = to_bits((beta - centre * w) * (SX * SW), 15)
        acc = to_bits(x * SX, 7) * to_bits(w * SW, 8).view(1, 3, 1, 1) + b.view(1, 3, 1, 1)
        return to_bits(acc / (SX * SW) * SY, 7) / SY

    def ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"weight": gamma, "bias": beta}, (x,))

    assert_same_gradients(ours, reference, values(seed, 4, 3, 2, 2), values(seed + 1, 3), values(seed + 2, 3))


def test_sqrt_gradient_is_that_of_the_raw_input() -> None:
    x = torch.tensor([100.0, 0.25, 1e-6, 0.0, -1.0], requires_grad=True)
    layer("WitinSqrt")(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.05, 1.0, 500.0, 0.0, 0.0]))


@pytest.mark.parametrize("name", ["WitinInvSqrt", "WitinHypot", "WitinClnBn2d"])
def test_zero_under_the_root_gives_zero_gradient(name: str) -> None:
    x = torch.zeros(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = layer(name)(*([x, x] if name == "WitinHypot" else [x]))
    y.sum().backward()
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_root_gradient_uses_the_unfloored_root() -> None:
    v = torch.tensor([2.0, 9.0], dtype=torch.float64, requires_grad=True)
    integer_root(v, 2).sum().backward()
    torch.testing.assert_close(v.grad, 1 / v.detach().sqrt())


def test_division_by_a_root_uses_the_floored_one() -> None:
    root = torch.tensor([4.0, 0.0], requires_grad=True)
    over_root(8.0, root).sum().backward()
    assert root.grad.tolist() == [-0.5, 0.0]

"""Random networks: training forward == reference == fast path, every code of every layer, none beyond its range.

`verify` compares all three. A layer whose accumulators can pass 2^24, where float32 training depends on the order of
summation, is compared with its own float64 forward: the proof says which, and the tests count on it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import witin_nn as w
from chipfit.program import lower, trace, verify
from chipfit.program.ranges import code_ranges
from witin_nn import HandleNegInType, WitinLayerConfig

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
SEEDS = st.integers(0, 2**40)
DIGITAL = (
    *("GELU", "Sigmoid", "Tanh", "PReLU", "Sqrt", "InvSqrt", "Mean", "BatchNorm2d", "ClnBn2d", "Scalar"),
    *("ElementAdd", "ElementMul", "ElementDivide", "Hypot", "Cat", "MatMul"),
)
FALSE, PN, SHIFT = HandleNegInType.FALSE, HandleNegInType.PN, HandleNegInType.Shift


class Network(nn.Module):
    """Steps in a row: a layer, or a layer of two inputs and what makes the second from the first."""

    def __init__(self, steps: list[Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([part for step in steps for part in step if isinstance(part, nn.Module)])
        self.plan = [[id(part) if isinstance(part, nn.Module) else part for part in step] for step in steps]
        self.where = {id(layer): i for i, layer in enumerate(self.layers)}
        self.plan = [[self.where.get(part, part) for part in step] for step in self.plan]

    def forward(self, x: Tensor) -> Tensor:
        for first, *other in self.plan:
            if other:
                x = self.layers[first](x, other[0](x))
            else:
                x = self.layers[first](x) if isinstance(first, int) else first(x)
        return x


class Maker:
    """Draws layers, scales and data from one seed."""

    def __init__(self, seed: int, rounding: str | None) -> None:
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.rounding = rounding

    def pick(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def config(self, **options: Any) -> WitinLayerConfig:
        pick = self.pick
        drawn = {
            "use_quantization": True,
            "use_auto_scale": False,
            "rounding": self.rounding or pick("witin_nn", "wtm2101"),
            **{f"scale_{name}": 2 ** pick(3, 4, 5, 6, 7) for name in ("x", "x_left", "x_right")},
            "scale_y": 2 ** pick(2, 3, 4, 5, 6),
            "scale_weight": 2 ** pick(5, 6, 7, 8),
            **{f"{name}_quant_bits": pick(8, 8, 9, 10, 12) for name in ("x", "y", "x_left", "x_right")},
            "handle_neg_in": pick(FALSE, PN, SHIFT),
            "shift_num": pick(0.5, 1.0, 3.0, -1.0, 0.0, 0.375, 0.390625),
            "bias_row_N": pick(1, 8, 16),
            "bias_d": torch.tensor(pick(0.0, 0.5, -2.0)),
            "w_clip": pick(None, None, 0.5),
            "output_fp_clip": pick(None, None, None, 1.0, 0.7),
            "x_clip": pick(None, None, 0.7, 2.0),
            "gelu_shift_num": pick(None, 0, 0.25),
            "cln_simple": pick(True, False),
            "mean_sum_quant_bits": pick(55, 12),
            "sqrt_left_shift_bits": pick(0, 2, 8),
        }
        return WitinLayerConfig(1, **{**drawn, **options})

    def filled(self, layer: nn.Module, spread: float = 0.5) -> nn.Module:
        """Parameters with a share of exact ties (odd multiples of 2^-9), and some beyond the weight's range."""
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if name.endswith("io_max") or parameter.dim() == 0:
                    continue
                drawn = torch.randn(parameter.shape, generator=self.generator) * spread
                ties = torch.rand(parameter.shape, generator=self.generator) < 0.3
                drawn = torch.where(ties, (drawn * 512).round() / 512, drawn)
                big = torch.rand(parameter.shape, generator=self.generator) < 0.05
                parameter.copy_(torch.where(big, drawn.sign() * 4.0, drawn))
        return layer

    def data(self, *shape: int) -> Tensor:
        """Inputs over twice the range of many of the grids, a third of them ties."""
        x = torch.randn(shape, generator=self.generator) * self.pick(0.5, 4.0, 12.0)
        ties = torch.rand(shape, generator=self.generator) < 0.3
        return torch.where(ties, (x * 16).round() / 16 + self.pick(0.0, 1 / 32, 1 / 64), x)

    def array(self, x: Tensor) -> nn.Module:
        """An array layer for an input of this shape."""
        pick = self.pick
        out = pick(1, 2, 3)
        if x.dim() == 2 or (x.dim() == 3 and pick(True, False)):
            return self.filled(w.WitinLinear(x.shape[-1], out, bias=pick(True, False), layer_config=self.config()))
        kind = pick("conv", "conv", "to_linear", "transpose") if x.dim() == 4 else "conv"
        negative = pick(FALSE, PN) if kind == "transpose" else pick(FALSE, PN, SHIFT)
        config = self.config(handle_neg_in=negative, to_linear=kind == "to_linear")
        size, dilation, padding = pick(1, 2, 3), pick(1, 1, 2), pick(0, 1)
        if kind == "transpose":
            extra = {"stride": pick(1, 2), "padding": pick(0, 0 if size == 1 else 1)}
            extra["output_padding"] = pick(0, extra["stride"] - 1)
            return self.filled(w.WitinConvTranspose2d(x.shape[1], out, size, **extra, layer_config=config))
        mode = pick("zeros", "zeros", "reflect", "circular", "replicate")
        groups = x.shape[1] if kind == "conv" and pick(True, False, False) else 1
        padding = pick(padding, "same") if (stride := pick(1, 2)) == 1 else padding
        kernel = (size, pick(1, 2)) if x.dim() == 4 and padding != "same" else size
        options = {"stride": stride, "padding": padding, "padding_mode": mode, "dilation": dilation, "groups": groups}
        layer = w.WitinConv2d if x.dim() == 4 else w.WitinConv1d
        return self.filled(layer(x.shape[1], out * groups, kernel, **options, layer_config=config))

    def function(self, x: Tensor) -> list[Any]:
        """A layer of the digital unit of one input, or of two of which the second is made from the first."""
        config = self.config()
        name = self.pick(*DIGITAL)
        if name in ("BatchNorm2d", "ClnBn2d") and x.dim() != 4:
            name = "Tanh"
        if name == "MatMul" and x.dim() < 3:
            name = "ElementMul"
        made = getattr(w, f"Witin{name}", None)
        if name == "PReLU":
            return [self.filled(made(num_parameters=self.pick(1, x.shape[1]), layer_config=config))]
        if name == "Mean":
            return [made(dim=self.pick(1, -1), keepdim=True, layer_config=config)]
        if name == "BatchNorm2d":
            layer = made(x.shape[1], affine=self.pick(True, False), layer_config=config)
            layer.running_mean.normal_(generator=self.generator)
            layer.running_var.uniform_(0.01, 4.0, generator=self.generator)
            return [self.filled(layer)]
        if name == "Cat":
            return [made(dim=self.pick(1, -1), layer_config=config), self.second()]
        if name == "MatMul":
            return [made(layer_config=config), lambda v: v.transpose(-1, -2)]
        if name == "Scalar":
            number = self.pick(0.53125, -3.0)
            return [self.pick(w.WitinElementAdd, w.WitinElementMul)(layer_config=config), lambda v: number]
        if name.startswith("Element") or name == "Hypot":
            return [made(layer_config=config), self.second()]
        return [made(layer_config=config)]

    def second(self) -> Callable[[Tensor], Tensor]:
        return self.pick(F.relu, lambda v: v, lambda v: torch.flip(v, (-1,)))

    def move(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Plain torch between the layers."""
        choices: list[Callable[[Tensor], Tensor]] = [F.relu, lambda v: v.flatten(1), lambda v: v.contiguous()]
        if x.dim() == 4:
            choices += [lambda v: v.permute(0, 1, 3, 2), lambda v: torch.cat([v, F.relu(v)], 1)]
            choices += [lambda v: v.view(v.size(0), v.shape[1], -1), lambda v: v[:, :1], lambda v: v[..., 1:]]
            choices += [nn.ReLU6(), nn.ZeroPad2d((1, 0, 0, 1)), lambda v: F.pad(v, (0, 1, 1, 0), "replicate")]
            choices += [lambda v: v.amax(1, keepdim=True), lambda v: torch.max(v, 3)[0]]
            if min(x.shape[2:]) >= 2:
                choices += [lambda v: F.max_pool2d(v, 2), lambda v: F.avg_pool2d(v, 2), nn.MaxPool2d(2, 1, 1)]
            if x.shape[2] * x.shape[3] in (1, 2, 4, 8, 16):
                choices += [lambda v: F.adaptive_avg_pool2d(v, 1), lambda v: v.mean((2, 3))]
        if x.dim() == 3:
            choices += [lambda v: F.pad(v, (0, 1), value=0.5), lambda v: v.amax(2)]
            choices += [lambda v: v.transpose(1, 2), lambda v: v.unsqueeze(1), lambda v: torch.cat(v.chunk(2, 2), 1)]
            choices = choices[:-1] if x.shape[2] % 2 else choices
        return self.rng.choice(choices)

    def network(self, x: Tensor, kinds: str) -> Network:
        """Three to five steps: 'a' array, 'd' digital, 'm' plain torch; the shapes are found on the way."""
        steps: list[list[Any]] = []
        for kind in ["a" if "a" in kinds else "d", *self.rng.choices(kinds, k=self.rng.randint(2, 4))]:
            for _ in range(20):
                step = self.step(kind, x)
                with torch.no_grad():
                    try:
                        y = Network([step]).eval()(x)
                    except (RuntimeError, ValueError):  # this layer does not take this shape: another
                        continue
                if y.dim() in (2, 3, 4) and 0 < y[0].numel() <= 600:
                    x = y
                    steps.append(step)
                    break
        return Network(steps)

    def step(self, kind: str, x: Tensor) -> list[Any]:
        if kind == "d":
            return self.function(x)
        return [self.array(x) if kind == "a" else self.move(x)]


def check(maker: Maker, kinds: str) -> None:
    rounding = maker.pick("witin_nn", "wtm2101", None)
    x = maker.data(2, *maker.pick((4,), (3, 4), (2, 5, 5), (1, 4, 6)))
    net = maker.network(x, kinds)
    if all(part.__class__.__module__.startswith("torch") for part in net.layers):
        return
    program = lower(net, x, rounding=rounding)
    proof = verify(net, program, [x, maker.data(3, *x.shape[1:])])
    assert proof.equal, str(proof)
    assert proof.samples == 5 and all(proof.codes.values())
    edges = trace(program, maker.data(2, *x.shape[1:]))
    for name, (lo, hi) in code_ranges(program).items():
        assert lo <= int(edges[name].min()) and int(edges[name].max()) <= hi, name


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=250, deadline=None)
def test_array_networks(seed: int) -> None:
    check(Maker(seed, None), "aam")


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=220, deadline=None)
def test_digital_networks(seed: int) -> None:
    check(Maker(seed, None), "ddm")


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=80, deadline=None)
def test_mixed_networks(seed: int) -> None:
    check(Maker(seed, None), "admm")

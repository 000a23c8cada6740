"""Every one-line mistake in the arithmetic that trains Witmem layers is noticed by `verify`."""

# ruff: noqa: E501  (a table: one row a mutant)

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.chips.battery import Mutants
from tests.support.mutants import Case, Mutant, ramp
from torch import Tensor, nn

import witin_nn as w
from witin_nn import HandleNegInType, WitinLayerConfig

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")
FIXED = {"use_quantization": True, "use_auto_scale": False}


def own(**options: Any) -> WitinLayerConfig:
    scales = {"scale_x": 32, "scale_weight": 64, "scale_y": 16, "scale_x_left": 32, "scale_x_right": 16}
    return WitinLayerConfig(1, **{**FIXED, **scales, **options})


def filled(net: nn.Module, weight: float = 1.0, bias: float = 3.0) -> nn.Module:
    """Weights of twice the range, ties among them, and a bias that saturates in the last channel."""
    for name, parameter in net.named_parameters():
        if not parameter.dim():
            continue
        reach = bias if "bias" in name else weight
        with torch.no_grad():
            parameter.copy_(ramp(*parameter.shape, low=-2 * reach, high=2.3 * reach, step=1 / 128))
            if "bias" in name:
                parameter += 0.045  # no multiple of a bias row's unit
                parameter[-1] = 300.0
    return net


class Around(nn.Module):
    """A forward around layers."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def array(**options: Any) -> nn.Module:
    conv = w.WitinConv2d(2, 3, 3, padding=1, layer_config=own(**options))
    head = w.WitinLinear(3 * 16, 4, layer_config=own(scale_x=16, scale_y=2))
    return filled(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head), 0.2)


def dense(**options: Any) -> nn.Module:
    return filled(nn.Sequential(w.WitinLinear(8, 4, layer_config=own(**options))), 1.5)


def conv(weight: float = 0.3, **options: Any) -> Any:
    """A function that builds a network of one convolution."""
    geometry = {name: options.pop(name) for name in ("dilation", "padding_mode") if name in options}
    return lambda: filled(
        nn.Sequential(w.WitinConv2d(2, 3, 3, padding=1, **geometry, layer_config=own(**options))), weight, 0.5
    )


def transposed() -> nn.Module:
    layer = w.WitinConvTranspose2d(2, 3, (3, 2), stride=2, padding=1, output_padding=1, layer_config=own())
    return filled(nn.Sequential(layer), 0.3, 0.5)


def observed() -> nn.Module:
    """With scales that follow from what was observed."""
    net = nn.Sequential(w.WitinLinear(8, 4, layer_config=WitinLayerConfig(1, use_quantization=True)))
    filled(net, 0.5, 0.5)
    for name, value in (("x", 3.0), ("y", 17.0), ("weight", 1.5)):
        net[0].observers[name].io_max.data.fill_(value)
    return net


def split() -> nn.Module:
    wide = own(x_quant_bits=12, handle_neg_in=HandleNegInType.PN, bias_d=torch.tensor(2.0), scale_y=4)
    return filled(nn.Sequential(w.WitinLinear(8, 4, layer_config=wide)), 0.5, 1.0)


def layer(kind: str, *args: Any, **options: Any) -> Any:
    """A function that builds a network of one digital layer."""
    return lambda: filled(nn.Sequential(getattr(w, kind)(*args, layer_config=own(**options))))


def pair(kind: str, *args: Any, **options: Any) -> Any:
    """A function that builds a network of one layer of two inputs."""
    return lambda: Around(
        lambda s, x: s.layer(x, torch.flip(x, (-1,))), layer=getattr(w, kind)(*args, layer_config=own(**options))
    )


def batch_norm(affine: bool = True) -> nn.Module:
    norm = w.WitinBatchNorm2d(3, affine=affine, layer_config=own(scale_weight=32))
    norm.running_mean.copy_(torch.tensor([0.5, -1.0, 0.25]))
    norm.running_var.copy_(torch.tensor([0.25, 1.5, 4.0]))
    return filled(nn.Sequential(norm), 1.0, 1.0)


def gru() -> nn.Module:
    config = own(handle_neg_in=HandleNegInType.PN, scale_weight=64, scale_y=32)
    hidden = own(handle_neg_in=HandleNegInType.PN, scale_weight=64, scale_y=16)
    net = w.WitinGru(4, 3, batch_first=True, layer_config=config, hidden_config=hidden)
    for name, parameter in net.named_parameters():
        if parameter.dim():
            reach = 5.0 if "bias" in name else 1.0
            parameter.data.copy_(ramp(*parameter.shape, low=-reach, high=reach))
    return Around(lambda s, x: s.gru(x)[0], gru=net)


IMAGE, ROW, FLAT = (
    ramp(2, 2, 4, 4, low=-9, high=9, step=1 / 64),
    ramp(8, 8, low=-9, high=9),
    ramp(4, 3, 16, low=-5, high=5),
)
PLANES = ramp(2, 3, 4, 4, low=-5, high=5, step=1 / 64)
PN, SHIFT = {"handle_neg_in": HandleNegInType.PN}, {"handle_neg_in": HandleNegInType.Shift, "shift_num": 1.5}
CASES = {
    "array": Case(array, (IMAGE,)),
    "trained": Case(array, (IMAGE,), {"rounding": "witin_nn"}),
    "clipped": Case(lambda: array(w_clip=0.2, output_fp_clip=2.3), (IMAGE,)),
    "bias": Case(lambda: dense(scale_y=1), (ROW,)),
    "pn": Case(lambda: dense(**PN), (ROW,)),
    "two passes": Case(conv(1.5, scale_y=4, **PN), (IMAGE,)),
    "wide": Case(conv(y_quant_bits=10, scale_y=128, **PN), (IMAGE,)),
    "reflected": Case(conv(padding_mode="reflect"), (IMAGE,)),
    "dilated": Case(conv(dilation=(2, 1)), (IMAGE,)),
    "transposed": Case(transposed, (IMAGE,)),
    "shift": Case(lambda: array(**SHIFT), (IMAGE,)),
    "observed": Case(observed, (ROW,)),
    "split": Case(split, (ROW,)),
    "gelu": Case(layer("WitinGELU", gelu_shift_num=0.25, scale_y=1024, y_quant_bits=12, scale_x=64), (FLAT,)),
    "sigmoid": Case(layer("WitinSigmoid", scale_y=256), (FLAT,)),
    "tanh": Case(layer("WitinTanh", scale_y=64, x_clip=1.0), (FLAT,)),
    "prelu": Case(layer("WitinPReLU", 3), (FLAT,)),
    "sqrt": Case(layer("WitinSqrt", scale_y=64), (FLAT,)),
    "invsqrt": Case(layer("WitinInvSqrt"), (FLAT,)),
    "mean": Case(layer("WitinMean", 1, mean_sum_quant_bits=8), (FLAT,)),
    "cln": Case(layer("WitinClnBn2d"), (PLANES,)),
    "norm": Case(batch_norm, (PLANES,)),
    "plain norm": Case(lambda: batch_norm(False), (PLANES,)),
    "add": Case(pair("WitinElementAdd"), (FLAT,)),
    "mul": Case(pair("WitinElementMul"), (FLAT,)),
    "divide": Case(pair("WitinElementDivide"), (FLAT,)),
    "matmul": Case(lambda: Around(lambda s, x: s.m(x, x.transpose(-1, -2)), m=w.WitinMatMul(own())), (FLAT,)),
    "cat": Case(pair("WitinCat", 1, x_left_quant_bits=10), (FLAT,)),
    "hypot": Case(pair("WitinHypot", sqrt_left_shift_bits=2), (FLAT,)),
    "gru": Case(gru, (ramp(3, 5, 4, low=-2, high=2),)),
}
_KERNEL, _RULE = "chipfit.chips.witmem.array.kernel:", "chipfit.chips.witmem.array.rule:"
_NUMBERS = "chipfit.chips.witmem.array.numbers:"
_CONV, _QUANT = "chipfit.chips.witmem.array.conv:", "chipfit.arithmetic.fake_quant:_FakeQuantise.forward"
_DIGITAL, _GRU = "chipfit.chips.witmem.digital.", "chipfit.chips.witmem.gru.rule:"
# fmt: off
MUTANTS = [
    Mutant("weight negated", f"{_KERNEL}_weight_codes", "sign * spec", "-sign * spec", "array"),
    Mutant("weight rounded down", f"{_KERNEL}_weight_codes", "round_", "floor_", "array"),
    Mutant("clip of the weight ignored", f"{_KERNEL}_weight_clip", "if not spec.w_clip", "if True", "clipped"),
    Mutant("input unsigned to 7 bits", f"{_KERNEL}_input_codes", "hi).round_", "hi // 2).round_", "array"),
    Mutant("input rounded up", f"{_KERNEL}_input_codes", ".round_()", ".ceil_()", "array"),
    Mutant("PN takes only one sign", f"{_KERNEL}_input_codes", "-hi if sign == 0 else lo", "lo", "pn"),
    Mutant("shift added twice", f"{_KERNEL}_input_codes", "add_(spec.shift_code)", "add_(2 * spec.shift_code)", "shift"),
    Mutant("constant of the shift", f"{_NUMBERS}ArraySpec.shift_code", "* self.scale_x", "* self.scale_y", "shift"),
    Mutant("shift not taken back", f"{_KERNEL}_bias_codes", "alpha=spec.shift_code", "alpha=0", "shift"),
    Mutant("shift sums wrong axis", f"{_NUMBERS}Geometry.sum_over_inputs", "weight.flatten(1).sum(1)", "weight.flatten(1).amax(1)", "shift"),
    Mutant("bias at the wrong scale", f"{_KERNEL}_bias_codes", "spec.product_scale / BIAS", "spec.scale_x / BIAS", "array"),
    Mutant("bias rounded down", f"{_KERNEL}_bias_codes", ".round_().mul_(", ".floor_().mul_(", "array"),
    Mutant("highest bias", f"{_NUMBERS}ArraySpec.bias_range", "BIAS_UNIT - 1", "BIAS_UNIT - 2", "bias"),
    Mutant("no bias", f"{_KERNEL}_accumulate", "first.w_codes, biases[0])", "first.w_codes, None)", "array"),
    Mutant("bias doubled", f"{_KERNEL}_accumulate", "biases[0])", "2 * biases[0])", "array"),
    Mutant("twice G", f"{_KERNEL}_ArrayLayer.forward", "mul_(1.0 / spec.g)", "mul_(0.5 / spec.g)", "array"),
    Mutant("clip after rounding loses a code", f"{_KERNEL}_output_range", "return lo, hi", "return lo + 1, hi", "array"),
    Mutant("clip of the output ignored", f"{_KERNEL}_output_range", "if not spec.fp_clip", "if True", "clipped"),
    Mutant("other rounding rule", f"{_KERNEL}_ArrayLayer.forward", '== "witin_nn"', '!= "witin_nn"', "array"),
    Mutant("silicon's ties below zero", "chipfit.chips.witmem.rounding:wtm2101", "v - 0.25", "v - 0.5", "array"),
    Mutant("silicon's ties above zero", "chipfit.chips.witmem.rounding:wtm2101", "v + 0.5", "v + 0.25", "array"),
    Mutant("second pass on the first's weight", f"{_KERNEL}_passes", "spec), _weight_codes(weight, -1.0, spec)),", "spec), q_w),", "two passes"),
    Mutant("dilation lost", f"{_NUMBERS}Geometry.__call__", "self.dilation,", "(1, 1),", "dilated"),
    Mutant("reflected border filled with zeros", f"{_CONV}_ArrayConv.convolve", "else self.padding_mode", 'else "constant"', "reflected"),
    Mutant("border before and after swapped", f"{_CONV}_ArrayConv.convolve", "F.pad(x, pads,", "F.pad(x, [p + (-1) ** i for i, p in enumerate(pads)],", "reflected"),
    Mutant("transposed kernel is not", f"{_NUMBERS}Geometry.__call__", "        weight,", "        weight.flip(-1),", "transposed"),
    Mutant("int8 clip of PN", f"{_CONV}_ArrayConv._limit", "(-128, 127) if int8", "(-512, 511) if int8", "wide"),
    Mutant("scale one bit off", "chipfit.arithmetic.grid:power_of_two_scale", "bits - 1 -", "bits - 2 -", "observed"),
    Mutant("logarithm rounded", "chipfit.arithmetic.grid:_ceil_log2", "math.ceil(", "round(", "observed"),
    Mutant("split at 7 bits", f"{_RULE}_split", "256 * _floor(q / 256)", "128 * _floor(q / 128)", "split"),
    Mutant("digital half rounded down", f"{_RULE}_split", "_round(digital", "torch.floor(digital", "split"),
    Mutant("digital bias lost", f"{_RULE}_digital_bias", "_round(digital / BIAS_UNIT)", "torch.zeros_like(digital)", "split"),
    Mutant("bias of a split layer", f"{_RULE}_bias_codes", "- _digital_bias", "+ _digital_bias", "split"),
    Mutant("digital rounding cut", _QUANT, "piece.round_().clamp_(lo, hi)", "piece.trunc_().clamp_(lo, hi)", "add"),
    Mutant("digital clip bound", _QUANT, "round_().clamp_(lo, hi)", "round_().clamp_(lo, hi - 1)", "add"),
    Mutant("sum at the larger scale", f"{_DIGITAL}elementwise:WitinElementAdd.forward", "min(scales", "max(scales", "add"),
    Mutant("difference", f"{_DIGITAL}elementwise:WitinElementAdd.forward", "a + b", "a - b", "add"),
    Mutant("product's scale", f"{_DIGITAL}elementwise:WitinElementMul.forward", '* scales["x2"]', '* scales["x1"]', "mul"),
    Mutant("quotient cut", f"{_DIGITAL}elementwise:divide_codes", "rounded(a", "torch.trunc(a", "divide"),
    Mutant("quotient's limit", f"{_DIGITAL}elementwise:divide_codes", "-DIVISION_LIMIT, D", "-DIVISION_LIMIT, 0.5 * D", "divide"),
    Mutant("operand not transposed back", f"{_DIGITAL}elementwise:WitinMatMul.forward", "matmul(a.to(wide)", "matmul(a.abs().to(wide)", "matmul"),
    Mutant("operand not widened", f"{_DIGITAL}elementwise:common_width", "(wide - bits)", "0", "cat"),
    Mutant("lift forgotten", f"{_DIGITAL}activations:WitinGELU.on_codes", "v + self.gelu", "v + 0 * self.gelu", "gelu"),
    Mutant("other GELU", f"{_DIGITAL}activations:WitinGELU.on_codes", "approximate=self.approximate", 'approximate="tanh"', "gelu"),
    Mutant("sigmoid at the wrong scale", f"{_DIGITAL}activations:WitinSigmoid.on_codes", "/ scale_x", "/ scale_x / 2", "sigmoid"),
    Mutant("sigmoid signed", f"{_DIGITAL}base:DigitalLayer.finish", "self.y_signed,", "True,", "sigmoid"),
    Mutant("limit of the input", f"{_DIGITAL}activations:_Limited.prepare", "self.x_clip", "None", "tanh"),
    Mutant("slope at the wrong scale", f"{_DIGITAL}activations:WitinPReLU.forward", 'scales["weight"])', 'scales["x"])', "prelu"),
    Mutant("root rounded", f"{_DIGITAL}roots:_IntegerRoot.forward", "torch.floor(root)", "torch.round(root)", "sqrt"),
    Mutant("shift of the root", f"{_DIGITAL}roots:WitinSqrt.on_codes", "// 2", "// 4", "sqrt"),
    Mutant("division by zero", f"{_DIGITAL}roots:over_root", "torch.zeros_like(root)", "torch.ones_like(root)", "invsqrt"),
    Mutant("difference of squares", f"{_DIGITAL}roots:WitinHypot.forward", "a * a + b * b", "a * a + b", "hypot"),
    Mutant("register of the mean", f"{_DIGITAL}norms:mean_code", "grid.lo, grid.hi", "grid.lo, 2 * grid.hi", "mean"),
    Mutant("mean of one too few", f"{_DIGITAL}norms:mean_code", "/ n)", "/ (n - 1))", "mean"),
    Mutant("mean over the wrong axes", f"{_DIGITAL}norms:WitinClnBn2d.on_codes", "codes - mean_code(codes, (1, 3)", "codes - mean_code(codes, (1, 2)", "cln"),
    Mutant("deviation not squared", f"{_DIGITAL}norms:WitinClnBn2d.on_codes", "deviation * deviation", "deviation.abs()", "cln"),
    Mutant("variance without eps", f"{_DIGITAL}norms:WitinBatchNorm2d._multiply_add", "var + self.eps", "var + 1.0", "norm"),
    Mutant("mean added", f"{_DIGITAL}norms:WitinBatchNorm2d._multiply_add", "- mean * weight", "+ mean * weight", "norm"),
    Mutant("spread is the variance", f"{_DIGITAL}norms:WitinBatchNorm2d.forward", "torch.sqrt(var)", "var", "plain norm"),
    Mutant("gates swapped", f"{_GRU}gru_step", "(ONE - z) * n + z * h", "(ONE - z) * h + z * n", "gru"),
    Mutant("reset after the sum", f"{_GRU}gru_step", "r * b[", "b[", "gru"),
    Mutant("table index", f"{_GRU}gru_shifts", "math.log2(scale / finer)", "math.log2(scale / scale_hidden)", "gru"),
    Mutant("half of the gates' shift", f"{_GRU}gru_step", "shifts.hidden_shift)", "0)", "gru"),
    Mutant("table's limit", f"{_GRU}activation_tables", "STATE.lo, STATE.hi", "STATE.lo, STATE.hi + 1", "gru"),
    Mutant("tanh for sigmoid", f"{_GRU}gru_step", "tables[0]", "tables[1]", "gru"),
]
# fmt: on


class TestWitmem(Mutants):
    cases, mutants = CASES, MUTANTS

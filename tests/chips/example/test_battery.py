"""The example chip passes what every chip has to pass."""

# ruff: noqa: E501  (a table: one row a mutant)

from __future__ import annotations

import torch
from tests.chips.battery import Battery, Plain
from tests.support.mutants import Case, Mutant, ramp
from tests.support.networks import Residual
from torch import nn

from chipfit.chips.example.layers import NpuAdd, NpuConv2d, NpuLinear


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4))


class Small(nn.Module):
    """One layer of each kind, with weights, biases and exponents that use and exceed the codes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = NpuConv2d(2, 4, 3, stride=2, padding=(1, 0)), NpuConv2d(2, 4, 3, 2, (1, 0), groups=2)
        self.add, self.head = NpuAdd(), NpuLinear(24, 5)
        exponents = {"conv": (5, 3), "other": (6, 4), "add": (3, 2, 2), "head": (2, 0)}
        for name, layer in self.named_children():
            for tensor, exponent in zip(layer.tensors, exponents[name], strict=True):
                getattr(layer, f"{tensor}_exponent").fill_(exponent)
            layer.set_mode("quant")
        for parameter in self.parameters():
            reach = 1.0 if parameter.dim() > 1 else 3.0
            parameter.data.copy_(ramp(*parameter.shape, low=-reach, high=1.3 * reach))
        self.conv.weight.data[1] *= 0.1
        self.head.weight.data[2] = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.add(self.conv(x), self.other(x)))
        return self.head(torch.max_pool2d(x, 2, 1).flatten(1))


def fine() -> nn.Module:
    """A layer whose output is so fine that one unit of its sum is a code."""
    layer = NpuLinear(4, 3)
    layer.x_exponent.fill_(0)
    layer.set_mode("quant")
    layer.weight.data.copy_(ramp(3, 4))
    layer.bias.data.copy_(torch.tensor([0.123, -0.345, 0.234]))
    return nn.Sequential(layer)


def wide() -> nn.Module:
    """A layer whose sums float32 does not count exactly."""
    layer = NpuLinear(3000, 2)
    layer.set_mode("quant")
    layer.weight.data.copy_(ramp(2, 3000, low=0.2))
    layer.y_exponent.fill_(-4)
    return nn.Sequential(layer)


CASES = {
    "small": Case(Small, (ramp(6, 2, 7, 8, low=-5.0, high=5.0, step=1 / 64),)),
    "fine": Case(fine, (ramp(20, 4, low=-1.4, high=1.4),)),
    "wide": Case(wide, (ramp(4, 3000, low=-0.2),)),
}
_A, _L = "chipfit.chips.example.arithmetic:", "chipfit.chips.example.layers:"
# fmt: off
MUTANTS = [
    Mutant("weight negated", f"{_A}weighted_sum", "(weight / scales", "(-weight / scales", "small"),
    Mutant("weight rounded down", f"{_A}weighted_sum", "w = rounded((", "w = torch.floor((", "small"),
    Mutant("lowest weight", f"{_A}weighted_sum", ".clamp(-LARGEST_WEIGHT,", ".clamp(1 - LARGEST_WEIGHT,", "small"),
    Mutant("highest weight", f"{_A}weighted_sum", " LARGEST_WEIGHT)", " LARGEST_WEIGHT - 1)", "small"),
    Mutant("one scale for all channels", f"{_A}weight_scales", ".amax(1)", ".amax().repeat(len(weight))", "small"),
    Mutant("scale of the mean", f"{_A}weight_scales", ".amax(1)", ".mean(1)", "small"),
    Mutant("128 codes a side", f"{_A}weight_scales", "/ LARGEST_WEIGHT", "/ (LARGEST_WEIGHT + 1)", "small"),
    Mutant("input at the output's grid", f"{_A}weighted_sum", "activation_codes(x, x_exponent)", "activation_codes(x, y_exponent)", "small"),
    Mutant("input negated", f"{_A}weighted_sum", "activation_codes(x, x_exponent)", "activation_codes(-x, x_exponent)", "small"),
    Mutant("codes rounded down", f"{_A}activation_codes", "rounded(", "torch.floor(", "small"),
    Mutant("codes to -127", f"{_A}activation_codes", "clamp(LOWEST,", "clamp(LOWEST + 1,", "small"),
    Mutant("codes to 126", f"{_A}activation_codes", "HIGHEST)", "HIGHEST - 1)", "small"),
    Mutant("codes at twice the scale", f"{_A}activation_codes", "2.0**exponent", "2.0 ** (exponent + 1)", "small"),
    Mutant("no bias", f"{_A}weighted_sum", "if bias is not None", "if False", "small"),
    Mutant("bias subtracted", f"{_A}weighted_sum", "total + rounded(", "total - rounded(", "small"),
    Mutant("bias cut", f"{_A}weighted_sum", "total + rounded(", "total + torch.trunc(", "fine"),
    Mutant("bias at the output's grid", f"{_A}weighted_sum", "bias.double() * 2.0**x_exponent", "bias.double() * 2.0**y_exponent", "small"),
    Mutant("multiplier cut", f"{_A}weighted_sum", "multiplier = half_even(", "multiplier = torch.trunc(", "small"),
    Mutant("multiplier not rounded", f"{_A}weighted_sum", "multiplier = half_even(", "multiplier = (", "small"),
    Mutant("multiplier of the other sign of shift", f"{_A}weighted_sum", "y_exponent - x_exponent", "x_exponent - y_exponent", "small"),
    Mutant("output cut", f"{_A}weighted_sum", "code = rounded(", "code = torch.trunc(", "small"),
    Mutant("output unsigned", f"{_A}weighted_sum", ".clamp(LOWEST, HIGHEST))", ".clamp(0, HIGHEST))", "small"),
    Mutant("output to 126", f"{_A}weighted_sum", ".clamp(LOWEST, HIGHEST))", ".clamp(LOWEST, HIGHEST - 1))", "small"),
    Mutant("difference", f"{_A}sum_of_two", "first + second", "first - second", "small"),
    Mutant("operands at each other's grid", f"{_A}sum_of_two", "zip((a, b), exponents", "zip((b, a), exponents", "small"),
    Mutant("operand left off its grid", f"{_A}sum_of_two", "first + second", "first + b", "small"),
    Mutant("border of one", f"{_L}NpuConv2d._map", "F.conv2d(x, w, None, self.stride, self.padding,", "F.conv2d(F.pad(x, (0, 0, 1, 1), value=1.0), w, None, self.stride, 0,", "small"),
    Mutant("kernel turned over", f"{_L}NpuConv2d._map", "(x, w,", "(x, w.flip(-1),", "small"),
]
# fmt: on


class TestExample(Battery):
    chip = "example"
    networks = (Plain(Residual, (3, 8, 8), 25.0), Plain(dense, (12,), 25.0))
    cases, mutants = CASES, MUTANTS

"""The layers: torch's own, which compute in float or as the NPU does, and a sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.example.arithmetic import sum_of_two, weighted_sum
from chipfit.errors import UnknownOptionError, nearest

MODES = ("float", "quant", "nat")


class NpuLayer(nn.Module):
    """What every layer has: a mode, a name, and an exponent for each of its tensors, which the state_dict carries."""

    tensors: tuple[str, ...] = ("x", "y")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mode, self.layer_name = "float", ""
        for name in self.tensors:
            self.register_buffer(f"{name}_exponent", torch.tensor(7))

    def exponents(self) -> tuple[int, ...]:
        """Exponents of its grids: of its inputs, then of its output."""
        return tuple(int(getattr(self, f"{name}_exponent")) for name in self.tensors)

    def set_mode(self, mode: str, level: float | None = None) -> None:
        """Choose what the layer computes; a digital chip has no noise, so that 'nat' is 'quant'."""
        if mode not in MODES:
            where, hint = self.layer_name or None, nearest(mode, MODES)
            raise UnknownOptionError("unknown mode", given=mode, allowed=", ".join(MODES), where=where, hint=hint)
        self.mode = mode

    def freeze_scales(self, frozen: bool = True) -> None:
        """Nothing: training never changes the exponents."""


class NpuLinear(NpuLayer, nn.Linear):
    """`nn.Linear` on the NPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer."""
        if self.mode == "float":
            return super().forward(input)
        return weighted_sum(input, self.weight, self.bias, self.exponents(), F.linear)


class NpuConv2d(NpuLayer, nn.Conv2d):
    """`nn.Conv2d` with zeros at its border, of any groups, on the NPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer."""
        if self.mode == "float":
            return super().forward(input)
        return weighted_sum(input, self.weight, self.bias, self.exponents(), self._map, -3)

    def _map(self, x: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(x, w, None, self.stride, self.padding, self.dilation, self.groups)


class NpuAdd(NpuLayer):
    """The sum of two features."""

    tensors = ("x1", "x2", "y")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the sum."""
        return a + b if self.mode == "float" else sum_of_two(a, b, self.exponents())

"""The layers: torch's own, which compute in float or as the NPU does; `x_exponent` and `y_exponent` are their grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.example.arithmetic import sum_of_two, weighted_sum
from chipfit.errors import UnknownOptionError, nearest

MODES = ("float", "quant", "nat")


class NpuLayer(nn.Module):
    """What every layer has: a mode, a name, and exponents that the state_dict carries."""

    tensors: tuple[str, ...] = ("x", "y")
    mode: str
    layer_name: str

    def prepare(self) -> None:
        """Give a layer its state, once torch's class has made it."""
        self.mode, self.layer_name = "float", ""
        for name in self.tensors:
            self.register_buffer(f"{name}_exponent", torch.tensor(7))

    def exponent(self, name: str) -> int:
        """Exponent of a tensor's grid."""
        return int(getattr(self, f"{name}_exponent"))

    def set_mode(self, mode: str, level: float | None = None) -> None:
        """Choose what the layer computes; a digital chip has no noise, so that 'nat' is 'quant'."""
        if mode not in MODES:
            raise UnknownOptionError(
                "unknown mode",
                given=mode,
                allowed=", ".join(MODES),
                where=self.layer_name or None,
                hint=nearest(mode, MODES),
            )
        self.mode = mode

    def freeze_scales(self, frozen: bool = True) -> None:
        """Nothing: training never changes the exponents."""


class NpuLinear(NpuLayer, nn.Linear):
    """`nn.Linear` on the NPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare()

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer."""
        if self.mode == "float":
            return super().forward(input)
        grids = self.exponent("x"), self.exponent("y")
        return weighted_sum(input, self.weight, self.bias, grids, F.linear, -1)


class NpuConv2d(NpuLayer, nn.Conv2d):
    """`nn.Conv2d` with zeros at its border, of any groups, on the NPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prepare()

    def forward(self, input: Tensor) -> Tensor:
        """Compute the layer."""
        if self.mode == "float":
            return super().forward(input)

        def linear_map(x: Tensor, w: Tensor) -> Tensor:
            return F.conv2d(x, w, None, self.stride, self.padding, self.dilation, self.groups)

        grids = self.exponent("x"), self.exponent("y")
        return weighted_sum(input, self.weight, self.bias, grids, linear_map, 1)


class NpuAdd(NpuLayer):
    """The sum of two features."""

    tensors = ("y",)

    def __init__(self) -> None:
        super().__init__()
        self.prepare()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the sum."""
        return a + b if self.mode == "float" else sum_of_two(a, b, self.exponent("y"))

"""What the NPU makes of a plain network's operations."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from chipfit.chips.example.layers import NpuAdd, NpuConv2d, NpuLinear
from chipfit.convert.windows import weighs_equally, windows_of
from chipfit.convert.words import Mapped, Operation, Seen, on_cpu
from chipfit.hardware import Chip

_STAYS = {
    *("relu", "max_pool", "dropout", "identity", "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute"),
    *("transpose", "contiguous"),
}
"""Kinds for which torch's own operation stays: on codes it is what the NPU does."""
_LINEAR = ("in_features", "out_features")
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def map_operation(operation: Operation, chip: Chip) -> Mapped:
    """What the chip makes of an operation.

    Example:
        >>> from chipfit.vendor import chip
        >>> x = Seen((1, 4))
        >>> map_operation(Operation("act", "gelu", (x,), x, (False,)), chip("example")).reason
        'the NPU has no such gelu'
    """
    old: Any = operation.module
    if operation.kind == "linear" and old is not None:
        return Mapped("NpuLinear", "npu", lambda: _made(NpuLinear, old, _LINEAR))
    if operation.kind == "conv2d" and old is not None and old.padding_mode == "zeros":
        return Mapped("NpuConv2d", "npu", lambda: _made(NpuConv2d, old, _CONV))
    if operation.kind == "add" and all(isinstance(x, Seen) for x in operation.inputs) and not operation.options:
        return Mapped("NpuAdd", "npu", NpuAdd)
    if operation.kind in _STAYS:
        return Mapped(operation.kind, "npu")
    if operation.kind in ("avg_pool", "adaptive_avg_pool", "mean"):
        return _average(operation)
    return on_cpu(f"the NPU has no such {operation.kind}", "Leave it to the code that reads the outputs.")


def _made(kind: Any, old: Any, arguments: tuple[str, ...]) -> nn.Module:
    """The NPU's layer in place of torch's, with its very parameters."""
    new: nn.Module = kind(**{name: getattr(old, name) for name in arguments})
    new.weight, new.bias = old.weight, old.bias
    return new


def _average(operation: Operation) -> Mapped:
    """An average of a power of two of values is a sum and a shift; any other leaves every grid."""
    values = prod(operation.shape) // max(prod(operation.output.shape), 1)
    if operation.kind != "mean":
        windows = windows_of(operation)
        values = prod(windows.kernel) if windows and weighs_equally(operation, windows) else 0
    if values & (values - 1) or not values:
        return on_cpu("an average over windows that are no power of two of values", "Average 4, 16 or 64 values.")
    return Mapped("AveragePool", "npu")

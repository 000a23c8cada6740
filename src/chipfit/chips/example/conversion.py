"""What the NPU makes of a plain network's operations."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipfit.chips.example.layers import NpuAdd, NpuConv2d, NpuLinear
from chipfit.convert.words import Mapped, Operation, Seen, on_cpu
from chipfit.hardware import Chip

_STAYS = {
    *("relu", "max_pool", "dropout", "identity", "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute"),
    *("transpose", "contiguous"),
}
"""Kinds for which torch's own operation stays: on codes it is what the NPU does."""


def map_operation(operation: Operation, chip: Chip) -> Mapped:
    """What the chip makes of an operation.

    Example:
        >>> from chipfit.chips.example.chip import EXAMPLE
        >>> x = Seen((1, 4))
        >>> map_operation(Operation("act", "gelu", (x,), x, (False,)), EXAMPLE).reason
        'the NPU has no gelu'
    """
    old: Any = operation.module
    if operation.kind == "linear" and old is not None:
        return Mapped("NpuLinear", "npu", lambda: _taking(NpuLinear(old.in_features, old.out_features), old))
    if operation.kind == "conv2d" and old is not None and old.padding_mode == "zeros":
        return Mapped("NpuConv2d", "npu", lambda: _taking(_conv(old), old))
    if operation.kind == "add" and all(isinstance(x, Seen) for x in operation.inputs) and not operation.options:
        return Mapped("NpuAdd", "npu", NpuAdd)
    if operation.kind in _STAYS:
        return Mapped(operation.kind, "npu")
    if operation.kind in ("avg_pool", "adaptive_avg_pool", "mean"):
        return _average(operation)
    return on_cpu(f"the NPU has no {operation.kind}", "Leave it to the code that reads the outputs.")


def _conv(old: Any) -> NpuConv2d:
    options = {name: getattr(old, name) for name in ("stride", "padding", "dilation", "groups")}
    return NpuConv2d(old.in_channels, old.out_channels, old.kernel_size, **options)


def _taking(new: nn.Module, old: nn.Module) -> nn.Module:
    """The new layer with the very parameters of the old one."""
    for name in ("weight", "bias"):
        setattr(new, name, getattr(old, name))
    return new


def _average(operation: Operation) -> Mapped:
    """An average of a power of two of values is a sum and a shift; any other leaves every grid."""
    before, after = operation.shape, operation.output.shape
    values = _count(before) // max(_count(after), 1)
    if values & (values - 1):
        return on_cpu(f"an average of {values} values", "Average over 4, 16 or 64 values.")
    return Mapped("AveragePool", "npu")


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product

"""Conversion to the analog array: which layer takes the place of torch's, and whether it fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from chipfit.chips.witmem.array.conv import WitinConv1d, WitinConv2d, WitinConvTranspose2d
from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType, TargetPlatform
from chipfit.chips.witmem.config.options import OPTIONS
from chipfit.chips.witmem.gru.layers import WitinGru, WitinGruCell
from chipfit.chips.witmem.gru.lstm import Lstm
from chipfit.convert.words import Mapped, Operation, on_cpu
from chipfit.hardware import Chip

SIGNED: dict[str, Any] = {"handle_neg_in": HandleNegInType.PN}
"""Options of an array layer whose input may be negative."""


def configure(**options: Any) -> WitinLayerConfig:
    """A layer's configuration with the silicon's rounding, whatever the global configuration holds.

    Example:
        >>> configure(x_quant_bits=9).rounding
        'wtm2101'
    """
    defaults = {name: option.default for name, option in OPTIONS.items() if name != "conv2d_split_N"}
    own = {"rounding": "wtm2101", "target_platform": TargetPlatform.WTM2101}
    return WitinLayerConfig(1, **(defaults | own | options))


def _on_array(
    operation: Operation, chip: Chip, layer: Callable[[dict[str, Any]], nn.Module], rows: int, columns: int
) -> Mapped:
    unsigned = operation.nonnegative[0]
    if isinstance(operation.module, (nn.Conv1d, nn.Conv2d)) and unsigned:
        options: dict[str, Any] = {"x_quant_bits": 9}  # a signed 9-bit code without sign is the array's unsigned 8 bits
    else:
        options = {} if unsigned else SIGNED
    rows *= 1 if unsigned else 2
    problems, suggestions = fits(rows, columns, chip, not unsigned)

    def build() -> nn.Module:
        new = layer(options)
        take_parameters(new, operation.module)
        return new

    name = {"linear": "WitinLinear", "conv1d": "WitinConv1d", "conv2d": "WitinConv2d"}
    operator = name.get(operation.kind, "WitinConvTranspose2d")
    return Mapped(operator, "array", build, "", problems, suggestions, rows, columns)


def fits(rows: int, columns: int, chip: Chip, doubled: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Limits of the array that an operation breaks, and what to do about each."""
    problems, suggestions = [], []
    if chip.array and rows > chip.array.rows_per_pass:
        parts = -(-rows // chip.array.rows_per_pass)
        problems.append(f"{rows} rows, at most {chip.array.rows_per_pass} an operation")
        how = f"Split the inputs in {'two' if parts == 2 else f'{parts} parts'} and add the results"
        suggestions.append(how + (", or put a ReLU before it: signed input doubles the rows." if doubled else "."))
    if chip.array and columns > chip.array.columns:
        problems.append(f"{columns} columns, at most {chip.array.columns} side by side")
        suggestions.append(
            f"It runs as {-(-columns // chip.array.columns)} blocks of columns; fewer outputs are faster."
        )
    return tuple(problems), tuple(suggestions)


def take_parameters(new: nn.Module, old: nn.Module | None) -> None:
    """Give a layer the very parameters and buffers of the one whose place it takes."""
    if old is None:
        return
    for name, parameter in old.named_parameters(recurse=False):
        setattr(new, name, parameter)
    for name, buffer in old.named_buffers(recurse=False):
        setattr(new, name, buffer)


def linear(operation: Operation, chip: Chip) -> Mapped:
    """Linear."""
    old: Any = operation.module

    def layer(options: dict[str, Any]) -> nn.Module:
        return WitinLinear(old.in_features, old.out_features, old.bias is not None, configure(**options))

    return _on_array(operation, chip, layer, old.in_features, old.out_features)


def conv(operation: Operation, chip: Chip) -> Mapped:
    """Conv1d and Conv2d, of any groups."""
    old: Any = operation.module
    kind: Any = WitinConv1d if operation.kind == "conv1d" else WitinConv2d

    def layer(options: dict[str, Any]) -> nn.Module:
        new: nn.Module = kind(
            old.in_channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            old.padding_mode,
            old.dilation,
            old.groups,
            old.bias is not None,
            configure(**options),
        )
        return new

    rows = old.in_channels // old.groups * math.prod(old.kernel_size)
    return _on_array(operation, chip, layer, rows, old.out_channels)


def conv_transpose(operation: Operation, chip: Chip) -> Mapped:
    """ConvTranspose2d, of one group."""
    old: Any = operation.module
    if old.groups != 1:
        return on_cpu("a transposed convolution with groups", "Use groups=1, or NearestUpsample and a grouped Conv2d.")

    def layer(options: dict[str, Any]) -> nn.Module:
        sizes = (old.kernel_size, old.stride, old.padding, old.output_padding, 1)
        config = configure(**options)
        return WitinConvTranspose2d(
            old.in_channels, old.out_channels, *sizes, old.bias is not None, old.dilation, layer_config=config
        )

    return _on_array(operation, chip, layer, old.in_channels * math.prod(old.kernel_size), old.out_channels)


def _recurrent_rows(old: Any, unsigned: bool) -> int:
    """Rows of the tallest array operation of a recurrent layer: states are signed, and so is what later layers read."""
    inputs, hidden = int(old.input_size), int(old.hidden_size)
    directions = 2 if getattr(old, "bidirectional", False) else 1
    later = 2 * directions * hidden if getattr(old, "num_layers", 1) > 1 else 0
    return max(inputs * (1 if unsigned else 2), 2 * hidden, later)


def recurrent(operation: Operation, chip: Chip) -> Mapped:
    """GRU and GRUCell."""
    old: Any = operation.module
    kind: Any = WitinGruCell if operation.kind == "gru_cell" else WitinGru

    def build() -> nn.Module:
        options = {} if operation.nonnegative[0] else SIGNED
        shared = (old.input_size, old.hidden_size)
        if kind is WitinGru:
            rest = (old.num_layers, old.bias, old.batch_first, old.dropout, old.bidirectional)
            new: nn.Module = kind(*shared, *rest, layer_config=configure(**options))
        else:
            new = kind(*shared, old.bias, layer_config=configure(**options))
        take_parameters(new, old)
        return new

    rows = _recurrent_rows(old, operation.nonnegative[0])
    problems, suggestions = fits(rows, 3 * old.hidden_size, chip, False)
    return Mapped(kind.__name__, "array", build, "", problems, suggestions, rows, 3 * old.hidden_size)


def lstm(operation: Operation, chip: Chip) -> Mapped:
    """LSTM, from zero states."""
    old: Any = operation.module
    if old.proj_size or len(operation.shape) != 3 or len(operation.inputs) > 1:
        return on_cpu("an LSTM with projection, given states or unbatched input", "Start it from zero states.")
    options = {} if operation.nonnegative[0] else SIGNED
    rows = _recurrent_rows(old, operation.nonnegative[0])
    operator = "WitinLinear, WitinSigmoid, WitinTanh, WitinElementMul, WitinElementAdd"

    def build() -> nn.Module:
        return Lstm(old, configure, options, SIGNED)

    problems, suggestions = fits(rows, 4 * old.hidden_size, chip, False)
    return Mapped(operator, "array", build, "", problems, suggestions, rows, 4 * old.hidden_size, reads=1)

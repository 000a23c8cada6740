"""What the Ingenic targets make of torch's operations (spec/ingenic.md, section 3).

Operators with weights are in `conversion_weights`; here are the others, and what the targets have beyond a table of
operators: features instead of tensors, with activations and batch norms inside the operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from chipfit.chips.ingenic.conversion import pools, weights
from chipfit.chips.ingenic.conversion.parts import (
    channel_limits,
    device_of,
    is_absorbed,
    npu,
    per_channel,
    relaxed,
)
from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor
from chipfit.chips.ingenic.operators.elementwise import Max, Mul, Shortcut
from chipfit.chips.ingenic.operators.movement import Channel_Split, Flatten, Focus, Pixel_Shuffle, Preprocess, Route
from chipfit.chips.ingenic.operators.recurrent import LSTM
from chipfit.chips.ingenic.state import keep_scales
from chipfit.convert.preparing import AS_IT_IS, Preparation
from chipfit.convert.words import FeatureOut, FeatureRules, Mapped, Operation, Seen, Shape, on_cpu
from chipfit.errors import InvalidValueError
from chipfit.hardware import Chip

_INSTEAD = {
    **dict.fromkeys(("silu", "gelu"), "Hswish instead, torch's Hardswish"),
    **dict.fromkeys(("sigmoid", "tanh"), "Hsigmoid instead, torch's Hardsigmoid"),
    **dict.fromkeys(("hardtanh", "clamp"), "ReLU6 instead"),
}
_RESHAPES = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"}
_SAME = {"contiguous", "clone", "detach", "dropout", "identity", "float"}
_MOVES = {"transpose", "permute", "swapaxes", "movedim", "t", "flip", "getitem", "select", "narrow", "channel_shuffle"}
_TABLES = {
    *("sigmoid", "tanh", "silu", "gelu", "hardtanh", "clamp", "leaky_relu", "hardsigmoid", "hardswish", "sqrt", "abs"),
    *("exp", "elu", "selu", "celu", "mish", "softplus", "softsign", "logsigmoid", "log_sigmoid", "square"),
    *("pow", "rsqrt", "reciprocal", "log", "sin", "cos", "erf"),
}
"""Functions of each value by itself: of codes, they are tables."""
_ALIKE = frozenset({"sign", "unit"})


def map_operation(operation: Operation, chip: Chip) -> Mapped:
    """What a target makes of an operation.

    Args:
        operation: One operation of the user's network.
        chip: An Ingenic target.

    Returns:
        The operator, the limits that it breaks, and what builds it.

    Example:
        >>> from chipfit.vendor import chip
        >>> x = Seen((1, 48, 8, 8))
        >>> conv = Operation("c", "conv2d", (x,), x, (True,), {}, nn.Conv2d(48, 64, 3, padding=1))
        >>> map_operation(conv, chip("t40")).suggestions
        ('Pad the 48 input channels to 64.',)
    """
    device, kind = device_of(chip), operation.kind
    if kind in _RULES and (device.family != "T02" or kind in _ON_T02):
        return _RULES[kind](operation, device)
    if kind in _SAME:
        return npu("none in evaluation", [], form="kept", passes=True)
    if kind in _RESHAPES:
        return _reshape(operation, device)
    if kind in _MOVES:
        return _move(operation, device)
    return _looked_up(kind, device)


def _looked_up(kind: str, device: Device) -> Mapped:
    """What the chip has not: of codes, a function of each value by itself is a table on the CPU core."""
    mapped = on_cpu(f"{device.name} has no {kind}", f"Use {_INSTEAD[kind]}." if kind in _INSTEAD else "")
    return replace(mapped, feature=FeatureOut("table", passes=True)) if kind in _TABLES else mapped


def _move(operation: Operation, device: Device) -> Mapped:
    """Codes that the CPU core moves, and that stay codes."""
    mapped = on_cpu(f"{device.name} has no {operation.kind}: values are moved")
    alone = len(operation.inputs) == 1 and operation.output.batched and len(operation.output.shape) > 1
    return replace(mapped, feature=FeatureOut("kept", passes=True)) if alone else mapped


def _reshape(operation: Operation, device: Device) -> Mapped:
    before, after = operation.shape, operation.output.shape
    if not operation.output.batched or before[0] != after[0] or len(operation.inputs) > 1:
        return on_cpu("Flatten leaves the batch alone", "Keep the batch in dimension 0.")
    return npu("Flatten", [], lambda: Flatten([-1, *after[1:]], device.name), form="kept", passes=True)


def _activation(operation: Operation, device: Device) -> Mapped:
    """An activation that is not inside an operator: ReLU of a sum, for instance."""
    kind = operation.kind
    if not is_absorbed(operation, device):
        return _looked_up(kind, device)
    if operation.nonnegative[0] and kind in ("relu", "leaky_relu"):
        return npu("none", [], form="kept", passes=True)
    return per_channel(replace(operation, activation=operation), device)


def _add(operation: Operation, device: Device) -> Mapped:
    number = next((x for x in operation.inputs if isinstance(x, (int, float))), None)
    if number is not None and len(operation.inputs) == 2:
        return per_channel(operation, device, 1.0, float(number) * operation.options.get("alpha", 1))
    shapes = [x.shape for x in operation.inputs if isinstance(x, Seen)]
    if operation.options.get("alpha", 1) != 1 or len(shapes) != 2 or shapes[0] != shapes[1]:
        return on_cpu("Shortcut adds two features of one shape", "Give both the same shape.")
    channels, bits = shapes[0][1] if len(shapes[0]) > 1 else 1, operation.bits

    def build() -> nn.Module:
        widths: dict[str, Any] = {"input_bitwidth": bits, "output_bitwidth": bits}
        return Shortcut(channels, quantize=True, **widths, target_device=device.name)

    return npu("Shortcut", [], build, form="sum", joins=True, alike=frozenset({"unit"}))


def _sub(operation: Operation, device: Device) -> Mapped:
    """A difference with a number; one of two features came as a sum, see `chipfit.convert.patterns`."""
    operands, alpha = operation.inputs, operation.options.get("alpha", 1)
    first, second = operands[::-1] if operation.kind == "rsub" else operands
    if isinstance(second, (int, float)):
        return per_channel(operation, device, 1.0, -float(second) * alpha)
    if isinstance(first, (int, float)):
        return per_channel(operation, device, -float(alpha), float(first))
    return on_cpu("Shortcut adds two features of one shape", "Give both the same shape.")


def _mul(operation: Operation, device: Device) -> Mapped:
    number = next((x for x in operation.inputs if isinstance(x, (int, float))), None)
    if number is not None and len(operation.inputs) == 2:
        return per_channel(operation, device, float(number))
    channels, bits = operation.output.shape[1], operation.bits

    def build() -> nn.Module:
        widths: dict[str, Any] = {"input_bitwidth": bits, "output_bitwidth": bits}
        return Mul(channels, quantize=True, **widths, target_device=relaxed(device))

    return npu("Mul", channel_limits(channels, device, ""), build, form="kept", joins=True)


def _div(operation: Operation, device: Device) -> Mapped:
    divisor = operation.inputs[1] if len(operation.inputs) > 1 else None
    whole = not isinstance(operation.inputs[0], Seen) or operation.options.get("rounding_mode")
    if not isinstance(divisor, (int, float)) or not divisor or whole:
        mapped = on_cpu(f"{device.name} divides by numbers only", "Multiply instead.")
        return replace(mapped, feature=FeatureOut("table", passes=True))  # of two functions of one feature, it is one
    return per_channel(operation, device, 1.0 / divisor)


def _maximum(operation: Operation, device: Device) -> Mapped:
    shapes = {x.shape if isinstance(x, Seen) else () for x in operation.inputs}
    if len(shapes) != 1 or len(operation.inputs) != 2:
        return on_cpu("Max compares two features of one shape", "Give both the same shape.")
    return npu("Max", [], lambda: Max(device.name), form="kept", joins=True, alike=_ALIKE)


def _cat(operation: Operation, device: Device) -> Mapped:
    if operation.options.get("dim", 0) % len(operation.shape) != 1:
        return on_cpu("Route joins channels only", "Join along dimension 1.")
    if device.family == "T02" and len(operation.inputs) > 8:
        return on_cpu(f"{len(operation.inputs)} inputs of Route, at most 8", "Join them in two steps.")
    if device.family == "T02" and len(set(operation.nonnegative)) > 1:
        return on_cpu("Route joins features of one sign on T02", "Put a ReLU before all of them, or before none.")
    return npu("Route", [], lambda: Route(device.name), form="kept", joins=True, alike=frozenset({"sign"}))


def _pixel_shuffle(operation: Operation, device: Device) -> Mapped:
    if device.family != "T40F" or operation.options.get("upscale_factor") != 2:
        return on_cpu("Pixel_Shuffle exists on the T40 family, with factor 2", "Use nearest upsampling and a Conv2d.")
    if operation.output.shape[1] % device.channel_multiple:
        return on_cpu(*channel_limits(operation.output.shape[1], device, "output ")[0])
    return npu("Pixel_Shuffle", [], lambda: Pixel_Shuffle(2, device.name), form="kept")


def _split(operation: Operation, device: Device) -> Mapped:
    if operation.options.get("dim", 0) % len(operation.shape) != 1:
        return on_cpu("Channel_Split splits channels only", "Split along dimension 1.")
    channels, options = operation.shape[1], operation.options
    if operation.kind == "chunk":
        size: Any = -(-channels // options["chunks"])
    else:
        size = options["split_size_or_sections"]
    if isinstance(size, int):
        size = [min(size, channels - start) for start in range(0, channels, size)]
    parts = list(size)
    return npu("Channel_Split", [], lambda: Channel_Split(parts, device.name), form="kept", several=True)


def _pad(operation: Operation, device: Device) -> Mapped:
    options, beyond = operation.options, 2 * (len(operation.shape) - 2)
    sides = options.get("pad")
    constant = options.get("mode", "constant") == "constant"
    if not constant or (options.get("value") or 0) != 0 or not isinstance(sides, (tuple, list)):
        return on_cpu("borders of anything but zeros", "Give the padding to the convolution that follows.")
    if device.family == "T02" or len(sides) > beyond:
        return on_cpu("a border of batch or channels, or on T02", "Give the padding to the convolution that follows.")
    return npu("Pad", [], lambda: PadFeature(tuple(sides), target_device=device.name), form="kept")


def _lstm(operation: Operation, device: Device) -> Mapped:
    old: Any = operation.module
    if not operation.approximate:
        return on_cpu(
            "the chip's gates are hard_sigmoid and a rational tanh, not torch's",
            "Convert with approximate=True, and fine-tune.",
        )
    many = old.num_layers > 1 and (device.family == "T40F" or old.bidirectional)
    if old.proj_size or not old.batch_first or len(operation.inputs) > 1 or len(operation.shape) != 3 or many:
        return on_cpu(
            "the chip's LSTM has one layer on the T40 family, no projection, the batch first, and starts by itself",
            "Write one LSTM a layer, with batch_first=True.",
        )
    limits = [("its gates are hard_sigmoid and a rational tanh, not torch's", "Fine-tune.")]
    if device.family == "T40F":
        limits.append(("it starts from -1, not from 0", "Fine-tune."))

    def build() -> nn.Module:
        new = LSTM(
            *(old.input_size, old.hidden_size, old.num_layers, old.bias, old.bidirectional),
            quantize=True,
            weight_bitwidth=operation.weight_bits,
            input_bitwidth=operation.bits,
            output_bitwidth=operation.bits,
            clip_max_value=1.0,
            target_device=device.name,
        )
        new.QuantizeWeight.converted = True
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                kind, suffix = name.split("_", 1)
                parts = [getattr(old, f"{kind}_{part}_{suffix}") for part in ("ih", "hh")]
                parameter.copy_(torch.cat(parts, 1) if kind == "weight" else parts[0] + parts[1])
        return new

    return npu("LSTM", limits, build, signed=True, several=True)


def _embedding(operation: Operation, device: Device) -> Mapped:
    return on_cpu("the chip's Embedding cuts negative vectors to 0", "Look rows up on the CPU core.")


_RULES: dict[str, Callable[[Operation, Device], Mapped]] = {
    **weights.RULES,
    **dict.fromkeys(
        ("relu", "relu6", "leaky_relu", "prelu", "hardsigmoid", "hardswish", "clamp", "hardtanh"), _activation
    ),
    "add": _add,
    **dict.fromkeys(("sub", "rsub"), _sub),
    "mul": _mul,
    "div": _div,
    "neg": lambda operation, device: per_channel(operation, device, -1.0),
    "maximum": _maximum,
    "cat": _cat,
    "mean": pools.mean,
    "focus": lambda operation, device: npu("Focus", [], lambda: Focus(device.name), form="kept"),
    **dict.fromkeys(("avg_pool", "adaptive_avg_pool"), pools.average),
    **dict.fromkeys(("max_pool", "adaptive_max_pool"), pools.max_pool),
    "upsample": pools.upsample,
    "pixel_shuffle": _pixel_shuffle,
    **dict.fromkeys(("chunk", "split"), _split),
    "pad": _pad,
    "lstm": _lstm,
    "embedding": _embedding,
}
"""Rules by kind of operation."""
_ON_T02 = {
    *("conv2d", "linear", "cat", "avg_pool", "adaptive_avg_pool", "mean", "max_pool", "upsample", "lstm", "relu"),
    *("batch_norm", "relu6", "clamp", "hardtanh", "embedding", "conv1d", "conv_transpose2d"),
}


def absorbs(activation: Operation, chip: Chip) -> bool:
    """Whether a target has an activation inside the operator before it."""
    return is_absorbed(activation, device_of(chip))


def image(seen: Seen, signed: bool, chip: Chip, how: Preparation = AS_IT_IS) -> nn.Module:
    """What prepares an input of the network for a layer with `first_layer=True`.

    Args:
        seen: The input on the example. An image has four dimensions, and values of 0 to 255, these over 255, or these
            minus 128 over 128.
        signed: Whether it has negative values.
        chip: The target.
        how: How the network normalises it, which becomes part of the quantiser.

    Returns:
        `Preprocess` for an image, a quantiser for anything else.

    Example:
        >>> from chipfit.vendor import chip
        >>> image(Seen((1, 3, 8, 8), 0.0, 1.0, 0.0, True, 1.0, 255), False, chip("t40")).var
        255.0
        >>> image(Seen((1, 3, 8, 8), -2.1, 2.6), True, chip("t40")).tags
        (8, 128.0, 128.0, -1.0)
    """
    device = device_of(chip)
    if len(seen.shape) == 4 and how.gain is None:
        if seen.steps == 1 and seen.lowest >= 0 and 1 < seen.highest <= 255:
            return Preprocess(0.0, 1.0, device.name)
        if seen.steps in (1, 255) and seen.lowest >= 0 and 0 < seen.highest <= 1:
            return Preprocess(0.0, 255.0, device.name)
        if seen.steps == 128 and -1 <= seen.lowest < 0 and seen.highest <= 127 / 128:
            return Preprocess(128.0, 128.0, device.name)
    entered = ToFeature(8, signed, image=True, target_device=device.name)
    if how.gain is not None and how.bias is not None:
        entered.normalise(how.gain, how.bias)
    return entered


def enter(seen: Seen, source: str, signed: bool, bits: int, chip: Chip) -> nn.Module:
    """From a tensor to a feature."""
    gate = source in ("sigmoid", "softmax", "hardsigmoid")
    return ToFeature(bits, signed, gate=gate, target_device=device_of(chip).name)


def leave(seen: Seen, chip: Chip) -> nn.Module:
    """From a feature to a tensor."""
    return ToTensor(seen.shape[1] if len(seen.shape) > 1 else 1, device_of(chip).name)


def requantise(shape: Shape, signed: bool, bits: int, chip: Chip) -> nn.Module:
    """A feature with a sign and a range of its own: a depthwise convolution with ones."""
    seen = Seen(shape)
    relu = Operation("", "relu", (seen,), seen, (False,))
    one = Operation("", "identity", (seen,), seen, (False,), activation=None if signed else relu, bits=bits)
    build = per_channel(one, device_of(chip)).build
    if build is None:
        raise InvalidValueError("T02 cannot change a feature's sign", given=shape, where="convert")
    return build()


def check_bits(bits: int, what: str, chip: Chip) -> None:
    """Refuse a width that the target has not."""
    if bits not in chip.weight_bits:
        raise InvalidValueError(
            "no such bit width",
            given=bits,
            allowed=f"{chip.weight_bits[0]} to {chip.weight_bits[-1]} on {chip.name}",
            where=f"convert({what}=)",
        )


def sums_are_fixed(chip: Chip) -> bool:
    """On Txx, Xs1 and Xs2 a Shortcut averages."""
    return device_of(chip).family == "TXX"


STAND_INS = {"silu": "hardswish", "gelu": "hardswish", "sigmoid": "hardsigmoid"}
"""The chip's nearest activations, which a conversion may take that is allowed to differ."""
FEATURES = FeatureRules(
    absorbs,
    weights.keeps_norm,
    image,
    enter,
    leave,
    requantise,
    check_bits,
    sums_are_fixed,
    STAND_INS,
    keep_scales,
)
"""What the converter needs to know of features."""

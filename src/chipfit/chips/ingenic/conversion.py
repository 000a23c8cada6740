"""Which operator of an Ingenic target stands for which of torch's, within which limits (spec/ingenic.md, section 3).

The rules describe; they do not build layers yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from chipfit.chips.chip import Chip
from chipfit.chips.conversion import Mapped, Operation, on_cpu
from chipfit.chips.ingenic.devices import DEVICES, Device

DESCRIBES_ONLY = True
"""`chipfit.check` can use these rules, `chipfit.convert` cannot."""

_INSIDE = {
    **{"relu": "ReLU", "relu6": "ReLU6", "leaky_relu": "LeakyReLU", "prelu": "PReLU"},
    **{"hardsigmoid": "Hsigmoid", "hardswish": "Hswish"},
}
"""Activations, which the chip has inside the layer before them."""
_INSTEAD = {
    **{"silu": "Hswish", "gelu": "Hswish", "sigmoid": "Hsigmoid", "tanh": "Hsigmoid"},
    **{"hardtanh": "ReLU6", "clamp": "ReLU6"},
}
_MOVES = {"flatten", "view", "reshape", "squeeze", "unsqueeze", "contiguous", "getitem", "unflatten", "detach", "clone"}


def map_operation(operation: Operation, chip: Chip) -> Mapped:
    """What a target makes of an operation.

    Args:
        operation: One operation of the user's network.
        chip: An Ingenic target.

    Returns:
        The operator, and the limits that it breaks; it builds nothing.

    Example:
        >>> from chipfit.chips.conversion import Seen
        >>> from chipfit.chips.registry import chip
        >>> x = Seen((1, 48, 8, 8))
        >>> conv = Operation("c", "conv2d", (x,), x, (True,), {}, nn.Conv2d(48, 64, 3, padding=1))
        >>> map_operation(conv, chip("t40")).suggestions
        ('Pad the 48 input channels to 64.',)
    """
    device = next(device for device in DEVICES.values() if device.name.lower() == chip.name)
    kind = operation.kind
    if kind in _RULES and (device.family != "T02" or kind in _ON_T02):
        return _RULES[kind](operation, device)
    if kind in _INSIDE and device.family != "T02":
        return Mapped(_INSIDE[kind], "npu")
    if kind in ("relu", "relu6"):
        return Mapped("clip of the layer before it", "npu")
    if kind in ("dropout", "identity"):
        return Mapped("none in evaluation", "npu")
    if kind in _MOVES:
        return Mapped("Flatten", "npu")
    return on_cpu(f"{device.name} has no {kind}", f"Use {_INSTEAD[kind]} instead." if kind in _INSTEAD else "")


def _npu(operator: str, limits: list[tuple[str, str]]) -> Mapped:
    problems, suggestions = [limit for limit, _ in limits], [advice for _, advice in limits if advice]
    return Mapped(operator, "npu", None, "", tuple(problems), tuple(suggestions))


def _channels(count: int, device: Device, which: str = "input ", exempt: tuple[int, ...] = ()) -> list[tuple[str, str]]:
    multiple = device.channel_multiple
    if count % multiple == 0 or count in exempt:
        return []
    padded = -(-count // multiple) * multiple
    return [(f"{count} {which}channels, multiples of {multiple}", f"Pad the {count} {which}channels to {padded}.")]


def _conv(operation: Operation, device: Device) -> Mapped:
    old: Any = operation.module
    inputs, outputs, groups = old.in_channels, old.out_channels, old.groups
    kernel = tuple(old.kernel_size)
    if groups == inputs and groups > 1 and outputs == inputs:
        if device.family == "T02":
            return on_cpu("T02 has no depthwise convolution", "Use a Conv2d with groups=1.")
        return _npu("DepthwiseConv2D", _channels(inputs, device) + _border(operation, device))
    limits = _channels(inputs, device, exempt=(1, 2, 3, 12)) + _kernel(kernel, device) + _border(operation, device)
    if groups > 1 and device.family == "T40F" and (inputs // groups % 32 or outputs // groups % 32):
        limits.append(
            (f"{groups} groups of {inputs // groups} channels, multiples of 32", "Use groups=1 or depthwise.")
        )
    if device.family == "TXX" and any(step != 1 for step in old.dilation):
        limits.append((f"dilation {tuple(old.dilation)}, only 1", "Use a larger kernel or stride."))
    if isinstance(old, nn.Conv1d):
        return on_cpu("T02 has no Conv1D") if device.family == "T02" else _npu("Conv1D", limits)
    return _npu("Conv2D", limits)


def _border(operation: Operation, device: Device) -> list[tuple[str, str]]:
    """The chip's border leaves ceil(size / stride) outputs, half of it before the first pixel (section 1.5)."""
    old: Any = operation.module
    if isinstance(old.padding, str):  # torch's 'same' is the chip's
        return []
    if device.family == "T02" or not any(old.padding) or any(step != 1 for step in old.dilation):
        return []
    for size, kernel, step, before in zip(operation.shape[2:], old.kernel_size, old.stride, old.padding, strict=True):
        total = (-(-size // step) - 1) * step + kernel - size
        outputs = (size + 2 * before - kernel) // step + 1
        if isinstance(before, int) and (outputs != -(-size // step) or before != total // 2):
            return [
                (
                    f"padding {before} of {size} pixels at stride {step}; the chip pads {total // 2} before",
                    "Pad by hand, ceil(size / stride) outputs and the odd pixel after, and fine-tune.",
                )
            ]
    return []


def _kernel(kernel: tuple[int, ...], device: Device) -> list[tuple[str, str]]:
    """T02 has 3x3 alone; elsewhere large kernels run, and several small ones have the same reach."""
    if device.family != "T02" or kernel == (3, 3):
        return []
    size = max(kernel)
    return [(f"kernel {kernel}, only 3x3", f"Use {max(1, (size - 1) // 2)} 3x3 kernel(s) in a row.")]


def _conv_transpose(operation: Operation, device: Device) -> Mapped:
    old: Any = operation.module
    return on_cpu(
        f"ConvTranspose2D is Unpool2D, a depthwise 3x3 and a 1x1 convolution, not a kernel of {tuple(old.kernel_size)}",
        "Use Upsample and a 3x3 Conv2d.",
    )


def _linear(operation: Operation, device: Device) -> Mapped:
    old: Any = operation.module
    return _npu("FullConnected", _channels(old.in_features, device))


def _batch_norm(operation: Operation, device: Device) -> Mapped:
    return _npu("BatchNorm", _channels(operation.shape[1], device, "", exempt=(1, 2, 3)))


def _pairwise(operator: str) -> Callable[[Operation, Device], Mapped]:
    def rule(operation: Operation, device: Device) -> Mapped:
        if any(isinstance(x, (int, float)) for x in operation.inputs):
            return on_cpu(f"{operator} takes two features, no number", "Fold the number into the layer before it.")
        limits = _channels(operation.output.shape[1], device, "") if operator == "Mul" else []
        return _npu(operator, limits)

    return rule


def _cat(operation: Operation, device: Device) -> Mapped:
    if operation.options.get("dim", 0) % len(operation.shape) != 1:
        return on_cpu("Route joins channels only", "Join along dimension 1.")
    if device.family == "T02" and len(operation.inputs) > 8:
        return _npu("Route", [(f"{len(operation.inputs)} inputs, at most 8", "Join them in two steps.")])
    return _npu("Route", [])


def _average(operation: Operation, device: Device) -> Mapped:
    whole = all(size == 1 for size in operation.output.shape[2:])
    limits = _channels(operation.shape[1], device, "")
    if whole:
        return _npu("AdaptiveAvgpool2D", limits)
    if operation.kind == "adaptive_avg_pool" or device.family == "T02":
        return on_cpu("averages over windows of this kind", "Use Avgpool2D with a fixed window.")
    return _npu("Avgpool2D", limits)


def _max_pool(operation: Operation, device: Device) -> Mapped:
    options = operation.options
    if device.family == "T02" and options.get("kernel_size") not in (2, (2, 2)):
        return _npu("Maxpool2D", [(f"window {options.get('kernel_size')}, only 2x2", "Use a 2x2 window.")])
    return _npu("Maxpool2D", [])


def _upsample(operation: Operation, device: Device) -> Mapped:
    mode = operation.options.get("mode", "nearest")
    if mode != "nearest":
        return on_cpu(f"Unpool2D has {mode} in the last layer only", "Use nearest.")
    return _npu("Unpool2D", [])


def _pixel_shuffle(operation: Operation, device: Device) -> Mapped:
    if device.family != "T40F" or operation.options.get("upscale_factor") != 2:
        return on_cpu("Pixel_Shuffle exists on the T40 family, with factor 2", "Use nearest upsampling and a Conv2d.")
    return _npu("Pixel_Shuffle", _channels(operation.output.shape[1], device, "output "))


def _split(operation: Operation, device: Device) -> Mapped:
    if operation.options.get("dim", 0) % len(operation.shape) != 1:
        return on_cpu("Channel_Split splits channels only", "Split along dimension 1.")
    return _npu("Channel_Split", [])


def _lstm(operation: Operation, device: Device) -> Mapped:
    old: Any = operation.module
    advice = "The chip's gates are piecewise: fine-tune with the operator LSTM."
    limits = [("its gates are hard_sigmoid and a rational tanh, not torch's", advice)]
    if old.num_layers > 1 and device.family == "T40F":
        limits.append((f"{old.num_layers} layers, 1 at a time", "Write one LSTM a layer."))
    return _npu("LSTM", limits)


_RULES: dict[str, Callable[[Operation, Device], Mapped]] = {
    **dict.fromkeys(("conv1d", "conv2d"), _conv),
    "conv_transpose2d": _conv_transpose,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "add": _pairwise("Shortcut"),
    "mul": _pairwise("Mul"),
    "cat": _cat,
    **dict.fromkeys(("avg_pool", "adaptive_avg_pool"), _average),
    "max_pool": _max_pool,
    "upsample": _upsample,
    "pixel_shuffle": _pixel_shuffle,
    **dict.fromkeys(("chunk", "split"), _split),
    "lstm": _lstm,
    "embedding": lambda operation, device: _npu("Embedding", []),
}
"""Rules by kind of operation."""
_ON_T02 = {"conv2d", "linear", "cat", "avg_pool", "adaptive_avg_pool", "max_pool", "upsample", "lstm"}

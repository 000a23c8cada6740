"""Conversion rules of the Ingenic targets for means, maxima and enlargements."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipfit.chips.ingenic.conversion.parts import as_image, channel_limits, named, npu, relaxed
from chipfit.chips.ingenic.devices import Device
from chipfit.chips.ingenic.operators.bridges import PadFeature
from chipfit.chips.ingenic.operators.pooling import AdaptiveAvgpool2D, Avgpool2D, Maxpool2D, Unpool2D
from chipfit.convert.windows import each, weighs_equally, windows_of
from chipfit.convert.words import Mapped, Operation, on_cpu


def mean(operation: Operation, device: Device) -> Mapped:
    """`mean` over height and width, or of length."""
    rank, dim = len(operation.shape), operation.options.get("dim")
    dims = sorted(d % rank for d in ((dim,) if isinstance(dim, int) else dim or ()))
    if dims != list(range(2, rank)) or rank < 3:
        return on_cpu("AdaptiveAvgpool2D takes the mean of whole channels", "Average over height and width.")
    return _whole_mean(operation, device)


def _whole_mean(operation: Operation, device: Device) -> Mapped:
    before, after = operation.shape, operation.output.shape
    channels, bits = before[1], operation.bits
    limits = channel_limits(channels, device, "")

    def build() -> nn.Module:
        widths: dict[str, Any] = {"quantize": True, "input_bitwidth": bits, "output_bitwidth": bits}
        keep = len(after) == 4
        pool = AdaptiveAvgpool2D(channels, keepdim=keep or len(before) != 4, **widths, target_device=relaxed(device))
        pool.signed = not operation.nonnegative[0]  # else the first negative value would decide
        return as_image(pool, before, after, device)

    return npu("AdaptiveAvgpool2D", limits, build, form="kept")


def average(operation: Operation, device: Device) -> Mapped:
    """Means over windows, or over whole channels."""
    before, after = operation.shape, operation.output.shape
    windows = windows_of(operation)
    if windows is None:
        return on_cpu("an adaptive average with unequal windows", "Choose an output size that divides the input's.")
    if not weighs_equally(operation, windows):
        return on_cpu("an average over windows of different sizes", "Use count_include_pad=True, ceil_mode=False.")
    if windows.kernel == before[2:] and not any(windows.padding):
        return _whole_mean(operation, device)
    if device.family == "T02":
        return on_cpu("T02 averages whole channels only", "Average over height and width.")
    border = tuple(side for pad in reversed(windows.padding) for side in (pad, pad))

    def build() -> nn.Module:
        (high, wide), step = _plane(windows.kernel), _plane(windows.stride)
        widths: dict[str, Any] = {"input_bitwidth": operation.bits, "output_bitwidth": operation.bits}
        target = relaxed(device)
        pool = Avgpool2D(before[1], high, wide, step, quantize=True, **widths, target_device=target)
        pool.signed = not operation.nonnegative[0]
        pad = PadFeature(border, target_device=device.name) if any(border) else None
        return as_image(named(pad=pad, pool=pool), before, after, device)

    operator = "Pad, Avgpool2D" if any(border) else "Avgpool2D"
    return npu(operator, channel_limits(before[1], device, ""), build, form="kept")


def _plane(sizes: tuple[int, ...]) -> tuple[int, int]:
    return (1, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def max_pool(operation: Operation, device: Device) -> Mapped:
    """Maxima over windows."""
    before, after, options = operation.shape, operation.output.shape, operation.options
    rank, windows = len(before) - 2, windows_of(operation)
    if options.get("return_indices"):
        return on_cpu("the chip keeps no indices of a maximum", "Upsample by nearest neighbours instead.")
    if windows is None:
        return on_cpu("an adaptive maximum with unequal windows", "Choose an output size that divides the input's.")
    if any(step != 1 for step in each(options.get("dilation", 1), rank)):
        return on_cpu("a maximum over pixels that are not neighbours", "Use dilation=1.")
    border: tuple[int, ...] = ()
    sizes = (before[2:], after[2:], windows.kernel, windows.stride, windows.padding)
    for size, parts, window, step, pad in zip(*sizes, strict=True):
        beyond = max(0, (parts - 1) * step + window - size - 2 * pad)  # of ceil_mode
        border = (pad, pad + beyond, *border)
    if device.family == "T02" and (set(windows.kernel + windows.stride) != {2} or any(border) or rank != 2):
        return on_cpu(f"window {windows.kernel}, only 2x2 with stride 2", "Use a 2x2 window.")

    def build() -> nn.Module:
        high, wide = _plane(windows.kernel)
        pool = Maxpool2D(high, wide, _plane(windows.stride), target_device=device.name)
        pad = PadFeature(border, "lowest", device.name) if any(border) else None
        return as_image(named(pad=pad, pool=pool), before, after, device)

    return npu("Pad, Maxpool2D" if any(border) else "Maxpool2D", [], build, form="kept")


def upsample(operation: Operation, device: Device) -> Mapped:
    """Nearest enlargement by whole factors."""
    before, after = operation.shape[2:], operation.output.shape[2:]
    mode = operation.options.get("mode", "nearest")
    if mode != "nearest" or len(before) != 2 or any(b % a for a, b in zip(before, after, strict=True)):
        return on_cpu(f"Unpool2D repeats pixels by whole factors; {mode} in the last layer only", "Use nearest.")
    high, wide = (b // a for a, b in zip(before, after, strict=True))
    if device.family == "T02" and (high, wide) != (2, 2):
        return on_cpu(f"factor {(high, wide)}, only 2", "Use a factor of 2.")

    def build() -> nn.Module:
        return Unpool2D(high, wide, "nearest", quantize=True, target_device=device.name)

    return npu("Unpool2D", [], build, form="kept")

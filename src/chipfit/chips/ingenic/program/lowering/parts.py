"""The parts that Ingenic layers share, as constants of a program: normalisation, activation, feature quantiser."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import nn

from chipfit.chips import ingenic as chips
from chipfit.chips.ingenic.devices import device
from chipfit.chips.ingenic.program.lowering.edges import float32
from chipfit.chips.ingenic.program.ops import Activation, Norm, Requantise
from chipfit.errors import UnsupportedError
from chipfit.program.lowering.builder import Builder
from chipfit.program.types import Grid


class Target(NamedTuple):
    """Where a feature quantiser leads: the operation, the grid, and the range of codes; all None for real numbers."""

    op: Requantise | None
    grid: Grid | None
    limits: tuple[int, int] | None


REAL = Target(None, None, None)


def target(bits: int, signed: bool, has_zero: bool, clip: float, divisor: float | None = None) -> Target:
    """Where a feature quantiser leads.

    Example:
        >>> target(4, True, False, 6.0).limits, target(4, True, True, 6.0).limits, target(4, False, True, 6.0).limits
        ((-15, 15), (-8, 7), (0, 15))
    """
    if bits >= 32:
        return REAL
    n, half = 2**bits - 1, 2 ** (bits - 1)
    if not signed:
        return Target(Requantise("unsigned", n, clip, divisor), Grid("plain", float(n)), (0, n))
    if has_zero:
        return Target(Requantise("signed", half, clip, divisor), Grid("plain", float(half)), (-half, half - 1))
    return Target(Requantise("odd", n, clip, divisor), Grid("odd", float(n)), (-n, n))


def norm_of(b: Builder, name: str, block: Any) -> Norm | None:
    """Constants of a batch normalisation; its factor `max(gamma, 0.01) / sqrt(variance + eps)` is rounded once.

    Raises:
        UnsupportedError: it has no running statistics, or is not computed in the stated order.
    """
    if block is None:
        return None
    bn = block.batch_norm
    if bn.running_mean is None or bn.running_var is None or not block.exact:
        raise UnsupportedError("batch normalisation without running statistics, or of a layer that is not quantised")
    eps = getattr(block, "eps", bn.eps)
    gamma = np.maximum(float32(bn.weight), np.float32(0.01)).astype(np.float64)
    gain = (gamma / np.sqrt(float32(bn.running_var).astype(np.float64) + eps)).astype(np.float32)
    return Norm(
        b.keep(f"{name}.norm.mean", float32(bn.running_mean)),
        b.keep(f"{name}.norm.gain", gain),
        b.keep(f"{name}.norm.shift", float32(bn.bias)),
    )


def activation_of(b: Builder, name: str, module: nn.Module | None, offset: float = 0.0) -> Activation:
    """An activation that a layer applies.

    Args:
        b: Keeps a slope.
        name: The layer.
        module: The module that the layer kept, or None.
        offset: Constant that the layer adds instead.

    Raises:
        UnsupportedError: a module that the chips do not have.
    """
    if offset:
        return Activation("shift", offset=offset)
    if module is None or isinstance(module, (chips.Linear, nn.Identity)):
        return Activation()
    if isinstance(module, (chips.ReLU, nn.ReLU)):
        return Activation("relu")
    if isinstance(module, (chips.ReLU6, nn.ReLU6)):
        return Activation("relu6")
    if isinstance(module, (chips.LeakyReLU, nn.LeakyReLU)):
        slope = module.leaky.negative_slope if isinstance(module, chips.LeakyReLU) else module.negative_slope
        return Activation("leaky", b.keep(f"{name}.slope", float32(slope)))
    if isinstance(module, (chips.PReLU, nn.PReLU)):
        slopes = module.prelu.weight if isinstance(module, chips.PReLU) else module.weight
        return Activation("leaky", b.keep(f"{name}.slope", float32(slopes)))
    if isinstance(module, (chips.Hsigmoid, chips.Hswish)):
        gate = module.sigmoid if isinstance(module, chips.Hswish) else module
        kind: Any = "hswish" if isinstance(module, chips.Hswish) else "hsigmoid"
        return Activation(kind, None, gate.offset_value, gate.clip_max_value)
    raise UnsupportedError("the activation has no integer form", given=type(module).__name__)


def requantiser(quantiser: Any) -> Target:
    """The grid and range that a layer's feature quantiser leads to, from its settings and its threshold."""
    clip, divisor = quantiser.clip_max_value, None
    if isinstance(clip, nn.Parameter):  # learned, and never below 0.001
        clip, divisor = 1.0, float(np.maximum(float32(clip)[0], np.float32(1e-3)))
    has_zero = device(quantiser.target_device, "QuantizeFeature").has_zero
    return target(quantiser.bits, quantiser.signed, has_zero, clip, divisor)

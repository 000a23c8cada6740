"""Activation modules, and what becomes of them inside a quantised layer.

They are only given to other layers as `activation_fn`, as on the chip, where the activation is part of the layer.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.ingenic.devices import T40F, TXX, check_channels, check_int, check_positive, device, unchecked
from chipfit.errors import ChipfitWarning, InvalidTypeError

_TARGETS = TXX + T40F
_RELU_LIKE = (nn.ReLU, nn.ReLU6)


def _tensor(x: object, operator: str) -> Tensor:
    if not isinstance(x, Tensor):
        raise InvalidTypeError(
            "an activation takes a tensor",
            given=type(x),
            allowed="a tensor",
            where=operator,
            hint="Give it to a layer as activation_fn instead of calling it.",
        )
    return x


def _check_channels(in_channels: int, target_device: str, operator: str, strict: bool | None) -> None:
    dev = device(target_device, operator, _TARGETS, strict)
    check_int(in_channels, operator, "in_channels")
    if in_channels >= 4:  # fewer are the channels of an image, which BatchNorm accepts too
        check_channels(in_channels, dev, operator, stacklevel=4)


class ReLU6(nn.Module):
    """`clip(x, 0, 6)`.

    Args:
        target_device: A target of the T40 or Txx family.

    Raises:
        InvalidValueError: Unknown target.
        UnsupportedError: T02.
        InvalidTypeError: Called with a tuple.

    Source:
        Manual section ReLU6.

    Example:
        >>> ReLU6()(torch.tensor([-1.0, 7.0]))
        tensor([0., 6.])
    """

    def __init__(self, target_device: str = "Txx") -> None:
        super().__init__()
        device(target_device, "ReLU6", _TARGETS)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return F.relu6(_tensor(x, "ReLU6"))


class ReLU(nn.Module):
    """`max(x, 0)`. Arguments and errors as `ReLU6`; source: manual section ReLU."""

    def __init__(self, target_device: str = "Txx") -> None:
        super().__init__()
        device(target_device, "ReLU", _TARGETS)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return F.relu(_tensor(x, "ReLU"))


class Linear(nn.Module):
    """No activation: the layer's output is signed. Arguments and errors as `ReLU6`; source: manual section Linear."""

    def __init__(self, target_device: str = "Txx") -> None:
        super().__init__()
        device(target_device, "Linear", _TARGETS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor itself."""
        return _tensor(x, "Linear")


class LeakyReLU(nn.Module):
    """`x` above zero, `negative_slope * x` below.

    Args:
        negative_slope: Slope below zero.
        target_device: As `ReLU6`.

    Source:
        Manual section LeakyReLU.

    Example:
        >>> LeakyReLU(0.1)(torch.tensor([-1.0, 7.0]))
        tensor([-0.1000,  7.0000])
    """

    def __init__(self, negative_slope: float = 0.01, target_device: str = "Txx") -> None:
        super().__init__()
        if isinstance(negative_slope, str):  # the manual's signature has the target first
            negative_slope, target_device = 0.01, negative_slope
        device(target_device, "LeakyReLU", _TARGETS)
        self.leaky = nn.LeakyReLU(negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        y: Tensor = self.leaky(_tensor(x, "LeakyReLU"))
        return y


class PReLU(nn.Module):
    """Leaky ReLU with a learned slope a channel.

    Args:
        in_channels: Channels; a multiple of 32 (T40 family) or 16, or fewer than 4.
        target_device: As `ReLU6`.
        strict: Whether channels that do not fit are an error; see `check_channels`.

    Raises:
        InvalidValueError: `in_channels` does not fit the target.

    Source:
        Manual section PReLU.
    """

    def __init__(self, in_channels: int, target_device: str = "Txx", strict: bool | None = None) -> None:
        super().__init__()
        _check_channels(in_channels, target_device, "PReLU", strict)
        self.in_channels = in_channels
        self.prelu = nn.PReLU(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to (N, C, ...)."""
        y: Tensor = self.prelu(_tensor(x, "PReLU"))
        return y


class Hsigmoid(nn.Module):
    """`clip(x + offset_value, 0, clip_max_value) / clip_max_value`.

    Args:
        in_channels: As `PReLU`.
        offset_value: Added first.
        clip_max_value: Upper end of the clip, above zero.
        target_device: As `ReLU6`.
        strict: As `PReLU`.

    Source:
        Manual section Hsigmoid; spec/ingenic.md, section 3.

    Example:
        >>> Hsigmoid(16)(torch.tensor([-4.0, 0.0, 1.5]))
        tensor([0.0000, 0.5000, 0.7500])
    """

    def __init__(
        self,
        in_channels: int,
        offset_value: float = 3.0,
        clip_max_value: float = 6.0,
        target_device: str = "Txx",
        strict: bool | None = None,
    ) -> None:
        super().__init__()
        _check_channels(in_channels, target_device, "Hsigmoid", strict)
        self.in_channels = in_channels
        check_positive(clip_max_value, "Hsigmoid", "clip_max_value")
        self.offset_value, self.clip_max_value = float(offset_value), float(clip_max_value)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        return torch.clamp(_tensor(x, "Hsigmoid") + self.offset_value, 0.0, self.clip_max_value) / self.clip_max_value


class Hswish(nn.Module):
    """`x * Hsigmoid(x)`. Arguments and errors as `PReLU`; source: manual section Hswish.

    Example:
        >>> Hswish(16)(torch.tensor([-4.0, 1.5, 4.0]))
        tensor([-0.0000,  1.1250,  4.0000])
    """

    def __init__(self, in_channels: int, target_device: str = "Txx", strict: bool | None = None) -> None:
        super().__init__()
        _check_channels(in_channels, target_device, "Hswish", strict)
        self.in_channels = in_channels
        gate: Any = unchecked(device(target_device, "Hswish", _TARGETS))
        self.sigmoid = Hsigmoid(in_channels, target_device=gate)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to a tensor of any shape."""
        y: Tensor = x * self.sigmoid(_tensor(x, "Hswish"))
        return y


HOMOGENEOUS = (nn.ReLU, ReLU, LeakyReLU, PReLU, Linear)
"""Activations that commute with a positive factor."""


class Placed(NamedTuple):
    """An activation as a layer uses it.

    Args:
        module: Module to apply before the quantiser, if any.
        signed: Whether the layer's output is signed.
        offset: Constant to add before the quantiser (Hsigmoid).
    """

    module: nn.Module | None
    signed: bool
    offset: float = 0.0


def place(activation_fn: nn.Module | None, quantised: bool, operator: str) -> Placed:
    """Decide what a layer does with its activation.

    A feature quantiser clips, so that it is the activation of most layers, and the module is dropped.

    Args:
        activation_fn: The user's module or `None`.
        quantised: Whether a feature quantiser follows.
        operator: The layer, for messages.

    Returns:
        How to apply it. Without a quantiser the module is kept, and only leaky activations count as signed.

    Raises:
        InvalidTypeError: Not a module.

    Warns:
        ChipfitWarning: An activation that the chips do not have is replaced by the clip.

    Source:
        spec/ingenic.md, section 1.4. The decision is taken, as there, on the module's text; Hswish, which the vendor's
        kit cannot run, is kept and quantised with sign.
    """
    if activation_fn is not None and not isinstance(activation_fn, nn.Module):
        raise InvalidTypeError(
            "an activation is a module",
            given=activation_fn,
            allowed="a module or None",
            where=f"{operator}.activation_fn",
        )
    text = "" if activation_fn is None else str(activation_fn)
    leaky = "PReLU" in text or "LeakyReLU" in text
    if not quantised:
        return Placed(activation_fn, leaky)
    if leaky or "Hswish" in text or "Hardswish" in text:
        return Placed(activation_fn, True)
    if "Linear" in text:
        return Placed(None, True)
    if isinstance(activation_fn, Hsigmoid):
        return Placed(None, False, activation_fn.offset_value)
    if activation_fn is not None and not isinstance(activation_fn, (ReLU, ReLU6, *_RELU_LIKE)):
        warnings.warn(
            f"{operator}: the chip has no {type(activation_fn).__name__}; the quantised layer clips at zero instead",
            ChipfitWarning,
            stacklevel=4,
        )
    return Placed(None, False)

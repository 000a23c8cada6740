"""What layers pass to each other: a tensor, or the vendor's tuple `(tensor, bit, min)`.

`Preprocess` starts a network with `(tensor, bit, mean, var, min)`. A bare tensor is read as a non-negative feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from chipfit.chips.ingenic.devices import Device
from chipfit.errors import InvalidTypeError, InvalidValueError, ShapeError

Tagged = tuple[Tensor, int, float]
"""The vendor's tuple: normalised tensor, bits, and a minimum of which only the sign counts."""


class Feature(NamedTuple):
    """What a layer knows of its input.

    Args:
        tensor: The values.
        bits: Their width; 32 when they are not quantised.
        minimum: Below zero when the feature is signed; only the sign counts.
        tagged: Whether it came as the vendor's tuple.
        prepared: Mean and divisor of an image that comes from `Preprocess`.
    """

    tensor: Tensor
    bits: int
    minimum: float
    tagged: bool
    prepared: tuple[float, float] | None = None

    @property
    def signed(self) -> bool:
        """Whether the feature has negative codes."""
        return self.minimum < 0

    def carry(self, tensor: Tensor) -> Tensor | Tagged:
        """The same description around another tensor: what layers that only move data return."""
        return (tensor, self.bits, self.minimum) if self.tagged else tensor


def read(value: Any, operator: str, bits: int = 32, first_layer: bool = False) -> Feature:
    """Read a layer's input.

    Args:
        value: A tensor, `(tensor, bit, min)`, or with `first_layer` what `Preprocess` returns.
        operator: The layer, for error messages.
        bits: Width to assume for a bare tensor.
        first_layer: Whether the layer follows `Preprocess`.

    Raises:
        InvalidValueError: A tuple of another length, or with `first_layer` a bare tensor.
        InvalidTypeError: Something else.

    Source:
        spec/ingenic.md, section 2.

    Example:
        >>> import torch
        >>> read((torch.ones(1), 8, -1.0), "Conv2D").signed
        True
    """
    if isinstance(value, Tensor) and first_layer:
        raise InvalidValueError(
            "a first layer needs to know how the image was prepared",
            given="a bare tensor",
            allowed="(tensor, bit, mean, var, min) from Preprocess",
            where=operator,
            hint="Give it ops.Preprocess(mean, var)(image), or leave out first_layer.",
        )
    if isinstance(value, Tensor):
        return Feature(value, bits, 0.0, False)
    if not isinstance(value, (tuple, list)) or not value or not isinstance(value[0], Tensor):
        raise InvalidTypeError(
            "cannot read the input",
            given=type(value),
            allowed="a tensor or (tensor, bit, min)",
            where=operator,
            hint="Route, Shortcut, Mul and Max are the operators that take a list of features.",
        )
    length = 5 if first_layer else 3
    if len(value) != length or any(isinstance(part, Tensor) for part in value[1:]):
        raise InvalidValueError(
            "the input tuple does not fit",
            given=f"a tuple of {len(value)}",
            allowed="(tensor, bit, mean, var, min) from Preprocess" if first_layer else "(tensor, bit, min)",
            where=operator,
            hint="Set first_layer=True after Preprocess, and only there; add features with Shortcut, not +.",
        )
    prepared = (float(value[2]), float(value[3])) if first_layer else None
    return Feature(value[0], int(value[1]), float(value[-1]), True, prepared)


def read_list(
    values: Any, operator: str, count: int | None = None, same_sign: bool = True, same_bits: bool = True
) -> list[Feature]:
    """Read the inputs of an operator on several features.

    Args:
        values: List or tuple of what `read` takes.
        operator: The layer, for error messages.
        count: How many there must be; `None` for at least one.
        same_sign: Whether all have to be signed or all unsigned.
        same_bits: Whether all have to have one width.

    Raises:
        InvalidTypeError: Not a list of features.
        InvalidValueError: Wrong number, or the features differ where they may not.
    """
    if not isinstance(values, (tuple, list)) or any(not isinstance(v, (Tensor, tuple, list)) for v in values):
        raise InvalidTypeError(
            "cannot read the inputs",
            given=type(values),
            allowed="a list of tensors or (tensor, bit, min)",
            where=operator,
        )
    if len(values) != count if count is not None else not values:
        raise InvalidValueError(
            "wrong number of inputs",
            given=len(values),
            allowed="at least 1" if count is None else str(count),
            where=operator,
        )
    features = [read(value, operator) for value in values]
    if same_bits and len({f.bits for f in features}) > 1:
        raise InvalidValueError(
            "the inputs differ in bit width",
            given=[f.bits for f in features],
            allowed="equal widths",
            where=operator,
            hint="Give the layers before it the same output_bitwidth.",
        )
    if same_sign and len({f.signed for f in features}) > 1:
        raise InvalidValueError(
            "signed and unsigned inputs cannot be mixed",
            given=[f.minimum for f in features],
            allowed="all negative or none",
            where=operator,
            hint="Give the layers before it activations of the same sign.",
        )
    return features


def pad_value(feature: Feature, device: Device, first_layer: bool = False) -> float:
    """What a border is filled with: zero, or the lowest code where signed codes have no zero (T40 family).

    Source:
        spec/ingenic.md, section 1.5.
    """
    return -1.0 if device.family == "T40F" and feature.signed and not first_layer else 0.0


def check_shape(x: Tensor, dims: Sequence[int], operator: str, channels: int | None = None) -> None:
    """Check the rank of an input and its channel count (dimension 1).

    Raises:
        ShapeError: They do not fit.
    """
    if x.dim() not in dims or (channels is not None and x.shape[1] != channels):
        rank = " or ".join(map(str, dims))
        raise ShapeError(
            "the input's shape does not fit",
            given=tuple(x.shape),
            allowed=f"{rank} dimensions"
            + (f" with {channels} channels in dimension 1" if channels is not None else ""),
            where=operator,
        )

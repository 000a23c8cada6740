"""The block of options that the manual gives nearly every operator: carried and checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from chipfit.chips.ingenic.devices import Device, check_bits, check_positive


@dataclass(frozen=True)
class OperatorOptions:
    """What a constructor was given of the block; an option that the operator has not keeps its default.

    Args:
        operator: Name of the operator, for errors.
        device: The target.
        quantize: Quantise weight and output.
        quantize_last_feature: In a last layer, quantise the output too.
        last_layer: Whether it is one.
        weight_bitwidth: 2 to 8, or 32.
        input_bitwidth: 2 to 12, or 32.
        output_bitwidth: 2 to 12, or 32.
        clip_max_value: Output clip, above zero.
        weight_factor: Weight clip in deviations, above zero.
        auto_threshold: Learn `clip_max_value`.

    Raises:
        InvalidTypeError: A width is no int, or a clip or factor no number.
        InvalidValueError: No width that the chips have, or a clip or factor that is not above zero.

    Example:
        >>> from chipfit.chips.ingenic.devices import DEVICES
        >>> OperatorOptions("Conv2D", DEVICES["T40"], quantize=True, last_layer=True).quantizes_output
        False
    """

    operator: str
    device: Device
    quantize: bool = False
    quantize_last_feature: bool = False
    last_layer: bool = False
    weight_bitwidth: int = 32
    input_bitwidth: int = 32
    output_bitwidth: int = 32
    clip_max_value: float = 6.0
    weight_factor: float = 3.0
    auto_threshold: bool = False

    def __post_init__(self) -> None:
        for name in ("weight_bitwidth", "input_bitwidth", "output_bitwidth"):
            check_bits(getattr(self, name), self.operator, name)
        for name in ("clip_max_value", "weight_factor"):
            check_positive(getattr(self, name), self.operator, name)

    @classmethod
    def of(cls, operator: str, device: Device, arguments: Mapping[str, Any], **instead: Any) -> OperatorOptions:
        """Take the block out of a constructor's arguments.

        Args:
            operator: Name of the operator.
            device: The target.
            arguments: What the constructor was given by name: its `locals()`.
            **instead: What counts instead of an argument.

        Example:
            >>> from chipfit.chips.ingenic.devices import DEVICES
            >>> given = {"quantize": 1, "output_bitwidth": 8, "padding": 0}
            >>> OperatorOptions.of("Conv2D", DEVICES["T40"], given, output_bitwidth=32).output_bitwidth
            32
        """
        names = {entry.name for entry in fields(cls)} - {"operator", "device"}
        return cls(operator, device, **{name: arguments[name] for name in names & arguments.keys()} | instead)

    @property
    def quantizes_output(self) -> bool:
        """Whether there is a feature quantiser: not in a last layer that is not told to have one."""
        return bool(self.quantize) and (not self.last_layer or bool(self.quantize_last_feature))

    @property
    def weight_bits(self) -> int:
        """Width that the weight is quantised to; 32 for not at all."""
        return self.weight_bitwidth if self.quantize else 32

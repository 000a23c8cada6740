"""What the layers with weights have in common: checking arguments, and the way from the accumulator to the output."""

from __future__ import annotations

import math
import warnings

from torch import Tensor, nn

from chipfit.chips.ingenic.devices import check_choice
from chipfit.chips.ingenic.exact import InputCodes, input_codes
from chipfit.chips.ingenic.operators.activations import ReLU6, place
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature, batchNorm2d
from chipfit.chips.ingenic.operators.features import Feature, Tagged, pad_value
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.errors import ChipfitWarning


class DefaultReLU6:
    """Stands for a new `ReLU6()` in a signature, where a module itself would be shared by all layers."""

    def __repr__(self) -> str:
        return "ReLU6()"


RELU6 = DefaultReLU6()
"""Default of `activation_fn`."""

Activation = nn.Module | DefaultReLU6 | None
"""What `activation_fn` takes."""


class WeightedLayer(Operator):
    """Base of the layers with weights: batch normalisation, activation and feature quantiser after a sum of products.

    Subclasses call `_configure` from their constructor, and `_finish` on the sum.

    Attributes:
        quantize: Whether weight and output are quantised.
        quantizes_output: Whether there is a feature quantiser: not in float, nor in a last layer that is not told to.
        weight_bitwidth, input_bitwidth, output_bitwidth: Widths in use.
        ceiling: Bound of the activation given: 6 for ReLU6, infinity for any other.
        clip_min_value: Minimum reported to the next layer; negative for a signed output.
        float_activation: The activation given, which mode 'float' applies; not a submodule of its own.
    """

    float_activation: nn.Module | None = None  # also for what old pickled checkpoints hold

    def _configure(
        self,
        options: OperatorOptions,
        activation_fn: Activation,
        data_format: str = "NCHW",
        data_formats: tuple[str, ...] = ("NCHW",),
    ) -> None:
        operator, device = options.operator, options.device
        check_choice(data_format, data_formats, operator, "data_format")
        self.operator, self.device, self.target_device = operator, device, device.name
        self.quantize, self.last_layer = bool(options.quantize), bool(options.last_layer)
        self.quantizes_output = options.quantizes_output
        self.weight_bitwidth, self.input_bitwidth = options.weight_bitwidth, options.input_bitwidth
        self.output_bitwidth = options.output_bitwidth
        self.weight_factor, self.data_format = float(options.weight_factor), data_format
        activation = ReLU6() if isinstance(activation_fn, DefaultReLU6) else activation_fn
        placed = place(activation, self.quantizes_output, operator)
        if self.quantizes_output and self.output_bitwidth >= 32 and activation is not None and placed.module is None:
            warnings.warn(
                f"{operator}: quantised with output_bitwidth=32, the output is neither clipped nor put through "
                f"{type(activation).__name__}, as in the vendor's kit; choose a width below 32, or last_layer=True",
                ChipfitWarning,
                stacklevel=3,
            )
        self.activation_fn, self.offset = placed.module, placed.offset
        # Where the quantiser stands for it, the activation is no part of the layer's parameters and text.
        object.__setattr__(self, "float_activation", activation)
        # The quantiser's clip stands for a dropped ReLU6 too, whose own bound calibration has to keep.
        self.ceiling = 6.0 if isinstance(activation, (ReLU6, nn.ReLU6)) else math.inf
        self.clip_min_value = -float(options.clip_max_value) if placed.signed else 0.0
        self.QuantizeFeature = QuantizeFeature(
            self.output_bitwidth if self.quantizes_output else 32,
            placed.signed,
            options.clip_max_value,
            device.name,
            learn=bool(options.auto_threshold) and self.quantizes_output,
        )
        self.QuantizeFeature.gate = bool(placed.offset)

    def _codes(self, x: Tensor, feature: Feature) -> InputCodes | None:
        """The input as integers; `None` in float and for an input off its grid.

        In training too, so that what is trained is what the integer program computes; there on the CPU alone, since
        looking whether the input lies on its grid would make another device wait.
        """
        if self.floating or not self.quantize or self.weight_bitwidth >= 32:
            return None
        if self.training and x.device.type != "cpu":
            return None
        return input_codes(x, feature, self.device)

    def _border(self, feature: Feature, first_layer: bool = False) -> float:
        """What fills the border of an input."""
        return 0.0 if self.floating else pad_value(feature, self.device, first_layer)

    def _finish(self, y: Tensor, norm: batchNorm2d | None) -> Tensor | Tagged:
        """Normalise, activate and quantise a sum; wrap it as the layer's output."""
        if norm is not None:
            y = norm(y)
        if self.offset:
            y = y + self.offset
        activation = self.float_activation if self.floating and not self.offset else self.activation_fn
        if activation is not None:
            y = activation(y)
        if self.quantizes_output:
            y = self.QuantizeFeature(y)
        return y if self.last_layer else (y, self.output_bitwidth, self.clip_min_value)

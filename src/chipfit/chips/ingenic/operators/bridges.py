"""What stands between the chip's operators and the rest of a converted network: features in, tensors out, borders.

The vendor's kit has none of them: there a network starts with `Preprocess`, ends with `last_layer=True`, and is written
with the chip's own borders. A plain network has torch functions in between, inputs that are no images, and torch's
borders.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from chipfit.chips.ingenic.devices import check_choice, check_int, device
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature
from chipfit.chips.ingenic.operators.features import Feature, pad_value, read
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.errors import InvalidTypeError, InvalidValueError


class ToFeature(Operator):
    """Quantise a tensor of any network into a feature of the chip; the CPU core does it.

    Args:
        output_bitwidth: 2 to 12.
        signed: Whether the tensor has negative values.
        clip_max_value: What it is clipped at and divided by; `chipfit.calibrate` chooses it.
        gate: The values lie between 0 and 1 by their nature; the clip stays 1.
        image: Hand it on as `Preprocess` does an image, to a layer with `first_layer=True`: 8 bits, mean 0 and divisor
            255, or for a signed tensor mean 128 and divisor 128. There zero is a code and the border on every target.
        target_device: Any target.

    Attributes:
        gain, bias: How the input is normalised first, see `normalise`; None for not at all.

    Inputs:
        A tensor of any shape.

    Returns:
        `(tensor, bit, min)`; with `image` `(tensor, 8, mean, var, min)`.

    Raises:
        InvalidTypeError: The input is not a tensor.

    Source:
        spec/ingenic.md, sections 1.2 and 2.

    Example:
        >>> ToFeature(8, signed=False, clip_max_value=2.0, target_device="T40")(torch.tensor([[1.2]]))
        (tensor([[0.6000]]), 8, 0.0)
    """

    gain: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        output_bitwidth: int = 8,
        signed: bool = False,
        clip_max_value: float = 6.0,
        gate: bool = False,
        image: bool = False,
        target_device: str = "Txx",
    ) -> None:
        super().__init__()
        self.device = device(target_device, "ToFeature")
        self.target_device = self.device.name
        OperatorOptions.of("ToFeature", self.device, locals())  # checks them
        if gate and signed:
            raise InvalidValueError("a gate has no negative values", given="signed=True", where="ToFeature")
        self.quantize, self.output_bitwidth, self.signed, self.gate = True, output_bitwidth, bool(signed), bool(gate)
        if image and output_bitwidth != 8:
            raise InvalidValueError("an image has 8 bits", given=output_bitwidth, allowed="8", where="ToFeature")
        clip, self.image = 1.0 if gate else float(clip_max_value), bool(image)
        grid = "Txx" if image else self.target_device  # that of pixels: two's complement
        self.QuantizeFeature = QuantizeFeature(output_bitwidth, self.signed, clip, grid)
        self.QuantizeFeature.gate = self.gate
        self.register_buffer("gain", None)
        self.register_buffer("bias", None)

    @at_full_precision
    def forward(self, x: Tensor) -> Any:
        """Quantise."""
        if not isinstance(x, Tensor):
            raise InvalidTypeError("a tensor is needed", given=type(x), allowed="a tensor", where="ToFeature")
        if self.gain is not None and self.bias is not None:
            channels = (1, -1, *[1] * (x.dim() - 2))
            x = x * self.gain.view(channels) + self.bias.view(channels)
        return (self.QuantizeFeature(x), *self.tags)

    def normalise(self, gain: Tensor, bias: Tensor) -> None:
        """Multiply by `gain` and add `bias` before quantising, each one number or one a channel, on the CPU core."""
        shape = gain.shape if gain.numel() > 1 else bias.shape
        self.gain = gain.detach().float().expand(shape).clone()
        self.bias = bias.detach().float().expand(shape).clone()

    @property
    def tags(self) -> tuple[Any, ...]:
        """What it says of the tensor that it gives."""
        if self.image:
            return (8, 128.0, 128.0, -1.0) if self.signed else (8, 0.0, 255.0, 0.0)
        return self.output_bitwidth, -1.0 if self.signed else 0.0


class ToTensor(Operator):
    """Give a feature of the chip to torch as the tensor that it stands for: times what the layers before divided by.

    Args:
        channels: Size of dimension 1.
        target_device: Any target.

    Attributes:
        scale: Factor a channel, shape `(channels,)`; `chipfit.calibrate` sets it.

    Inputs:
        A tensor (N, channels, ...) or `(tensor, bit, min)`.

    Returns:
        A tensor of that shape.

    Example:
        >>> ToTensor(1, "T40")((torch.tensor([[0.6]]), 8, 0.0))
        tensor([[0.6000]])
    """

    scale: Tensor

    def __init__(self, channels: int, target_device: str = "Txx") -> None:
        super().__init__()
        self.device = device(target_device, "ToTensor")
        check_int(channels, "ToTensor", "channels")
        self.register_buffer("scale", torch.ones(channels))

    @at_full_precision
    def forward(self, inputs: Any) -> Tensor:
        """Multiply."""
        x = read(inputs, "ToTensor").tensor
        return x * self.scale.view(1, -1, *[1] * (x.dim() - 2))


class PadFeature(Operator):
    """Border that a layer's own padding cannot give, for instance torch's at stride 2.

    Args:
        pads: Pixels before and after, from the last dimension backwards, as `torch.nn.functional.pad` takes them.
        fill: 'zero' as in a convolution: 0, or for a signed feature on the T40 family, which has no zero, -1, as the
            chip's own border. 'lowest' as in a maximum: what loses against every value.
        target_device: Any target.

    Inputs:
        A tensor, `(tensor, bit, min)`, or what `Preprocess` returns.

    Returns:
        The same, padded.

    Source:
        spec/ingenic.md, sections 1.5 and 5 (the vendor's 2022 kit exports borders as nodes of their own).

    Example:
        >>> PadFeature((1, 0), target_device="T40")((torch.ones(1, 1), 8, -1.0))[0]
        tensor([[-1.,  1.]])
    """

    def __init__(self, pads: tuple[int, ...], fill: str = "zero", target_device: str = "Txx") -> None:
        super().__init__()
        self.device = device(target_device, "PadFeature")
        check_choice(fill, ("zero", "lowest"), "PadFeature", "fill")
        self.pads, self.fill = tuple(pads), fill

    def border(self, feature: Feature, first_layer: bool) -> float:
        """What fills the border, normalised."""
        if self.fill == "zero":
            return 0.0 if self.floating else pad_value(feature, self.device, first_layer)
        if not feature.signed:
            return 0.0
        return -math.inf if self.floating else -1.0

    @at_full_precision
    def forward(self, inputs: Any) -> Any:
        """Pad."""
        prepared = isinstance(inputs, tuple) and len(inputs) == 5
        feature = read(inputs, "PadFeature", first_layer=prepared)
        y = F.pad(feature.tensor, self.pads, value=self.border(feature, prepared))
        return (y, *inputs[1:]) if prepared else feature.carry(y)

    def extra_repr(self) -> str:
        """Say what `print` shows."""
        return f"{self.pads}, fill={self.fill!r}"

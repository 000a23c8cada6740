"""The Ingenic targets as data, for `chipfit.chip("t40")`."""

from __future__ import annotations

from chipfit.chips.ingenic.devices import DEVICES, Device
from chipfit.hardware import Chip

_EVERYWHERE = {
    "Conv2d": "Conv2D",
    "Linear": "FullConnected",
    "MaxPool2d": "Maxpool2D",
    "AdaptiveAvgPool2d": "AdaptiveAvgpool2D",
    "Flatten": "Flatten",
    "LSTM": "LSTM",
    "Upsample": "Unpool2D",
}
_NOT_ON_T02 = {
    "Conv1d": "Conv1D",
    "ConvTranspose2d": "ConvTranspose2D",
    "BatchNorm2d": "BatchNorm",
    "AvgPool2d": "Avgpool2D",
    "Embedding": "Embedding",
    "ReLU": "ReLU",
    "ReLU6": "ReLU6",
    "LeakyReLU": "LeakyReLU",
    "PReLU": "PReLU",
    "Hardsigmoid": "Hsigmoid",
    "Hardswish": "Hswish",
}


def _chip(device: Device) -> Chip:
    operators = dict(_EVERYWHERE)
    if device.family != "T02":
        operators |= _NOT_ON_T02
    if device.family == "T40F":
        operators["PixelShuffle"] = "Pixel_Shuffle"
    smallest = 4 if device.family == "TXX" else 2  # the bounds of spec/ingenic.md, section 3.2, start at 4 bits
    return Chip(
        name=device.name.lower(),
        vendor="ingenic",
        title=f"Ingenic {device.name}, digital NPU",
        activation_bits=tuple(range(smallest, 9)),
        weight_bits=tuple(range(smallest, 9)),
        rounding="tround",
        operators=operators,
        source="vendor training kit and manual, spec/ingenic.md",
    )


CHIPS = tuple(_chip(device) for device in DEVICES.values())
"""One description a target."""

"""Ingenic NPUs T02, T40, T41, A1, X2500, Txx, Xs1, Xs2: what their training operators compute.

The operators keep the vendor's names and arguments, and exchange its tuples `(tensor, bit, min)`.
"""

from chipfit.chips.ingenic.devices import DEVICES, Device
from chipfit.chips.ingenic.exact import weight_codes
from chipfit.chips.ingenic.operators.activations import Hsigmoid, Hswish, LeakyReLU, Linear, PReLU, ReLU, ReLU6
from chipfit.chips.ingenic.operators.attention import MILPoolAttention, Se_Block, SoftAttention
from chipfit.chips.ingenic.operators.blocks import (
    AWeight,
    Conv2d_Q,
    NOp,
    QuantizeFeature,
    QuantizeWeight,
    batchNorm2d,
    use_vendor_statistics,
)
from chipfit.chips.ingenic.operators.convolution import Conv2D
from chipfit.chips.ingenic.operators.convolution_variants import Conv1D, ConvTranspose2D, DepthwiseConv2D
from chipfit.chips.ingenic.operators.elementwise import Max, Mul, Shortcut
from chipfit.chips.ingenic.operators.embedding import Embedding
from chipfit.chips.ingenic.operators.linear import BatchNorm, FullConnected
from chipfit.chips.ingenic.operators.movement import Channel_Split, Flatten, Focus, Pixel_Shuffle, Preprocess, Route
from chipfit.chips.ingenic.operators.pooling import AdaptiveAvgpool2D, Avgpool2D, Maxpool2D, Unpool2D
from chipfit.chips.ingenic.operators.recurrent import LSTM
from chipfit.chips.ingenic.operators.roi_pooling import RoIPooling
from chipfit.chips.ingenic.targets import CHIPS as CHIPS  # found by chipfit.vendor

# Names that manuals and scripts use for the same operators.
FullyConnected = FullConnected
LeakyReLu = LeakyReLU
PReLu = PReLU
Channel_split = Channel_Split

__all__ = [
    "DEVICES",
    "LSTM",
    "AWeight",
    "AdaptiveAvgpool2D",
    "Avgpool2D",
    "BatchNorm",
    "Channel_Split",
    "Channel_split",
    "Conv1D",
    "Conv2D",
    "Conv2d_Q",
    "ConvTranspose2D",
    "DepthwiseConv2D",
    "Device",
    "Embedding",
    "Flatten",
    "Focus",
    "FullConnected",
    "FullyConnected",
    "Hsigmoid",
    "Hswish",
    "LeakyReLU",
    "LeakyReLu",
    "Linear",
    "MILPoolAttention",
    "Max",
    "Maxpool2D",
    "Mul",
    "NOp",
    "PReLU",
    "PReLu",
    "Pixel_Shuffle",
    "Preprocess",
    "QuantizeFeature",
    "QuantizeWeight",
    "ReLU",
    "ReLU6",
    "RoIPooling",
    "Route",
    "Se_Block",
    "Shortcut",
    "SoftAttention",
    "Unpool2D",
    "batchNorm2d",
    "use_vendor_statistics",
    "weight_codes",
]

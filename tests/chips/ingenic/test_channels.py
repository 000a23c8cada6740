"""Channel multiples: a warning in training, an error in files and with `strict=True`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.devices import DEVICES
from chipfit.chips.ingenic.magik.write.writer import magik_model
from chipfit.errors import ChipfitWarning, InvalidValueError, UnsupportedError
from ingenic_magik_trainingkit.QuantizationTrainingPlugin.python import ops

CHANNELS: dict[str, Callable[..., nn.Module]] = {
    "Conv2D": lambda n, **k: ops.Conv2D(n, 32, **k),
    "Conv1D": lambda n, **k: ops.Conv1D(n, 32, **k),
    "DepthwiseConv2D": ops.DepthwiseConv2D,
    "ConvTranspose2D": lambda n, **k: ops.ConvTranspose2D(n, 32, **k),
    "FullConnected": lambda n, **k: ops.FullConnected(n, 32, **k),
    "BatchNorm": ops.BatchNorm,
    "Avgpool2D": ops.Avgpool2D,
    "AdaptiveAvgpool2D": ops.AdaptiveAvgpool2D,
    "Se_Block": lambda n, **k: ops.Se_Block(n, 1, **k),
    "Mul": ops.Mul,
    "PReLU": ops.PReLU,
    "Hsigmoid": ops.Hsigmoid,
    "Hswish": ops.Hswish,
}
TARGETS = [name for name in DEVICES if name != "T02"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("operator", CHANNELS)
def test_multiples(operator: str, target: str) -> None:
    make, multiple = CHANNELS[operator], DEVICES[target].channel_multiple
    few, many = multiple // 2, multiple + multiple // 2
    what = rf"{operator if operator != 'Conv1D' else 'Conv2D'}\.(in|out)_channels"
    for count, options in ((few, {}), (few, {"strict": False}), (many, {"strict": False})):
        with pytest.warns(ChipfitWarning, match=rf"{what}: {count} channels are no multiple of {multiple}.*{target}"):
            make(count, target_device=target, **options)
    for count, options in ((many, {}), (few, {"strict": True}), (many, {"strict": True})):
        with pytest.raises(InvalidValueError, match=rf"{what}.*got {count}; allowed: multiples of {multiple}"):
            make(count, target_device=target, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ChipfitWarning)
        make(multiple, target_device=target, strict=True)


@pytest.mark.parametrize("operator", [name for name in CHANNELS if name != "Se_Block"])
def test_a_warning_comes_once(operator: str) -> None:
    with pytest.warns(ChipfitWarning, match="no multiple") as caught:
        CHANNELS[operator](8, target_device="T40")
    assert len(caught) == 1


Q8: dict[str, Any] = {"quantize": True, "weight_bitwidth": 8, "input_bitwidth": 8, "output_bitwidth": 8}
NARROW: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: ops.Conv2D(16, 32, target_device="T40", **Q8),
    "conv1d": lambda: nn.Sequential(ops.Flatten([-1, 16, 64], "T40"), ops.Conv1D(16, 32, target_device="T40", **Q8)),
    "depthwise": lambda: ops.DepthwiseConv2D(16, target_device="T40", **Q8),
    "transposed": lambda: ops.ConvTranspose2D(16, 32, target_device="T40", **Q8),
    "connected": lambda: nn.Sequential(
        ops.Maxpool2D(8, 8, 8, target_device="T40"), ops.Flatten([-1, 16], "T40"),
        ops.FullConnected(16, 32, target_device="T40", **Q8),
    ),
    "normalised": lambda: ops.BatchNorm(16, quantize=True, target_device="T40"),
    "mean": lambda: ops.Avgpool2D(16, quantize=True, target_device="T40"),
    "whole mean": lambda: ops.AdaptiveAvgpool2D(16, quantize=True, target_device="T40"),
    "squeeze": lambda: ops.Se_Block(16, 2, target_device="T40", **Q8),
    "squeeze few": lambda: ops.Se_Block(16, 8, target_device="T40", **Q8),
    "product": lambda: Product(),
}  # fmt: skip


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mul = ops.Mul(16, quantize=True, target_device="T40")

    def forward(self, x: Any) -> Any:
        return self.mul([x, x])


class After(nn.Module):
    """A first convolution that gives 16 channels, and a layer after it."""

    def __init__(self, layer: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.pre = ops.Preprocess(0, 255.0, "T40")
        self.first = ops.Conv2D(3, 16, padding=1, activation_fn=activation, first_layer=True, target_device="T40", **Q8)
        self.layer = layer

    def forward(self, image: Tensor) -> Any:
        return self.layer(self.first(self.pre(image)))


IMAGE = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255


@pytest.mark.parametrize("kind", NARROW)
def test_files_refuse_what_trains_with_a_warning(kind: str) -> None:
    with pytest.warns(ChipfitWarning, match="no multiple of 32"):
        net = After(NARROW[kind]())
    out = net(IMAGE)
    (out if isinstance(out, Tensor) else out[0]).sum().backward()
    with pytest.raises(UnsupportedError, match=r"(16|8|2) .*channels.*multiples of 32 on T40"):
        magik_model(net, IMAGE)


@pytest.mark.parametrize("activation", [ops.PReLU, ops.Hsigmoid, ops.Hswish])
def test_files_refuse_activations_of_few_channels(activation: Callable[..., nn.Module]) -> None:
    with pytest.warns(ChipfitWarning, match=f"{activation.__name__}.in_channels: 16"):
        net = After(nn.Identity(), activation(16, target_device="T40"))
    net(IMAGE)
    with pytest.raises(UnsupportedError, match=f"16 channels of {activation.__name__}"):
        magik_model(net, IMAGE)
    magik_model(After(nn.Identity()), IMAGE)  # 16 channels without them are no matter

"""Random networks of Ingenic operators: each seed gives one network and data for it."""

from __future__ import annotations

import random
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic import QuantizeFeature

SEEDS = st.integers(0, 2**40)


class Network(nn.Module):
    """Steps in a row, each fed with one or more of the features before it (counted from the end)."""

    def __init__(self, start: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([start, first])
        self.sources: list[tuple[int, ...] | None] = [None, None]

    def append(self, layer: nn.Module, sources: tuple[int, ...] | None) -> None:
        self.layers.append(layer)
        self.sources.append(sources)

    def forward(self, image: Tensor) -> Any:
        values: list[Any] = [image]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            y = layer(values[-1] if sources is None else [values[i] for i in sources])
            values.append(y[0] if isinstance(layer, ops.Channel_Split) else y)
        return values[-1]


class Maker:
    """Draws layers and data from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.target = self.pick("T40", "T41", "Txx", "Xs1")
        self.wide = self.target in ("T40", "T41")
        self.channels = 32 if self.wide else 16
        self.bits = self.pick(2, 4, 5, 8, 10) if self.wide else self.pick(4, 5, 8, 10)

    def pick(self, *choices: Any) -> Any:
        return self.rng.choice(choices)

    def common(self, activation: bool = True, **options: Any) -> dict[str, Any]:
        drawn = {
            "quantize": True,
            "weight_bitwidth": self.pick(2, 4, 8) if self.wide else self.pick(4, 8),
            "input_bitwidth": self.bits,
            "output_bitwidth": self.bits,
            "clip_max_value": self.pick(1.0, 2.5, 4.0, 6.0),
            "weight_factor": self.pick(1.0, 3.0),
            "target_device": self.target,
            "auto_bitwidth": False,
            "enable_batch_norm": self.pick(True, False),
            "enable_bias": self.pick(True, False),
            "auto_threshold": self.pick(True, False, False),
        }
        return {**drawn, **options, **({"activation_fn": self.activation()} if activation else {})}

    def activation(self, channels: int | None = None) -> nn.Module | None:
        c = channels or self.channels
        choices = [None, ops.ReLU6(self.target), ops.Linear(self.target), ops.LeakyReLU(0.1, self.target)]
        choices += [ops.PReLU(c, self.target), ops.Hsigmoid(c, target_device=self.target), ops.Hswish(c, self.target)]
        return self.rng.choice(choices)

    def filled(self, layer: nn.Module) -> nn.Module:
        """Parameters and running statistics away from their defaults, some gains below 0.01."""
        with torch.no_grad():
            for name, tensor in layer.state_dict().items():
                if not tensor.is_floating_point() or name.endswith("clip_max_value"):
                    continue
                drawn = torch.randn(tensor.shape, generator=self.generator)
                tensor.copy_(drawn.abs() * 0.3 + 0.01 if name.endswith("running_var") else drawn * 0.4)
        return layer

    def image(self, batch: int, channels: int, mean: float, var: float) -> Tensor:
        size = (batch, channels, 8, self.size)
        return (torch.randint(0, 256, size, generator=self.generator) - mean) / var

    def start(self) -> tuple[Network, Tensor, Tensor]:
        """Preprocess, and a first convolution on pixels or a first normalisation on real numbers."""
        mean, var = self.pick((0, 255.0), (0, 1.0), (128, 128.0), (104, 57.375))
        self.size = self.pick(6, 8)
        start = ops.Preprocess(mean, var, self.target)
        options = self.common(first_layer=True, padding=self.pick(0, 1), stride=self.pick(1, 1, 2))
        channels = 3
        if self.pick(True, False, False):
            channels = self.channels
            options = {
                "quantize": True,
                "clip_max_value": self.pick(1.0, 4.0),
                "auto_threshold": self.pick(True, False),
            }
            first: nn.Module = ops.BatchNorm(
                channels, self.activation(), first_layer=True, target_device=self.target, **options
            )
        elif self.pick(True, False, False):
            first = ops.Conv2D(12, self.channels, is_focus=True, **options)
        else:
            first = ops.Conv2D(channels, self.channels, kernel_h=self.pick(1, 3), **options)
        net = Network(start, self.filled(first))
        return net, *(self.image(n, channels, mean, var) for n in (2, 5))

    def step(self, y: Any, shapes: list[Any]) -> tuple[nn.Module, tuple[int, ...] | None]:
        """A layer for the feature at hand, and which features it reads."""
        shape, pick, t = tuple(y[0].shape), self.pick, {"target_device": self.target}
        c = shape[1]
        twins = [i for i, other in enumerate(shapes) if other == (shape, y[1], y[2] < 0)]
        partner = self.rng.choice(twins) if twins else -1
        mean = {"quantize": True, **t}
        if len(shape) == 2:
            return self.filled(ops.FullConnected(c, self.channels, **self.common())), None
        names = ("conv", "conv", "dw", "bn", "max", "avg", "unpool", "shortcut", "shortcut", "mul", "largest", "route")
        name = pick(*names, "route", "transpose", "se", "split", "gap", "flatten", "shuffle", "shuffle", "dilated")
        if name == "dw":
            return self.filled(
                ops.DepthwiseConv2D(c, padding=pick(0, 1), kernel_w=pick(1, 2, 3), **self.common())
            ), None
        if name == "bn":
            return self.filled(ops.BatchNorm(c, self.activation(c), True, clip_max_value=pick(1.0, 3.0), **t)), None
        if name == "max":
            return ops.Maxpool2D(pick(2, 3), 2, pick(1, 2), pick(0, 1), **t), None
        if name == "avg":
            return ops.Avgpool2D(c, pick(2, 3), 2, pick(1, 2), pick(0, 1), **mean), None
        if name == "unpool":
            return ops.Unpool2D(2, pick(1, 2), pick("zero", "nearest"), quantize=pick(True, False), **t), None
        if name == "shortcut":
            options = {"output_bitwidth": y[1], "clip_max_value": pick(1.0, 2.0), "quantize": True}
            return ops.Shortcut(c, ops.ReLU6(self.target), **options, **t), (-1, partner)
        if name == "mul":
            return ops.Mul(c, **mean), (-1, partner)
        if name == "largest":
            return ops.Max(self.target), (-1, partner)
        if name == "route":
            return ops.Route(self.target), (-1, partner)
        if name == "transpose":
            return self.filled(ops.ConvTranspose2D(c, self.channels, **self.common())), None
        if name == "se":
            options = {key: value for key, value in self.common(False).items() if not key.startswith("auto_")}
            return self.filled(ops.Se_Block(c, 1, **options)), None
        if name == "split" and c >= 64:
            return ops.Channel_Split([32, c - 32], **t), None
        if name == "gap":
            return ops.AdaptiveAvgpool2D(c, pick(True, False), **mean), None
        if name == "flatten":
            return ops.Flatten([-1, c * shape[2] * shape[3]], self.target), None
        if name == "shuffle" and self.wide and c % 128 == 0:
            return ops.Pixel_Shuffle(2, self.target), None
        options = self.common(stride=pick(1, 1, 2), padding=pick(0, 1, 1), kernel_h=pick(1, 2, 3))
        if self.wide and name == "dilated":
            options["dilation"] = 2
        if self.wide and c >= 64 and pick(True, False):
            return self.filled(ops.Conv2D(c, 64, groups=2, **{**options, "activation_fn": self.activation(64)})), None
        return self.filled(ops.Conv2D(c, self.channels, **options)), None


def described(y: Any) -> tuple[Any, ...]:
    return tuple(y[0].shape), y[1], y[2] < 0


def grow(maker: Maker, net: Network, example: Tensor) -> None:
    """Add a layer that takes the shapes at hand."""
    outputs: list[Any] = []
    handles = [layer.register_forward_hook(lambda _, __, y: outputs.append(y)) for layer in net.layers]
    with torch.no_grad():
        net.eval()(example)
    for handle in handles:
        handle.remove()
    outputs = [y[0] if isinstance(y, list) else y for y in outputs]
    shapes = [described(y) if len(y) == 3 else None for y in outputs]
    for _ in range(20):
        layer, sources = maker.step(outputs[-1], shapes)
        if sources is not None:  # positions among the values, of which the image is the first
            sources = tuple(i if i < 0 else i + 1 for i in sources)
        net.append(layer, sources)
        try:
            with torch.no_grad():
                y = net.eval()(example)
            if 0 < y[0].numel() <= 40_000:
                return
        except (RuntimeError, ValueError):  # this layer does not take this shape: another
            pass
        del net.layers[-1]
        del net.sources[-1]


def finish(maker: Maker, net: Network, example: Tensor) -> None:
    """A last layer, whose output is real numbers unless it is told to quantise."""
    with torch.no_grad():
        y = net.eval()(example)
    c, options = y[0].shape[1], maker.common(last_layer=True, auto_threshold=False)
    options["activation_fn"] = maker.pick(
        None, ops.Hsigmoid(2), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.PReLU(10), ops.Hswish(2)
    )
    if y[0].dim() == 2:
        net.append(maker.filled(ops.FullConnected(c, 10, **options)), None)
    else:
        last = {"kernel_h": 1, "kernel_w": 1, "quantize_last_feature": maker.pick(True, False)}
        net.append(maker.filled(ops.Conv2D(c, 10, **options, **last)), None)


def draw(seed: int, ends: bool = True) -> tuple[Network, Tensor, Tensor]:
    """A random network, an example and a batch, its means as they are before they saw data; `ends` lets it end."""
    maker = Maker(seed)
    net, example, more = maker.start()
    for _ in range(maker.rng.randint(2, 6)):
        grow(maker, net, example)
    if ends and maker.pick(True, False):
        finish(maker, net, example)
    for layer in net.modules():
        if hasattr(layer, "signed") and not isinstance(layer, QuantizeFeature):
            layer.signed = False
    return net, example, more

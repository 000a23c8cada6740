"""Random plain networks of torch.nn, for conversion tests: each seed gives one network and a batch for it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Any, list[Any]], Any]
"""Computes the next value from the network and all values so far."""

_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.Hardswish,
    nn.Hardsigmoid,
    lambda: nn.LeakyReLU(0.125),
    lambda: nn.Hardtanh(0.0, 1.5),
    nn.PReLU,
)
_OTHERS = (nn.Sigmoid, nn.Tanh, nn.SiLU, nn.GELU, nn.ELU, lambda: nn.Hardtanh(-1.0, 1.0))
"""What the chips do not have."""


class PlainNetwork(nn.Module):
    """A random network.

    Args:
        seed: The same seed gives the same network.
        simple: Only what every Ingenic target has: 3x3 convolutions with border 1, ReLU, 2x2 maxima, linear layers.
        steps: How many operations after the first.
    """

    def __init__(self, seed: int, simple: bool = False, steps: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.random, self.simple = random.Random(seed), simple
        self.layers, self.steps = nn.ModuleList(), list[Step]()
        rank = 4 if simple else self.random.choice((4, 4, 4, 3, 2))
        channels = self.random.choice((1, 2, 3, 4, 8))
        sizes = [self.random.randint(5, 9) for _ in range(rank - 2)]
        kind = self.random.choice(("normal", "positive", "pixels", "signed pixels"))
        x = torch.randn(6, channels, *sizes)
        x = {"normal": x, "positive": x.abs(), "pixels": x, "signed pixels": x}[kind]
        if "pixels" in kind:
            x = torch.randint(256, x.shape).float()
            x = x / 255 if kind == "pixels" else (x - 128) / 128
        self.example = x
        values: list[Any] = [x]
        self.told: list[str] = [f"{kind} {tuple(x.shape)}"]
        makers = [self._weighted, self._weighted, self._weighted, self._activated]
        if not simple:
            makers += [self._activated, *[self._binary] * 3, self._number, self._moved, self._pooled]
        else:
            makers += [self._pooled, self._binary]
        self.eval()
        for i in range(steps + 1):
            made = None
            while made is None:
                made = self._weighted(values) if i == 0 else self.random.choice(makers)(values)
                if made is None:
                    continue
                name, step = made
                with torch.no_grad():
                    result = step(self, values)
                if not isinstance(result, Tensor) or result.numel() < 6 or result.numel() > 20000:
                    made = None  # nothing is left, or too much
            self.told.append(f"{name} -> {tuple(result.shape)}")
            self.steps.append(step)
            values.append(result)
        self.ends = self.random.random()

    def forward(self, x: Tensor) -> Any:
        """Run the steps."""
        values: list[Any] = [x]
        for step in self.steps:
            values.append(step(self, values))
        return values[-1] if self.ends < 0.8 else (values[-1], values[-2])

    def extra_repr(self) -> str:
        """Say what the steps are."""
        return "\n".join(self.told)

    def _pick(self, values: list[Any]) -> int:
        """Mostly the last value, now and then an older one."""
        last = len(values) - 1
        return last if self.random.random() < 0.8 else self.random.randrange(min(1, last), last + 1)

    def _layer(self, layer: nn.Module, source: int) -> Step:
        self.layers.append(layer.eval())
        place = len(self.layers) - 1
        return lambda net, values: net.layers[place](values[source])

    def _weighted(self, values: list[Any]) -> tuple[str, Step] | None:
        """A layer with weights, with or without a batch norm and an activation behind it."""
        rng, source = self.random, self._pick(values)
        shape = tuple(values[source].shape)
        channels, flat = shape[1], len(shape) - 2
        out = rng.choice((2, 4, 6, 8))
        bias = rng.random() < 0.6
        layer: nn.Module
        if self.simple:
            if flat == 0 or rng.random() < 0.15:
                if flat:
                    return "flatten", self._layer(nn.Flatten(), source)
                layer = nn.Linear(channels, out, bias=bias)
            else:
                layer = nn.Conv2d(channels, out, 3, rng.choice((1, 1, 2)), 1, bias=bias)
        elif flat == 0 or (flat == 1 and rng.random() < 0.2):
            layer = nn.Linear(shape[-1], out, bias=bias)
        else:
            kernel = tuple(rng.randint(1, 4) for _ in range(flat))
            stride = tuple(rng.choice((1, 1, 1, 2, 3)) for _ in range(flat))
            padding: Any = tuple(rng.randint(0, k) for k in kernel)
            dilation = rng.choice((1, 1, 1, 1, 2))
            groups = rng.choice([g for g in range(1, channels + 1) if channels % g == 0])
            groups = rng.choice((1, 1, groups, channels))
            out = channels if groups == channels else groups * rng.choice((1, 2, 3)) if groups > 1 else out
            if rng.random() < 0.15:
                stride, padding = (1,) * flat, rng.choice(("same", "valid"))
            if flat == 2 and rng.random() < 0.2:
                extra = tuple(rng.randrange(max(s, dilation)) for s in stride)
                padding = tuple(rng.randint(0, k - 1) for k in kernel)
                layer = nn.ConvTranspose2d(channels, out, kernel, stride, padding, extra, groups, bias, dilation)
            else:
                layer = (nn.Conv1d, nn.Conv2d)[flat - 1](channels, out, kernel, stride, padding, dilation, groups, bias)
        try:
            with torch.no_grad():
                after = layer.eval()(values[source])
        except RuntimeError:
            return None  # the kernel does not fit
        if not after.numel():
            return None
        parts = [layer]
        if after.dim() in (2, 3, 4) and rng.random() < 0.5:
            parts.append(self._norm(after))
        if rng.random() < 0.6:
            parts.append(self._activation())
        return " ".join(map(str, parts)), self._layer(nn.Sequential(*parts) if len(parts) > 1 else layer, source)

    def _norm(self, x: Tensor) -> nn.Module:
        """A batch norm; some gains are negative or tiny, some have no parameters, a few no statistics."""
        rng = self.random
        kind = nn.BatchNorm2d if x.dim() == 4 else nn.BatchNorm1d
        norm = kind(x.shape[1], affine=rng.random() < 0.85, track_running_stats=self.simple or rng.random() < 0.95)
        with torch.no_grad():
            if norm.running_mean is not None:
                norm.running_mean.copy_(x.movedim(1, 0).flatten(1).mean(1) + 0.1 * torch.randn(x.shape[1]))
                norm.running_var.copy_(x.movedim(1, 0).flatten(1).var(1) + 0.1 * torch.rand(x.shape[1]) + 0.25)
            if norm.affine:
                norm.weight.copy_(torch.randn(x.shape[1]) if rng.random() < 0.5 else 0.5 + torch.rand(x.shape[1]))
                if rng.random() < 0.15:
                    norm.weight[0] = 0.005 * rng.choice((0, 1, -1))
                norm.bias.copy_(0.3 * torch.randn(x.shape[1]))
        return norm

    def _activation(self) -> nn.Module:
        if self.simple:
            return nn.ReLU()
        return self.random.choice(_OTHERS if self.random.random() < 0.12 else _ACTIVATIONS)()

    def _activated(self, values: list[Any]) -> tuple[str, Step]:
        layer = self._activation()
        return str(layer), self._layer(layer, self._pick(values))

    def _binary(self, values: list[Any]) -> tuple[str, Step] | None:
        """A sum, product, maximum or concatenation of two values."""
        rng = self.random
        a = len(values) - 1
        kind = "cat" if self.simple else rng.choice(("add", "add", "mul", "cat", "maximum", "sub", "gate", "alpha"))
        shape = tuple(values[a].shape)
        if kind == "gate":
            if len(shape) != 4:
                return None
            self.layers.append(nn.Conv2d(shape[1], shape[1], 1).eval())
            place = len(self.layers) - 1
            squash = rng.choice((torch.sigmoid, F.hardsigmoid))
            return kind, lambda net, v: v[a] * squash(net.layers[place](v[a].mean((2, 3), keepdim=True)))
        others = [
            i
            for i, x in enumerate(values[1:a], 1)
            if tuple(x.shape) == shape or (kind == "cat" and x.dim() == len(shape) and x.shape[2:] == shape[2:])
        ]
        b = rng.choice(others) if others else a
        if b == a:
            # A branch that keeps the shape makes a residual connection.
            if len(shape) != 4:
                return None
            self.layers.append(nn.Conv2d(shape[1], shape[1], 3, padding=1).eval())
            place = len(self.layers) - 1
            other: Step = lambda net, v: net.layers[place](v[a])  # noqa: E731
        else:
            other = lambda net, v: v[b]  # noqa: E731
        functions: dict[str, Step] = {
            "add": lambda net, v: v[a] + other(net, v),
            "sub": lambda net, v: v[a] - other(net, v),
            "alpha": lambda net, v: torch.add(v[a], other(net, v), alpha=2),
            "mul": lambda net, v: v[a] * other(net, v),
            "cat": lambda net, v: torch.cat([v[a], other(net, v)], 1),
            "maximum": lambda net, v: torch.maximum(v[a], other(net, v)),
        }
        return f"{kind} {a} {b}", functions[kind]

    def _number(self, values: list[Any]) -> tuple[str, Step]:
        source = self._pick(values)
        functions: list[tuple[str, Step]] = [
            ("x * 2 + 1", lambda net, v: v[source] * 2 + 1),
            ("x / 3", lambda net, v: v[source] / 3),
            ("-x", lambda net, v: -v[source]),
            ("x - 0.5", lambda net, v: v[source] - 0.5),
            ("1 - x", lambda net, v: 1 - v[source]),
            ("0.25 * x", lambda net, v: 0.25 * v[source]),
            ("x * -1.5", lambda net, v: v[source] * -1.5),
        ]
        return self.random.choice(functions)

    def _moved(self, values: list[Any]) -> tuple[str, Step] | None:
        rng, source = self.random, self._pick(values)
        shape = tuple(values[source].shape)
        channels, rank = shape[1], len(shape)
        choices: list[tuple[str, Step]] = [
            ("dropout", self._layer(nn.Dropout(0.3), source)),
            ("flatten", lambda net, v: v[source].flatten(1)),
            ("F.dropout", lambda net, v: F.dropout(v[source], 0.2, net.training)),
            ("slice", lambda net, v: v[source][:, : max(1, channels // 2)]),
            ("view", lambda net, v: v[source].view(v[source].size(0), channels, -1)),
        ]
        if channels % 2 == 0:
            choices += [
                ("chunk", lambda net, v: v[source].chunk(2, 1)[0]),
                ("split", lambda net, v: sum_of(v[source].split(channels // 2, 1))),
                ("swapped", lambda net, v: torch.cat(v[source].chunk(2, dim=1)[::-1], 1)),
            ]
        if rank == 4:
            choices += [
                ("pad", lambda net, v: F.pad(v[source], (1, 0, 2, 1))),
                ("permute", lambda net, v: v[source].permute(0, 1, 3, 2)),
                ("upsample", lambda net, v: F.interpolate(v[source], scale_factor=2, mode="nearest")),
                ("nhwc", lambda net, v: v[source].permute(0, 2, 3, 1)),
            ]
            if channels % 4 == 0:
                choices += [("shuffle", lambda net, v: F.pixel_shuffle(v[source], 2))] * 2
        if rank == 3:
            choices.append(("transpose", lambda net, v: v[source].transpose(1, 2)))
        return rng.choice(choices)

    def _pooled(self, values: list[Any]) -> tuple[str, Step] | None:
        rng, source = self.random, self._pick(values)
        shape = tuple(values[source].shape)
        flat = len(shape) - 2
        if flat == 0:
            return None
        if self.simple:
            if min(shape[2:]) < 2:
                return None
            kind = rng.choice(("max", "mean", "upsample"))
            if kind == "upsample":
                return kind, self._layer(nn.Upsample(scale_factor=2), source)
            layer: nn.Module = nn.MaxPool2d(2) if kind == "max" else nn.AdaptiveAvgPool2d(1)
            return str(layer), self._layer(layer, source)
        if rng.random() < 0.25:
            dims = tuple(range(2, len(shape)))
            keep = rng.random() < 0.5
            return f"mean keepdim={keep}", lambda net, v: v[source].mean(dims, keepdim=keep)
        kernel, stride = rng.randint(1, 3), rng.choice((1, 2, 3))
        options: dict[str, Any] = {"padding": rng.randint(0, kernel // 2), "ceil_mode": rng.random() < 0.4}
        if min(shape[2:]) + 2 * options["padding"] < kernel:
            return None
        kinds: list[tuple[Any, ...]] = [
            (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
            (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        ]
        most, mean, adaptive_mean, adaptive_most = kinds[flat - 1]
        made = rng.choice(
            (
                lambda: most(kernel, stride, **options),
                lambda: mean(kernel, stride, **options),
                lambda: adaptive_mean(rng.choice((1, 2))),
                lambda: adaptive_most(rng.choice((1, 2))),
            )
        )()
        return str(made), self._layer(made, source)


def sum_of(parts: Any) -> Any:
    """The sum of the parts of a tensor."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total

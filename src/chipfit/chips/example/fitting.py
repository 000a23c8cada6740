"""How a network of NPU layers is fitted to data: an exponent for each tensor, from what passes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.arithmetic.grid import power_of_two_scale
from chipfit.chips.example.arithmetic import HIGHEST, LOWEST, activation_codes
from chipfit.chips.example.layers import NpuLayer
from chipfit.fit.collect import Sample, run_batches
from chipfit.fit.contract import BiasTarget, CalibrationRequest, Fitting, Looked, ScaleChoice
from chipfit.fit.methods import only_zeros, power_of_two_range, sqnr
from chipfit.modes import kept_modes, set_mode


def _layers(model: nn.Module) -> dict[str, Any]:
    named = {name or type(model).__name__: module for name, module in model.named_modules()}
    return {name: module for name, module in named.items() if isinstance(module, NpuLayer)}


def _calibrate(model: nn.Module, loader: Iterable[Any], request: CalibrationRequest) -> list[ScaleChoice]:
    """Watch every layer's tensors in float, choose all exponents, then set them."""
    layers, sample = _layers(model), Sample()
    names = {layer: name for name, layer in layers.items()}

    def keep(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for tensor, value in zip(layer.tensors, (*inputs, output), strict=True):
            sample.keep(names[layer], tensor, value)

    with ExitStack() as hooks, _float_view(model), torch.no_grad():
        for layer in names:
            hooks.callback(layer.register_forward_hook(keep).remove)
        for _ in run_batches(model, loader, request.batches):
            pass
    seen = [(name, tensor, values) for name in layers for tensor, values in sample.values(name).items()]
    choices = [_choice(name, tensor, values, request, layers[name]) for name, tensor, values in seen]
    for choice in choices:
        getattr(layers[choice.layer], f"{choice.tensor}_exponent").fill_(round(math.log2(choice.scale)))
    return choices


def _choice(name: str, tensor: str, values: Tensor, request: CalibrationRequest, layer: NpuLayer) -> ScaleChoice:
    if only_zeros(values):  # they determine no scale: the one in force stays
        scale = 2.0 ** int(getattr(layer, f"{tensor}_exponent"))
        return ScaleChoice(name, tensor, 0.0, 128 / scale, scale, math.inf)
    io_max = power_of_two_range(values, 8, request.method, request.percentile, f"{name}, {tensor}")
    scale = power_of_two_scale(io_max, 8)
    on_grid = activation_codes(values, round(math.log2(scale))) / scale
    return ScaleChoice(name, tensor, values.abs().max().item(), io_max, scale, sqnr(values, on_grid))


@contextmanager
def _float_view(model: nn.Module) -> Iterator[None]:
    with kept_modes(model):
        set_mode(model.eval(), "float")
        yield


def _bias_targets(model: nn.Module) -> dict[str, BiasTarget]:
    return {
        name: BiasTarget(layer, layer.bias, -1 if isinstance(layer, nn.Linear) else -3)
        for name, layer in _layers(model).items()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.mode != "float"
    }


def _look(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Looked | None:
    step = 2.0 ** -int(getattr(layer, "y_exponent", 0))
    return Looked(output, LOWEST * step, HIGHEST * step, 256, -1 if isinstance(layer, nn.Linear) else 1)


FITTING = Fitting(
    calibrate=_calibrate, float_view=_float_view, compared=_layers, bias_targets=_bias_targets, look=_look
)

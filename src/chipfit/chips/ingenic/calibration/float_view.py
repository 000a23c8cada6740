"""An Ingenic network with its quantisers taken out, to see what it would compute without rounding and clipping.

In mode 'float' a layer's activation has no bound of its own and its weights are not stretched. This room lets a
network of quantised layers run without rounding and clipping whatever its mode, and puts anything in the place of a
layer's division by its clip, for as long as a `with` block lasts. In mode 'float' the borders are zero here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from chipfit.chips.ingenic.operators.blocks import (
    QuantizeFeature,
    QuantizeWeight,
    batchNorm2d,
    held_weight,
    weight_gain,
)
from chipfit.chips.ingenic.operators.bridges import ToFeature
from chipfit.chips.ingenic.operators.elementwise import Max, Mul, Shortcut
from chipfit.chips.ingenic.operators.layer import WeightedLayer
from chipfit.chips.ingenic.operators.pooling import AdaptiveAvgpool2D, Avgpool2D
from chipfit.errors import UnsupportedError
from chipfit.fit.collect import first_tensor
from chipfit.modes import kept_modes, set_mode

Divide = Callable[[str, nn.Module, Tensor], Tensor]
"""What stands for a quantiser's rounding: layer name, layer, activated value; gives the normalised value."""


def quantised_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Ingenic layers of a network that quantise their output by a clip, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (Mul, Avgpool2D, AdaptiveAvgpool2D)):
            continue  # they do not divide
        quantiser = getattr(module, "QuantizeFeature", None)
        on = getattr(module, "quantizes_output", getattr(module, "quantize", False))
        bits = getattr(quantiser, "bits", 32)
        if isinstance(module, Shortcut):  # on Txx the width is that of the inputs
            bits = 8 if module.device.family == "TXX" else module.output_bitwidth
        if isinstance(quantiser, QuantizeFeature) and on and bits < 32:
            found[name or type(module).__name__] = module
    return found


def quantiser_of(layer: nn.Module) -> QuantizeFeature:
    """The quantiser of the output of one of `quantised_layers`."""
    return cast(QuantizeFeature, layer.QuantizeFeature)


def clip_of(layer: nn.Module) -> float:
    """What a layer divides its output by."""
    if isinstance(layer, Shortcut):
        return layer.divisor
    return float(quantiser_of(layer).clip_max_value)


def set_clip(layer: nn.Module, clip: float) -> None:
    """Set what a layer divides its output by."""
    if isinstance(layer, Shortcut):
        if layer.device.family != "TXX":
            layer.clip_max_value = min(clip, 2.0)  # beyond by rounding alone: calibration sees to it
        return
    quantiser = quantiser_of(layer)
    if isinstance(quantiser.clip_max_value, Tensor):
        with torch.no_grad():
            quantiser.clip_max_value.fill_(clip)
    else:
        quantiser.clip_max_value = clip
    if isinstance(getattr(layer, "clip_max_value", None), float):
        setattr(layer, "clip_max_value", clip)  # noqa: B010  # BatchNorm keeps a copy, which torch's typing cannot know


def bounds_of(layer: nn.Module, from_float: bool) -> tuple[float, float]:
    """Between what a layer's activation keeps its output.

    Args:
        layer: One of `quantised_layers`.
        from_float: Whether the weights are those of a float network. Otherwise a clip that was not calibrated was
            trained with, and is part of the network's function.
    """
    if isinstance(layer, Shortcut):
        return -math.inf, math.inf
    trained = not (from_float or quantiser_of(layer).calibrated)
    ceiling = clip_of(layer) if trained or is_gate(layer) else getattr(layer, "ceiling", math.inf)
    return -ceiling if quantiser_of(layer).signed else 0.0, ceiling


def is_gate(layer: nn.Module) -> bool:
    """Whether the layer gives values from 0 to 1 by its nature, so that its clip is not for calibration to choose."""
    return isinstance(layer, (WeightedLayer, ToFeature)) and bool(layer.QuantizeFeature.gate)


def inner_of(layer: nn.Module) -> Any:
    """The convolution or matrix product inside a layer with weights; None for any other module."""
    return getattr(layer, "Conv2d", None) or getattr(layer, "Linear", None)


def weight_quantiser(layer: nn.Module) -> QuantizeWeight | None:
    """The quantiser of a layer's weight; None where there is nothing to quantise."""
    quantiser = getattr(inner_of(layer) or layer, "QuantizeWeight", None)
    return quantiser if isinstance(quantiser, QuantizeWeight) and quantiser.bits < 32 else None


def norm_of(layer: nn.Module) -> batchNorm2d | None:
    """Batch normalisation of a layer with weights."""
    norm = getattr(layer, "BatchNorm2d", None) or getattr(layer, "BatchNorm1d", None)
    return norm if isinstance(norm, batchNorm2d) else None


def _refuse_built(model: nn.Module) -> Callable[[nn.Module, Any], None]:
    """A hook that refuses sums and means which forward builds: nothing outside forward can take their rounding out."""
    known = set(model.modules())

    def refuse(module: nn.Module, _: Any) -> None:
        if isinstance(module, (Avgpool2D, AdaptiveAvgpool2D, Mul, Shortcut, Max)) and module not in known:
            raise UnsupportedError(
                "an operator that computes is built inside forward, where calibration does not reach it",
                given=type(module).__name__,
                where="calibrate",
                hint="Build it in __init__; Preprocess, Route and what else only moves data may stay.",
            )

    return refuse


@contextmanager
def float_arithmetic(
    model: nn.Module,
    divide: Divide | None = None,
    from_float: bool = False,
) -> Iterator[None]:
    """Let a network of Ingenic layers compute in float, normalisation by the clips included; in evaluation.

    Args:
        model: The network; restored on leaving.
        divide: What to do in place of rounding; by default divide by the layer's clip.
        from_float: Whether weights and batch norms are those of a float network. Otherwise the batch norms stand behind
            quantised weights, which the quantiser has stretched, and so are the weights here.
    """
    layers = {module: name for name, module in quantised_layers(model).items()}
    divide = divide or (lambda name, layer, value: value / clip_of(layer))
    training = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        for module, flag in training:
            stack.callback(setattr, module, "training", flag)
        model.eval()
        stack.callback(register_module_forward_pre_hook(_refuse_built(model)).remove)
        for module in model.modules():
            if isinstance(module, (WeightedLayer, Avgpool2D, AdaptiveAvgpool2D, Mul, Shortcut)):
                _set(stack, module, "quantize", False)
            if isinstance(module, (Mul, Shortcut)):
                _set(stack, module, "quantizes_output", False)
            if isinstance(module, WeightedLayer):
                quantiser = weight_quantiser(module)
                if quantiser is not None:
                    as_it_is = from_float or quantiser.nearest or quantiser.laid_open or norm_of(module) is None
                    _set(stack, quantiser, "forward", (_held if as_it_is else _stretching)(quantiser))
            elif isinstance(getattr(module, "QuantizeWeight", None), QuantizeWeight) and not isinstance(
                module, (nn.Conv2d, nn.Linear)
            ):
                _set(stack, module.QuantizeWeight, "forward", _held(cast(QuantizeWeight, module.QuantizeWeight)))
            if module in layers:
                name = layers[module]
                if isinstance(module, Shortcut):
                    # First, so that whoever else watches the layer sees what it gives.
                    handle = module.register_forward_hook(_after_shortcut(name, divide), prepend=True)
                    stack.callback(handle.remove)
                else:
                    _set(stack, module.QuantizeFeature, "forward", _activating(name, module, from_float, divide))
        yield


@contextmanager
def float_view(model: nn.Module) -> Iterator[None]:
    """Let a calibrated network compute as the float network that it was calibrated as, whatever its mode.

    One that was calibrated in mode 'float', as a converted network is, has borders of zero, as torch has; one that is
    written with the chip's layers has the chip's, which on the T40 family are -1 for a signed feature.
    """
    with kept_modes(model):
        if has_zero_borders(model):
            set_mode(model, "float")
        with float_arithmetic(model):
            yield


def has_zero_borders(model: nn.Module) -> bool:
    """Whether the float network has borders of zero: it is in mode 'float', or was when it was calibrated."""
    layers = quantised_layers(model).values()
    return any(quantiser_of(layer).zero_borders or quantiser_of(layer).floating for layer in layers)


def _set(stack: ExitStack, module: Any, name: str, value: Any) -> None:
    """Set an attribute until the stack unwinds."""
    if name in vars(module):
        stack.callback(setattr, module, name, vars(module)[name])
    else:
        stack.callback(delattr, module, name)
    setattr(module, name, value)


def _held(quantiser: QuantizeWeight) -> Callable[[Tensor], Tensor]:
    return lambda weight: held_weight(weight, quantiser)


def _stretching(quantiser: QuantizeWeight) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight / weight_gain(weight, quantiser)


def _activating(name: str, layer: nn.Module, from_float: bool, divide: Divide) -> Callable[[Tensor], Tensor]:
    # The bounds are read when the value comes: some layers learn from it whether they are signed.
    return lambda x: divide(name, layer, x.clamp(*bounds_of(layer, from_float)))


def _after_shortcut(name: str, divide: Divide) -> Callable[..., Any]:
    def hook(layer: nn.Module, inputs: Any, output: Any) -> Any:
        y = divide(name, layer, first_tensor(output))
        return y if isinstance(output, Tensor) else (y, *output[1:])

    return hook

"""How networks of Witmem layers are fitted to data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from chipfit.chips.witmem.array.layers import ArrayLayer
from chipfit.chips.witmem.calibration import calibrate
from chipfit.chips.witmem.chaining import chain_scales
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.digital.activations import WitinPReLU
from chipfit.chips.witmem.gru.base import GruLayer
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.chips.witmem.layer_report import layer_reports
from chipfit.chips.witmem.plan.biases import biases
from chipfit.fit.collect import first_tensor
from chipfit.fit.contract import Balance, BiasTarget, Equalising, Fitting, Looked
from chipfit.modes import kept_modes, set_mode


@contextmanager
def _float_view(model: nn.Module) -> Iterator[None]:
    with kept_modes(model):
        set_mode(model.eval(), "float")
        yield


def _named(model: nn.Module) -> dict[str, nn.Module]:
    return {name or type(model).__name__: module for name, module in model.named_modules()}


def _compared(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in _named(model).items() if isinstance(module, WitinLayer)}


def _channel_dim(layer: ArrayLayer) -> int:
    """Dimension of the channels in an output."""
    return -1 - len(getattr(layer, "kernel_size", ()))  # a linear layer has none


def _bias_targets(model: nn.Module) -> dict[str, BiasTarget]:
    found = {}
    for name, layer in _named(model).items():
        if isinstance(layer, ArrayLayer) and layer.mode != "float":
            found[name] = BiasTarget(layer, layer.bias if layer.bias.requires_grad else None, _channel_dim(layer))
    return found


def _look(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Looked | None:
    """Codes of the output, negative values where the array takes none, and biases beyond the bias rows."""
    y = first_tensor(output)
    if isinstance(layer, GruLayer):
        return Looked(y, -1.0, 127 / 128, 256, -1, biases=biases(layer))
    if not isinstance(layer, WitinLayer) or "y" not in layer.observers:
        return None
    observer = layer.observers["y"]
    top = 1 << (observer.q_bit_in - 1)
    ends = -top / observer.scale, (top - 1) / observer.scale
    if not isinstance(layer, ArrayLayer):
        return Looked(y, *ends, 2 * top, None)
    spec = layer.spec_in_force()
    # Of a convolution, 9 signed bits are how the array's 8 unsigned ones are written.
    unsigned = spec.negative is HandleNegInType.FALSE and (not spec.signed_input or spec.x_bits == 9)
    return Looked(y, *ends, 2 * top, _channel_dim(layer), inputs[0] if unsigned else None, biases(layer))


def _parts(module: nn.Module) -> Balance | None:
    """A layer that clips its weights keeps them as they are."""
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)) or not isinstance(module, WitinLayer):
        return None
    free = not getattr(module, "w_clip", None)
    return Balance(module, homogeneous=free, takes_factors=free)


def _after_step(model: nn.Module) -> None:
    """Keep weights inside `w_clip` in every mode, so that none drifts beyond the code range and stays there."""
    for layer in model.modules():
        if isinstance(layer, ArrayLayer):
            layer.clip_weight()


FITTING = Fitting(
    calibrate=calibrate,
    float_view=_float_view,
    compared=_compared,
    bias_targets=_bias_targets,
    look=_look,
    equalising=Equalising(_parts, elementwise=(WitinPReLU,)),
    after_step=_after_step,
    chain=chain_scales,
    layer_reports=layer_reports,
)

"""Bias correction: quantising a weight shifts the mean of a layer's sums, and its bias can take the shift back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.fit.calibrate import fitting_of
from chipfit.fit.collect import inputs_of
from chipfit.fit.contract import BiasTarget
from chipfit.fit.quality import chip_view, float_view
from chipfit.vendor import vendor_of


@dataclass(frozen=True)
class BiasCorrection:
    """What was done to one layer.

    Args:
        layer: Its name.
        shift: Root mean square over the channels of the mean error that was found, in units of the layer's sum.
        left: The same afterwards.
        corrected: Whether a bias could take it back; a layer without one keeps its shift.
    """

    layer: str
    shift: float
    left: float
    corrected: bool


class _ReachedError(Exception):
    """Ends a forward that has shown what it was run for."""


@torch.no_grad()
def correct_bias(model: nn.Module, loader: Iterable[Any], *, batches: int | None = None) -> list[BiasCorrection]:
    """Take the mean error of each layer with weights, float against quantised, out of its bias.

    Layer by layer in the order of computation, each with the ones before it corrected already. Layers with a batch norm
    of their own have it in the norm's bias. A layer that was built without a bias keeps none. Do it once, after
    `chipfit.calibrate`: the shifts stay in the biases, so that in float the network is no longer the one before. A
    channel whose error would grow, since the chip's grid for biases is coarse, keeps its bias.

    Args:
        model: A calibrated network; its biases are changed in place.
        loader: Batches, as for `chipfit.calibrate`. They are kept, and run once a layer.
        batches: Largest number of batches to use; None for all.

    Returns:
        One entry per layer with weights, in the order of computation.

    Raises:
        CalibrationError: there is no batch.
        UnsupportedError: no layer with weights quantises.

    Source:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721),
        section 4.2, in its empirical form.

    Example:
        >>> from chipfit.fit.calibrate import calibrate
        >>> from witin_nn import WitinLayerConfig, WitinLinear
        >>> net = nn.Sequential(WitinLinear(3, 2, layer_config=WitinLayerConfig(1, use_quantization=True)))
        >>> x = torch.rand(64, 3)
        >>> _ = calibrate(net, [x])
        >>> [entry.corrected for entry in correct_bias(net, [x])]
        [True]
    """
    targets = fitting_of(vendor_of(model)).bias_targets(model)
    if not targets:
        raise UnsupportedError("no layer with weights of this network quantises", given=type(model).__name__)
    inputs = [inputs_of(batch, model) for _, batch in zip(range(batches or 1 << 62), loader, strict=False)]
    if not inputs:
        raise CalibrationError("the data is empty", where="correct_bias", hint="Give at least one batch.")
    with float_view(model):
        clean = _means(model, inputs, targets)
    done = []
    for name, mean in clean.items():
        target = {name: targets[name]}
        with chip_view(model):
            error = mean - _means(model, inputs, target)[name]
            left, bias = error, targets[name].bias
            if bias is not None:
                before = bias.clone()
                bias += error.to(bias)
                left = mean - _means(model, inputs, target)[name]
                worse = left.abs() > error.abs()
                bias.copy_(torch.where(worse, before, bias))
                left = torch.where(worse, error, left)
        done.append(BiasCorrection(name, _size(error), _size(left), bias is not None))
    return done


def _size(shift: Tensor) -> float:
    return shift.square().mean().sqrt().item()


def _means(model: nn.Module, inputs: list[tuple[Any, ...]], targets: dict[str, BiasTarget]) -> dict[str, Tensor]:
    """Mean of each target's output a channel, in the order of computation. One target alone ends the forward."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str, target: BiasTarget) -> Any:
        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = output.detach().movedim(target.dim, 0).flatten(1).double()
            sums[name] = sums[name] + rows.sum(1) if name in sums else rows.sum(1)
            counts[name] = counts.get(name, 0) + rows.shape[1]
            if len(targets) == 1:
                raise _ReachedError

        return after

    handles = [target.watched.register_forward_hook(hook(name, target)) for name, target in targets.items()]
    try:
        for batch in inputs:
            try:
                model(*batch)
            except _ReachedError:
                continue
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in sums.items()}

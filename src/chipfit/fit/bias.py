"""Bias correction: quantising a weight shifts the mean of a layer's sums, and its bias can take the shift back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.fit.calibrate import fitting_of
from chipfit.fit.collect import inputs_of, tensors_of
from chipfit.fit.contract import BiasTarget
from chipfit.fit.figures import chip_view
from chipfit.fit.quality import float_view
from chipfit.fit.ranks import anywhere, each, several, summed
from chipfit.vendor import vendor_of

_AT_ONCE = 1 << 24
"""Values of the network's input that one pass takes."""
_WORTH = 0.99
"""A correction is kept where it leaves less than this of the output's error."""


@dataclass(frozen=True)
class BiasCorrection:
    """What was done to one layer.

    Args:
        layer: Its name.
        shift: Root mean square over the channels of the mean error that was found, in units of the layer's sum.
        left: The same afterwards.
        corrected: Whether a bias took it back: not in a layer without one, nor where the output would be worse for it.
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

    Layer by layer in the order of computation, each with the ones before it corrected already, in one pass over the
    data; a layer that is called several times takes a pass of its own. Layers with a batch norm of their own have it in
    the norm's bias. A layer that was built without a bias keeps none. Do it once, after `chipfit.calibrate`: the shifts
    stay in the biases, so that in float the network is no longer the one before. A channel whose error would grow,
    since the chip's grid for biases is coarse, keeps its bias.

    The network's output decides: where its squared error against float does not shrink, only those layers are corrected
    by which it does. The network's mode makes no difference. In a process group every rank calls it with its share of
    the data, and all correct by the means and errors over all shares.

    Args:
        model: A calibrated network; its biases are changed in place.
        loader: Batches, as for `chipfit.calibrate`. They are kept.
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
        >>> _ = torch.manual_seed(1)
        >>> net = nn.Sequential(WitinLinear(3, 2, layer_config=WitinLayerConfig(1, use_quantization=True)))
        >>> x = torch.rand(64, 3)
        >>> _ = calibrate(net, [x])
        >>> [entry.corrected for entry in correct_bias(net, [x])]
        [True]
    """
    with chip_view(model):
        targets = fitting_of(vendor_of(model)).bias_targets(model)
    if not targets:
        raise UnsupportedError("no layer with weights of this network quantises", given=type(model).__name__)
    inputs = [inputs_of(batch, model) for _, batch in zip(range(batches or 1 << 62), loader, strict=False)]
    if anywhere(not inputs):
        raise CalibrationError("the data is empty", where="correct_bias", hint="Give at least one batch.")
    calls: dict[str, int] = {}
    with float_view(model):
        clean = _means(model, inputs, targets, calls)
        outputs = [tensors_of(model(*batch)) for batch in inputs]
    old = {name: bias.clone() for name in clean if (bias := targets[name].bias) is not None}
    with chip_view(model):
        before = _error(model, inputs, outputs)
        whole = None if several() else _joined(inputs)  # ranks meet after a pass, not within
        at_once = {name for name, count in calls.items() if whole is not None and count == len(inputs)}
        done = _in_one_pass(model, whole, {name: targets[name] for name in clean if name in at_once}, clean)
        for name in clean:
            if name not in done:
                done[name] = _by_itself(model, inputs, name, targets[name], clean[name])
        if not _error(model, inputs, outputs) <= _WORTH * before:
            done |= _chosen(model, inputs, outputs, {n: (targets[n].bias, v) for n, v in old.items()}, done, before)
    return [done[name] for name in clean]


def _in_one_pass(
    model: nn.Module, batch: tuple[Any, ...] | None, targets: dict[str, BiasTarget], clean: dict[str, Tensor]
) -> dict[str, BiasCorrection]:
    """Correct each layer when it has computed, and hand on what it gives then."""
    done: dict[str, BiasCorrection] = {}
    busy = False

    def hook(name: str, target: BiasTarget) -> Any:
        def after(module: nn.Module, args: Any, named: Any, output: Tensor) -> Tensor | None:
            nonlocal busy
            if busy or name in done:
                return None
            busy = True
            found = output

            def mean() -> Tensor:
                nonlocal found
                found = module(*args, **named)
                return _mean(found, target.dim)

            done[name] = _correct(name, target, clean[name], _mean(output, target.dim), mean)
            busy = False
            return found

        return after

    handles = [t.watched.register_forward_hook(hook(n, t), with_kwargs=True) for n, t in targets.items()]
    try:
        if targets and batch is not None:
            model(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return done


def _by_itself(
    model: nn.Module, inputs: list[tuple[Any, ...]], name: str, target: BiasTarget, clean: Tensor
) -> BiasCorrection:
    def mean() -> Tensor:
        return _means(model, inputs, {name: target})[name]

    return _correct(name, target, clean, mean(), mean)


def _correct(name: str, target: BiasTarget, clean: Tensor, given: Tensor, mean: Callable[[], Tensor]) -> BiasCorrection:
    """Move a bias by the mean error; a channel for which that is worse keeps its bias."""
    error = clean - given
    left, bias = error, target.bias
    if bias is not None:
        before = bias.clone()
        bias += error.to(bias)
        left = clean - mean()
        worse = left.abs() > error.abs()
        if bool(worse.any()):
            bias.copy_(torch.where(worse, before, bias))
            left = clean - mean()
    return BiasCorrection(name, _size(error), _size(left), bias is not None)


def _chosen(
    model: nn.Module,
    inputs: list[tuple[Any, ...]],
    outputs: list[list[Tensor]],
    biases: dict[str, tuple[Any, Tensor]],
    done: dict[str, BiasCorrection],
    least: float,
) -> dict[str, BiasCorrection]:
    """Keep the corrections by which the output's error shrinks, one after the other; say which were taken back."""
    wanted = {name: bias.clone() for name, (bias, _) in biases.items()}
    for bias, old in biases.values():
        bias.copy_(old)
    back = {}
    for name, (bias, old) in biases.items():
        bias.copy_(wanted[name])
        error = _error(model, inputs, outputs)
        if error <= _WORTH * least:
            least = error
        else:
            bias.copy_(old)
            back[name] = BiasCorrection(name, done[name].shift, done[name].shift, False)
    return back


def _error(model: nn.Module, inputs: list[tuple[Any, ...]], outputs: list[list[Tensor]]) -> float:
    """Squared error of the network's output, over the data of all ranks."""
    total = 0.0
    for batch, clean in zip(inputs, outputs, strict=True):
        for a, b in zip(clean, tensors_of(model(*batch)), strict=True):
            total += (a - b).double().square().sum().item()
    return summed(total)


def _joined(inputs: list[tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """All batches as one; None where they are too large or do not fit together."""
    columns = list(zip(*inputs, strict=False))
    if len(inputs) == 1:
        return inputs[0]
    fits = all(len({part.shape[1:] for part in column}) == 1 for column in columns)
    if not fits or sum(part.numel() for column in columns for part in column) > _AT_ONCE:
        return None
    return tuple(torch.cat(column) for column in columns)


def _size(shift: Tensor) -> float:
    return shift.square().mean().sqrt().item()


def _rows(output: Tensor, dim: int) -> Tensor:
    """What each channel gives, a row a channel."""
    return output.detach().movedim(dim, 0).flatten(1).double()


def _mean(output: Tensor, dim: int) -> Tensor:
    return _rows(output, dim).mean(1)


def _means(
    model: nn.Module, inputs: list[tuple[Any, ...]], targets: dict[str, BiasTarget], calls: dict[str, int] | None = None
) -> dict[str, Tensor]:
    """Mean of each target's output a channel over all ranks, in the order of computation.

    Where calls are not counted, the first target that is reached ends the forward.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(name: str, target: BiasTarget) -> Any:
        def after(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = _rows(output, target.dim)
            sums[name] = sums[name] + rows.sum(1) if name in sums else rows.sum(1)
            counts[name] = counts.get(name, 0) + rows.shape[1]
            if calls is None:
                raise _ReachedError
            calls[name] = calls.get(name, 0) + 1

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
    if several():
        sums, counts = _over_ranks(sums, counts, next(model.parameters()).device)
    return {name: total / counts[name] for name, total in sums.items()}


def _over_ranks(
    sums: dict[str, Tensor], counts: dict[str, int], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Sums and counts over all ranks, the same on each."""
    total: dict[str, Tensor] = {}
    number: dict[str, int] = {}
    for own, seen in each(({name: value.cpu() for name, value in sums.items()}, counts)):
        for name, value in own.items():
            total[name] = total[name] + value if name in total else value
            number[name] = number.get(name, 0) + seen[name]
    return {name: value.to(device) for name, value in total.items()}, number

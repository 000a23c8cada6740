"""Making up for normalisation: weights that see an input divided by something get it multiplied back.

An Ingenic layer gives its output divided by its clip. The float network and the normalised one run on the same data;
the ratio of the two inputs of a layer, channel by channel, is the factor for its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.operators.blocks import batchNorm2d
from chipfit.chips.ingenic.operators.bridges import ToTensor
from chipfit.chips.ingenic.operators.recurrent import LSTM
from chipfit.errors import UnsupportedError
from chipfit.fit.equalise import scale_inputs

_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def scaled_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose parameters depend on the unit of their input, by name."""
    inner = {id(child) for module in model.modules() if isinstance(module, batchNorm2d) for child in module.children()}
    kinds = (nn.Linear, *_Convolution, *_Transposed, *_Norm, batchNorm2d, LSTM, nn.RNNBase, ToTensor)
    return {
        name: module for name, module in model.named_modules() if isinstance(module, kinds) and id(module) not in inner
    }


def channel_dim(module: nn.Module) -> int:
    """Dimension of the input in which a module's channels lie."""
    if isinstance(module, LSTM):
        return 1 if module.use_squeeze else -1
    return -1 if isinstance(module, (nn.Linear, nn.RNNBase)) else 1


def unit_of(reference: Tensor, given: Tensor, dim: int | None, where: str, borders: bool = False) -> Tensor:
    """Factor a channel between the float network's tensor and the normalised one's.

    Args:
        reference: Of the float network.
        given: The same tensor of the normalised network.
        dim: Channel dimension; `None` for one factor.
        where: For messages.
        borders: Some layer pads with -1, whatever the unit (T40 family, signed): take medians, which do not mind.

    Returns:
        (C,), or one value where all channels agree. A channel of zeros gets the factor of the one before it.

    Raises:
        UnsupportedError: The tensors are not proportional.

    Example:
        >>> unit_of(torch.tensor([[2.0, 9.0]]), torch.tensor([[1.0, 3.0]]), 1, "fc").tolist()
        [2.0, 3.0]
    """
    a, b = (
        (t.detach().reshape(1, -1) if dim is None else t.detach().movedim(dim, 0).flatten(1)).double()
        for t in (reference, given)
    )
    power = b.square().sum(1)
    live = power > 1e-14 * power.max()  # less is what rounding leaves of a channel of zeros
    if not bool(live.any()) or not bool(a.any()):  # zeros, or what rounding left of them
        return torch.ones(1, dtype=torch.double)
    if borders:
        factor = torch.nanmedian(torch.where(b != 0, a / b, torch.nan), dim=1).values
    else:
        factor = (a * b).sum(1) / power.clamp(min=1e-300)
    whole = (factor[live] * power[live]).sum() / power[live].sum()
    if bool(((factor[live] - whole).abs() <= 1e-4 * whole.abs()).all()):
        factor = whole.view(1)
    else:
        before = torch.cummax(torch.where(live, torch.arange(len(live)), 0), 0).values
        factor = factor[torch.where(live[before], before, live.int().argmax())]
    off = (a - factor.view(-1, 1) * b).square().sum() > 1e-5 * a.square().sum()  # deep networks gather rounding
    if bool((factor <= 0).any()) or (bool(off) and not borders):
        raise UnsupportedError(
            "the clips before this layer cannot be made up for in its weights",
            given=f"factors {factor.min().item():.4g} to {factor.max().item():.4g}, not proportional",
            allowed="between the layers only what keeps proportions: pools, reshapes, concatenations",
            where=where,
            hint="Add features with Shortcut, and give activations to a layer as activation_fn.",
        )
    return factor


@torch.no_grad()
def make_up(module: nn.Module, factor: Tensor, where: str) -> None:
    """Change a module so that it gives for `x / factor` what it gave for `x`.

    Args:
        module: One of `scaled_modules`; changed in place.
        factor: Of `unit_of`.
        where: For messages.

    Raises:
        UnsupportedError: A recurrent layer of torch; its recurrence would have to change too.

    Example:
        >>> fc = nn.Linear(2, 1)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> before = fc(x)
        >>> make_up(fc, torch.tensor([4.0]), "fc")
        >>> torch.allclose(fc(x / 4), before)
        True
    """
    if bool(((factor - 1).abs() < 1e-6).all()):
        return
    if isinstance(module, LSTM):
        for suffix in module.suffixes:
            weight = getattr(module, f"weight_l0{suffix}")
            weight[:, : module.input_size] *= factor.to(weight)
    elif isinstance(module, _Transposed):
        module.weight *= factor.to(module.weight).view(-1, *[1] * (module.weight.dim() - 1))
    elif isinstance(module, (nn.Linear, *_Convolution)):
        scale_inputs(module, factor)
    elif isinstance(module, ToTensor):
        module.scale *= factor.to(module.scale)
    elif isinstance(module, (batchNorm2d, *_Norm)):
        rescale_norm(module, 1 / factor)
    else:
        raise UnsupportedError(
            "a recurrent layer of torch cannot take normalised features",
            given=type(module).__name__,
            where=where,
            hint="Use the chip's LSTM.",
        )


def gain_of(norm: batchNorm2d) -> Tensor:
    """What a batch norm multiplies each channel by in evaluation."""
    owner: Any = norm.batch_norm
    gain: Tensor = norm.aweight(owner.weight) / (owner.running_var + norm.eps).sqrt()
    return gain


@torch.no_grad()
def rescale_norm(norm: nn.Module, ratio: Tensor, offset: Tensor | None = None) -> None:
    """Change a batch norm so that it gives for `ratio * (x - offset) + offset` what it gave for `x`, in evaluation.

    Mean and variance change; the gain only where the variance cannot make up for its epsilon.
    """
    eps = norm.eps  # of a chip's batch norm its own, not that of the module inside
    norm = norm.batch_norm if isinstance(norm, batchNorm2d) else norm
    mean, variance = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or not isinstance(eps, float):
        return
    ratio = ratio.to(mean)
    start = torch.zeros_like(mean) if offset is None else offset
    wanted = (variance + eps) * ratio.square()
    mean.copy_((mean - start) * ratio + start)
    variance.copy_((wanted - eps).clamp(min=0))
    if isinstance(norm.weight, Tensor):
        norm.weight *= ((variance + eps) / wanted).sqrt().clamp(min=1)

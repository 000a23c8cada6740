"""The parts that layers are built of: weight and feature quantisers, batch normalisation, and the weighted modules.

Their names are the vendor's, since old pickled checkpoints and parameter names refer to them.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.ingenic.exact import InputCodes, exact_sum, normalise, weight_codes
from chipfit.chips.ingenic.nearest_codes import affine_image
from chipfit.chips.ingenic.operators.padding import same_pads
from chipfit.chips.ingenic.quantizers import quantize_feature, quantize_weight
from chipfit.errors import ChipfitWarning

_SMALLEST_GAMMA = 0.01


class NOp(nn.Module):
    """Identity; the vendor's kit marks places in an exported graph with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor itself."""
        return x


class AWeight(nn.Module):
    """Batch-norm gain as the chips use it, `max(gamma, 0.01)`; no gradient below.

    Source:
        spec/ingenic.md, section 1.4.

    Example:
        >>> AWeight()(torch.tensor([-1.0, 0.5]))
        tensor([0.0100, 0.5000])
    """

    def forward(self, gamma: Tensor) -> Tensor:
        """Clip a gain of any shape."""
        return gamma.clamp(min=_SMALLEST_GAMMA)


class QuantizeWeight(nn.Module):
    """Quantiser of a layer's weight; see `chipfit.chips.ingenic.quantizers.quantize_weight`.

    Args:
        bits: 2 to 8, or 32 for none.
        factor: Half-width of the clip window in deviations.
        target_device: Target whose grid is used.

    Attributes:
        sequential: Sum mean and deviation in the vendor's order, from the start; see `use_vendor_statistics`.
        floating: Do not round, in mode 'float'.
        absorbed: The batch norm behind the layer takes up what clipping does to a channel's size, so that without
            rounding the weight has to be of that size too; `chipfit.calibrate` sees to it.
        converted: The weight is that of a plain network, whose layers `chipfit.convert` made.
        nearest: The weight is held so that the quantiser gives the nearest codes of another, which counts without
            rounding; see `chipfit.chips.ingenic.nearest_codes`. `chipfit.calibrate` sees to it.
        excess: With `nearest`, what the peaks clip of that other weight; None for nothing.
        laid_open: During calibration, that the weight lies as the other one: it is to become `nearest` ('float',
            'trained'), or was ('vendor').
    """

    floating = absorbed = converted = nearest = False  # also for what old pickled checkpoints hold
    excess: Tensor | None = None
    laid_open: str | None = None
    sequential = True

    def __init__(self, bits: int, factor: float, target_device: str) -> None:
        super().__init__()
        self.bits, self.factor, self.target_device = bits, float(factor), target_device

    def forward(self, weight: Tensor) -> Tensor:
        """Quantise a weight, output channels first."""
        if self.bits >= 32:
            return weight
        if self.floating and self.nearest:
            return held_weight(weight, self)
        if self.floating:
            return weight / weight_gain(weight, self) if self.absorbed else weight
        return self.quantised(weight, self.factor)

    def quantised(self, weight: Tensor, factor: float) -> Tensor:
        """Quantise a weight with another half-width of the clip window, in any mode."""
        return quantize_weight(weight, self.bits, factor, self.target_device, sequential=self.sequential)[0]

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integer codes of a weight and their size; see `chipfit.chips.ingenic.exact.weight_codes`."""
        return weight_codes(weight, self.bits, self.factor, self.target_device, sequential=self.sequential)

    def extra_repr(self) -> str:
        """Say what `print` shows."""
        return f"bits={self.bits}, factor={self.factor}, target_device={self.target_device!r}"


def held_weight(weight: Tensor, quantiser: QuantizeWeight) -> Tensor:
    """The weight that counts without rounding, where the quantiser gives the nearest codes; elsewhere the weight."""
    if not quantiser.nearest:
        return weight
    image = affine_image(weight, quantiser.bits)
    return image if quantiser.excess is None else image + quantiser.excess.to(image)


def weight_gain(weight: Tensor, quantiser: QuantizeWeight, factor: float | None = None) -> Tensor:
    """Factor a channel by which the quantised weight has to be multiplied to come closest to the weight.

    It is below 1 where clipping makes the quantiser stretch a channel, which batch normalisation absorbs.

    Args:
        weight: Output channels first.
        quantiser: Its quantiser.
        factor: Half-width of the clip window to take instead of the quantiser's.

    Returns:
        One value an output channel, (O, 1, ...).
    """
    with torch.no_grad():
        used = quantiser.factor if factor is None else factor
        quantised = quantiser.quantised(weight, used)
        dims = tuple(range(1, weight.dim()))
        power = quantised.square().sum(dims, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        gain = (weight * quantised).sum(dims, keepdim=True) / power
        return torch.where(gain > 0, gain, torch.ones_like(gain))


def use_vendor_statistics(model: nn.Module, enabled: bool = True) -> None:
    """Choose the order in which the weight quantisers of a network sum mean and deviation.

    From the start it is the vendor's, one number after the other in float32: only then are the codes those of the
    vendor's kit where weights are clipped. Torch's order takes less time, and moves up to a few codes in 1,000.

    Args:
        model: Any network with layers of this package; changed in place.
        enabled: `False` takes torch's order.

    Source:
        spec/ingenic.md, sections 1.3 and 8.

    Example:
        >>> from chipfit.chips.ingenic import Conv2D
        >>> conv = Conv2D(32, 32, quantize=True, weight_bitwidth=8, output_bitwidth=8, target_device="T40")
        >>> use_vendor_statistics(conv, False)
        >>> conv.Conv2d.QuantizeWeight.sequential
        False
    """
    for module in model.modules():
        if isinstance(module, QuantizeWeight):
            module.sequential = enabled


class QuantizeFeature(nn.Module):
    """Quantiser of a layer's output; see `chipfit.chips.ingenic.quantizers.quantize_feature`.

    Args:
        bits: 2 to 12, or 32 for none.
        signed: Whether negative values are kept.
        clip_max_value: Clip threshold.
        target_device: Target whose grid is used.
        learn: Learn the threshold. It becomes the parameter `clip_max_value`, with the gradient and the gradient scale
            1 / sqrt(elements x codes) of learned step size quantisation (Esser et al., 2020, arXiv:1902.08153, sections
            2.1 and 2.2), carried over to an output that stays divided by the threshold: -x / clip^2 inside, 0 outside.

    A quantiser that does not learn has no entry in `state_dict`; entries of old vendor checkpoints are accepted.

    Attributes:
        calibrated: Whether `chipfit.calibrate` fitted the threshold, and with it the weights of the layers that follow.
        floating: Neither clip nor round, in mode 'float'; a calibrated output is divided by its threshold all the same.
        gate: The threshold is the activation's own (Hsigmoid): clip and divide always.
        zero_borders: The network was calibrated in mode 'float', in which borders are zero.
    """

    calibrated = floating = gate = zero_borders = False  # also for what old pickled checkpoints hold

    def __init__(self, bits: int, signed: bool, clip_max_value: float, target_device: str, learn: bool = False) -> None:
        super().__init__()
        self.bits, self.signed, self.target_device = bits, signed, target_device
        clip = float(clip_max_value)
        self.clip_max_value = nn.Parameter(torch.tensor(clip)) if learn and bits < 32 else clip

    def forward(self, x: Tensor) -> Tensor:
        """Quantise and normalise a feature of any shape."""
        clip = self.clip_max_value
        if self.floating and not (self.gate or self.calibrated):
            return x
        if isinstance(clip, Tensor):
            # A step of the optimiser may not bring the threshold to zero, where nothing would be left to learn from.
            learned = self._scaled(clip, x.numel()) if self.training else clip
            x, clip = x / learned.clamp(min=1e-3), 1.0
        if self.floating:
            return (x.clamp(0.0, clip) if self.gate else x) / clip
        return quantize_feature(x, self.bits, -clip if self.signed else 0.0, clip, self.target_device)

    def _scaled(self, clip: Tensor, elements: int) -> Tensor:
        scale = 1.0 / math.sqrt(max(elements, 1) * (2**self.bits - 1))
        return clip * scale + clip.detach() * (1 - scale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(prefix + "clip_min_value", None)
        key, clip = prefix + "clip_max_value", self.clip_max_value
        if isinstance(clip, Tensor):
            # A checkpoint from before learning keeps the constructor's threshold.
            state_dict[key] = torch.as_tensor(state_dict.get(key, clip.detach())).reshape(())
        else:
            state_dict.pop(key, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Say what `print` shows."""
        return (
            f"bits={self.bits}, signed={self.signed}, clip_max_value={float(self.clip_max_value):g}, "
            f"target_device={self.target_device!r}"
        )


class batchNorm2d(nn.Module):
    """Batch normalisation whose gain is `max(gamma, 0.01)`, with the vendor's parameter names `batch_norm.*`.

    Its `eps` and `momentum` are its own: what a script sets on the module inside changes nothing, as in the vendor's
    kit, and is said in a warning.

    Args:
        channels: Channels in dimension 1.
        dims: 2 for features (N, C, H, W), 1 for (N, C) or (N, C, L).
        exact: Evaluate in the stated order of operations, for quantised networks; see `normalise`.
        layer: The layer whose part it is, for the warning.

    Attributes:
        eps: Added to the variance.
        momentum: Share of a batch in the running statistics; `None` for their mean over all batches.

    Source:
        spec/ingenic.md, section 1.4: batch statistics in training, running ones in evaluation; not folded.
    """

    exact = False  # also for what old pickled checkpoints hold
    eps: float = 1e-5
    momentum: float | None = 0.1
    layer = "batchNorm2d"
    warned = False

    def __init__(self, channels: int, dims: int = 2, exact: bool = False, layer: str = "batchNorm2d") -> None:
        super().__init__()
        self.exact, self.layer = exact, layer
        self.batch_norm: nn.BatchNorm2d | nn.BatchNorm1d = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(channels)
        self.aweight = AWeight()

    def take(self, norm: nn.Module) -> None:
        """Take the place of another network's batch normalisation, and its `eps` and `momentum`."""
        given: Any = norm
        self.batch_norm, self.eps, self.momentum = given, given.eps, given.momentum

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        bn = self.batch_norm
        if bn.eps != self.eps or bn.momentum != self.momentum:
            self._warn(bn)
        gain: Tensor = self.aweight(bn.weight)
        if self.exact and not bn.training and bn.running_mean is not None and bn.running_var is not None:
            return normalise(x, bn.running_mean, bn.running_var, gain, bn.bias, self.eps)
        if type(bn) not in (nn.BatchNorm1d, nn.BatchNorm2d) or self.momentum is None:
            return self._foreign(bn, gain, x)
        if bn.training and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
        return F.batch_norm(x, bn.running_mean, bn.running_var, gain, bn.bias, bn.training, self.momentum, self.eps)

    def _foreign(self, bn: Any, gain: Tensor, x: Tensor) -> Tensor:
        """A module put in its place, such as SyncBatchNorm, knows best what to do with the gain."""
        given = bn.eps, bn.momentum
        bn.eps, bn.momentum = self.eps, self.momentum
        try:
            y: Tensor = torch.func.functional_call(bn, {"weight": gain}, (x,))
        finally:
            bn.eps, bn.momentum = given
        return y

    def _warn(self, bn: Any) -> None:
        """Say once which values are ignored."""
        if self.warned or torch.compiler.is_compiling():
            return
        self.warned = True
        ignored = [
            f"{name}={given} is ignored, {own} is used"
            for name, given, own in (("eps", bn.eps, self.eps), ("momentum", bn.momentum, self.momentum))
            if given != own
        ]
        warnings.warn(
            f"{self.layer}, batch norm of {bn.num_features} channels: {'; '.join(ignored)}, as in the vendor's kit",
            ChipfitWarning,
            stacklevel=2,
        )


class Conv2d_Q(nn.Conv2d):
    """`nn.Conv2d` on a quantised weight, with the chips' padding.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Height and width.
        stride: Vertical and horizontal.
        padding: Symmetric border, used when `same` is false.
        dilation: Vertical and horizontal.
        groups: Groups.
        bias: Whether there is a bias; it is not quantised.
        same: Pad so that ceil(size / stride) outputs remain.
        quantiser: Quantiser of the weight.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        bias: bool,
        same: bool,
        quantiser: QuantizeWeight,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias)
        self.same = same
        self.QuantizeWeight = quantiser

    def forward(self, x: Tensor, pad_value: float = 0.0, codes: InputCodes | None = None) -> Tensor:
        """Convolve (N, C, H, W); `pad_value` fills the border. With `codes` those are convolved instead of `x`."""
        if codes is None:
            return self._convolved(x, self.QuantizeWeight(self.weight), self.bias, pad_value)
        weight, scale = self.QuantizeWeight.codes(self.weight)
        border = pad_value * codes.n
        return exact_sum(lambda x, w: self._convolved(x, w, None, border), codes, weight, scale, self.bias)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad_value: float) -> Tensor:
        vertical, horizontal = int(self.padding[0]), int(self.padding[1])
        left, right, top, bottom = horizontal, horizontal, vertical, vertical
        if self.same:
            kernel, stride = (self.kernel_size[0], self.kernel_size[1]), (self.stride[0], self.stride[1])
            left, right, top, bottom = same_pads(x.shape[2], x.shape[3], kernel, stride)
        if pad_value == 0.0 and left == right >= 0 and top == bottom >= 0:
            border = (top, left)
        else:
            x, border = F.pad(x, (left, right, top, bottom), value=pad_value), (0, 0)
        return F.conv2d(x, weight, bias, self.stride, border, self.dilation, self.groups)


class Linear_Q(nn.Linear):
    """`nn.Linear` on a quantised weight.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is a bias; it is not quantised.
        quantiser: Quantiser of the weight.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, quantiser: QuantizeWeight) -> None:
        super().__init__(in_features, out_features, bias)
        self.QuantizeWeight = quantiser

    def forward(self, x: Tensor, codes: InputCodes | None = None) -> Tensor:
        """Multiply (..., in_features). With `codes` those are multiplied instead of `x`."""
        if codes is None:
            return F.linear(x, self.QuantizeWeight(self.weight), self.bias)
        return exact_sum(F.linear, codes, *self.QuantizeWeight.codes(self.weight), self.bias)

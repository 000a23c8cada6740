"""The parts that layers are built of: weight and feature quantisers, batch normalisation, and the weighted modules.

Their names are the vendor's, since old pickled checkpoints and parameter names refer to them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.ingenic.exact import InputCodes, exact_sum, normalise, weight_codes
from chipfit.chips.ingenic.operators.padding import same_pads
from chipfit.chips.ingenic.quantizers import quantize_feature, quantize_weight

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
        sequential: Sum mean and deviation in the vendor's order; set it with `use_vendor_statistics`.
        floating: Do not round, in mode 'float'.
        absorbed: The batch norm behind the layer takes up what clipping does to a channel's size, so that without
            rounding the weight has to be of that size too; `chipfit.calibrate` sees to it.
    """

    floating = absorbed = False  # also for what old pickled checkpoints hold

    def __init__(self, bits: int, factor: float, target_device: str) -> None:
        super().__init__()
        self.bits, self.factor, self.target_device = bits, float(factor), target_device
        self.sequential = False

    def forward(self, weight: Tensor) -> Tensor:
        """Quantise a weight, output channels first."""
        if self.bits >= 32:
            return weight
        if self.floating:
            return weight / weight_gain(weight, self) if self.absorbed else weight
        return quantize_weight(weight, self.bits, self.factor, self.target_device, sequential=self.sequential)[0]

    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integer codes of a weight and their size; see `chipfit.chips.ingenic.exact.weight_codes`."""
        return weight_codes(weight, self.bits, self.factor, self.target_device, sequential=self.sequential)

    def extra_repr(self) -> str:
        """Say what `print` shows."""
        return f"bits={self.bits}, factor={self.factor}, target_device={self.target_device!r}"


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
        quantised = quantize_weight(weight, quantiser.bits, used, quantiser.target_device)[0]
        dims = tuple(range(1, weight.dim()))
        power = quantised.square().sum(dims, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        gain = (weight * quantised).sum(dims, keepdim=True) / power
        return torch.where(gain > 0, gain, torch.ones_like(gain))


def use_vendor_statistics(model: nn.Module, enabled: bool = True) -> None:
    """Let every weight quantiser of a network sum mean and deviation in the vendor's order.

    Needed only to repeat the vendor's recorded numbers to the last code: it moves about one code in 10^5, costs time
    and copies each weight to the CPU.

    Args:
        model: Any network with layers of this package.
        enabled: `False` goes back to torch's sums.
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
    """

    calibrated = floating = gate = False  # also for what old pickled checkpoints hold

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

    Args:
        channels: Channels in dimension 1.
        dims: 2 for features (N, C, H, W), 1 for (N, C) or (N, C, L).
        exact: Evaluate in the stated order of operations, for quantised networks; see `normalise`.

    Source:
        spec/ingenic.md, section 1.4: batch statistics in training, running ones in evaluation; not folded.
    """

    exact = False  # also for what old pickled checkpoints hold

    def __init__(self, channels: int, dims: int = 2, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.batch_norm: nn.BatchNorm2d | nn.BatchNorm1d = (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(channels)
        self.aweight = AWeight()

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        bn = self.batch_norm
        gain: Tensor = self.aweight(bn.weight)
        if self.exact and not bn.training and bn.running_mean is not None and bn.running_var is not None:
            return normalise(x, bn.running_mean, bn.running_var, gain, bn.bias, bn.eps)
        if type(bn) not in (nn.BatchNorm1d, nn.BatchNorm2d) or bn.momentum is None:
            # A module put in its place, such as SyncBatchNorm, knows best what to do with the gain.
            y: Tensor = torch.func.functional_call(bn, {"weight": gain}, (x,))
            return y
        if bn.training and bn.num_batches_tracked is not None:
            bn.num_batches_tracked.add_(1)
        return F.batch_norm(x, bn.running_mean, bn.running_var, gain, bn.bias, bn.training, bn.momentum, bn.eps)


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

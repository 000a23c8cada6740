"""Every one-line mistake in the arithmetic that trains Ingenic operators is noticed by `verify`."""

# ruff: noqa: E501  (a table: one row a mutant)

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.chips.battery import Mutants
from tests.support.mutants import Case, Mutant, ramp
from torch import Tensor, nn

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.operators.bridges import PadFeature, ToFeature, ToTensor

pytestmark = pytest.mark.filterwarnings("ignore::chipfit.errors.ChipfitWarning")


def wide(bits: int, target: str, **options: Any) -> dict[str, Any]:
    """Options of a quantised layer."""
    widths = {"weight_bitwidth": bits, "input_bitwidth": bits, "output_bitwidth": bits}
    return {"quantize": True, "target_device": target, **widths, **options}


class Row(nn.Module):
    """Preprocess, a first convolution whose output is signed, and operators in a row.

    Operators of several features get the first one's output flipped beside it.
    """

    def __init__(self, target: str, *layers: nn.Module, bits: int = 8, channels: int = 32, signed: bool = True) -> None:
        super().__init__()
        activation = ops.Linear(target) if signed else None
        self.pre = ops.Preprocess(0, 255.0, target)
        self.first = ops.Conv2D(
            3, channels, 1, 3, 3, activation, padding=1, first_layer=True, **wide(bits, target, auto_bitwidth=False)
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, image: Tensor) -> Any:
        x = self.first(self.pre(image))
        for layer in self.layers:
            several = isinstance(layer, (ops.Shortcut, ops.Mul, ops.Max, ops.Route))
            x = layer([x, (x[0].flip(2), x[1], x[2])]) if several else layer(x)
        return x


class Alone(nn.Module):
    """One operator on what the network is given."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def filled(net: nn.Module) -> nn.Module:
    """Parameters that use most of the codes, running statistics, slopes; some channels of zeros or of one value."""
    for name, module in net.named_modules():
        for parameter in module.parameters(recurse=False):
            size = parameter[0].numel() if parameter.dim() > 1 else 4
            reach = 8.0 / size**0.5 / (3 if "first" in name else 1)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                reach = 1.5
            if not parameter.dim():
                continue
            parameter.data.copy_(ramp(*parameter.shape, low=-reach, high=1.2 * reach))
            if parameter.dim() > 2 and len(parameter) > 8:
                parameter.data[3] = 0.0
                parameter.data[5] *= 0.01
            if parameter.dim() > 1:
                parameter.data.view(-1)[7] *= 4.0  # what the clip of the weight cuts
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(ramp(*module.running_mean.shape, low=-0.5, high=0.5))
            module.running_var.copy_(ramp(*module.running_var.shape, low=0.05, high=3.0))
    return net


def row(target: str, *layers: Any, **options: Any) -> Any:
    """A function that builds a `Row` of what functions make."""
    return lambda: filled(Row(target, *(make() for make in layers), **options))


def conv(target: str, bits: int = 8, **options: Any) -> Any:
    given = {"kernel_h": 3, "kernel_w": 3, "padding": 1, **options}
    return lambda: ops.Conv2D(32, 32, **given, **wide(bits, target, auto_bitwidth=False))


def of(kind: str, *args: Any, **options: Any) -> Any:
    return lambda: getattr(ops, kind)(*args, **options)


def learned() -> nn.Module:
    net = filled(Row("T40", conv("T40", auto_threshold=True, enable_batch_norm=True)()))
    net.layers[0].QuantizeFeature.clip_max_value.data.fill_(2.7)
    return net


def sums_in_torchs_order() -> nn.Module:
    net = filled(Row("T40", conv("T40")()))
    for module in net.modules():
        if hasattr(module, "sequential"):
            module.sequential = False
    return net


def sums_in_the_vendors_order() -> nn.Module:
    net = filled(Row("T40", conv("T40")()))
    for module in net.modules():
        if hasattr(module, "sequential"):
            module.sequential = True
    return net


def bridges() -> nn.Module:
    back = ToTensor(3, "T40")
    back.scale.copy_(torch.tensor([0.5, 1.0, 2.0]))
    return Alone(ToFeature(8, True, 2.0, target_device="T40"), PadFeature((1, 0, 1, 0), target_device="T40"), back)


def embedding() -> nn.Module:
    net = Alone(ops.Embedding(20, 32, multi_inputs=True, quantize=True, output_bitwidth=8, target_device="T40"))
    net.layers[0].embedding.weight.data.copy_(ramp(20, 32, low=-2.0, high=7.0))
    return net


IMAGE = (torch.randint(0, 256, (2, 3, 6, 6), generator=torch.Generator().manual_seed(1)) / 255.0,)
INDEX = (torch.randint(0, 20, (3, 8), generator=torch.Generator().manual_seed(2)).float(),)
NORM, KEPT = {"enable_batch_norm": True, "enable_bias": False}, {"quantize": True, "target_device": "T40"}
PAIR = {"quantize": True, "input_bitwidth": 8, "output_bitwidth": 8, "target_device": "T40"}
CASES = {
    "t40": Case(row("T40", conv("T40", stride=2, **NORM), conv("T40", activation_fn=nn.LeakyReLU(0.1))), IMAGE),
    "t40 4": Case(row("T40", conv("T40", 4), conv("T40", 4, activation_fn=ops.Linear("T40")), bits=4), IMAGE),
    "txx": Case(row("Txx", conv("Txx", stride=2, **NORM), conv("Txx", activation_fn=ops.PReLU(32, "Txx"))), IMAGE),
    "unsigned": Case(row("T40", conv("T40", activation_fn=ops.Hsigmoid(32, target_device="T40")), signed=False), IMAGE),
    "hswish": Case(row("T40", conv("T40", activation_fn=ops.Hswish(32, "T40"))), IMAGE),
    "learned": Case(learned, IMAGE),
    "sums": Case(sums_in_torchs_order, IMAGE),
    "vendor sums": Case(sums_in_the_vendors_order, IMAGE),
    "dilated": Case(row("T40", conv("T40", dilation=2)), IMAGE),
    "depthwise": Case(
        row("T40", lambda: ops.DepthwiseConv2D(32, padding=1, **wide(8, "T40", auto_bitwidth=False))), IMAGE
    ),
    "transpose": Case(row("T40", lambda: ops.ConvTranspose2D(32, 32, **wide(8, "T40"))), IMAGE),
    "dense": Case(
        row(
            "T40",
            lambda: ops.AdaptiveAvgpool2D(32, keepdim=False, **KEPT),
            lambda: ops.FullConnected(32, 32, enable_batch_norm=True, **wide(8, "T40", auto_bitwidth=False)),
            lambda: ops.FullConnected(32, 5, None, last_layer=True, **wide(8, "T40", auto_bitwidth=False)),
        ),
        IMAGE,
    ),
    "norm": Case(
        row("T40", lambda: ops.BatchNorm(32, ops.PReLU(32, "T40"), True, False, 8, 8, target_device="T40")), IMAGE
    ),
    "se": Case(row("T40", lambda: ops.Se_Block(32, 1, **wide(8, "T40"))), IMAGE),
    "max pool": Case(row("T40", of("Maxpool2D", 3, 3, 2, 1, target_device="T40")), IMAGE),
    "mean pool": Case(row("T40", of("Avgpool2D", 32, 3, 3, 2, 1, **KEPT)), IMAGE),
    "zeros": Case(row("T40", of("Unpool2D", 2, 2, **KEPT)), IMAGE),
    "nearest": Case(row("T40", of("Unpool2D", 2, 2, "nearest", **KEPT)), IMAGE),
    "sum": Case(row("T40", lambda: ops.Shortcut(32, clip_max_value=1.5, **PAIR)), IMAGE),
    "average": Case(row("Txx", lambda: ops.Shortcut(32, **{**PAIR, "target_device": "Txx"})), IMAGE),
    "product": Case(row("T40", lambda: ops.Mul(32, **PAIR)), IMAGE),
    "larger": Case(row("T40", of("Max", "T40")), IMAGE),
    "moves": Case(
        row("T40", of("Pixel_Shuffle", 2, "T40"), of("Focus", "T40"), of("Route", "T40"), channels=128), IMAGE
    ),
    "bridges": Case(bridges, (ramp(2, 3, 4, 4, low=-3, high=3),)),
    "embedding": Case(embedding, INDEX),
}
_SUMS = "chipfit.chips.ingenic.summation:"
_Q, _EXACT, _OPS = (
    "chipfit.chips.ingenic.quantizers:",
    "chipfit.chips.ingenic.exact:",
    "chipfit.chips.ingenic.operators.",
)
# fmt: off
MUTANTS = [
    Mutant("weight codes negated", f"{_Q}quantise_rows", "out=out).div_(divisors)", "out=out).neg_().div_(divisors)", "t40"),
    Mutant("half of the weight's steps", f"{_Q}quantise_rows", ".mul_(n / 2)", ".mul_(n / 4)", "t40"),
    Mutant("clip at twice the factor", f"{_Q}_window", "mean + factor * deviation", "mean + 2 * factor * deviation", "t40 4"),
    Mutant("clip ignores the mean", f"{_Q}_window", "mean + factor * deviation", "factor * deviation", "t40 4"),
    Mutant("peak of the tensor, not of the channel", f"{_Q}quantise_rows", "rows.amax(dim=1, keepdim=True)", "rows.amax()", "t40"),
    Mutant("peak added to always", f"{_Q}quantise_rows", "torch.where(peak < eps, peak + eps, peak)", "peak + eps", "t40"),
    Mutant("peak of the other family", f"{_Q}epsilon", "0.05 if has_zero else 1e-4", "1e-4", "txx"),
    Mutant("size of a code", f"{_Q}quantise_rows", "step if has_zero else step / 2", "step", "t40"),
    Mutant("middle of the codes", f"{_Q}quantise_rows", "2 ** (bits - 1)", "2 ** (bits - 1) - 1", "txx"),
    Mutant("codes one step up", f"{_Q}quantise_rows", "torch.add(offset, code, alpha=2.0, out=out)", "torch.add(offset, code + 1, alpha=2.0, out=out)", "t40"),
    Mutant("deviation of a sample", f"{_Q}_statistics", "norm * norm / w.numel()", "norm * norm / (w.numel() - 1)", "sums"),
    Mutant("mean forgotten", f"{_SUMS}vendor_statistics", "return float(mean), float", "return 0.0, float", "vendor sums"),
    Mutant("deviation is the variance", f"{_SUMS}vendor_statistics", "float(np.sqrt(variance))", "float(variance)", "vendor sums"),
    Mutant("deviation from minus the mean", f"{_SUMS}_sum_of_squares", "torch.sub(part, mean", "torch.add(part, mean", "vendor sums"),
    Mutant("ties go up", f"{_Q}_tround_", "alpha=0.5", "alpha=-0.5", "t40"),
    Mutant("unsigned steps", f"{_Q}_feature_codes", "2**bits - 1", "2**bits - 2", "t40"),
    Mutant("clip of the feature halved", f"{_Q}_feature_codes", "-clip_max if signed else 0.0, clip_max", "-clip_max if signed else 0.0, clip_max / 2", "t40"),
    Mutant("highest signed code", f"{_Q}_feature_codes", "clamp_(-half, half - 1)", "clamp_(-half, half - 2)", "txx"),
    Mutant("odd codes shifted", f"{_Q}_feature_codes", "sub_(1.0)", "sub_(1.0 - 2.0 / n)", "t40 4"),
    Mutant("sign lost", f"{_Q}_feature_codes", ".copysign_(sign)", "", "txx"),
    Mutant("scale of the input", f"{_EXACT}exact_sum", "scale / x.n", "scale / (x.n + 1)", "t40"),
    Mutant("no bias", f"{_EXACT}exact_sum", "total if bias is None", "total if True", "t40 4"),
    Mutant("bias before the scale", f"{_EXACT}exact_sum", "total.add_(bias.view(channels))", "total.add_((bias * scale).view(channels))", "t40 4"),
    Mutant("mean added", f"{_EXACT}normalise", "y = x - mean", "y = x + mean", "t40"),
    Mutant("variance without its root", f"{_EXACT}normalise", "torch.sqrt(variance.to(wide) + eps)", "(variance.to(wide) + eps)", "t40"),
    Mutant("bias of the norm lost", f"{_EXACT}normalise", "y.add_(bias.view(channels))", "y", "t40"),
    Mutant("eps of another library", f"{_EXACT}normalise", "+ eps)).to(x", "+ 100 * eps)).to(x", "t40"),
    Mutant("mean of one too many", "chipfit.chips.ingenic.means:window_mean", "F.avg_pool2d(x, kernel, stride)", "F.avg_pool2d(x, kernel, stride, divisor_override=kernel[0] * kernel[1] + 1)", "mean pool"),
    Mutant("negative gains kept", f"{_OPS}blocks:AWeight.forward", "gamma.clamp(min=_SMALLEST_GAMMA)", "gamma", "t40"),
    Mutant("learned clip's least value", f"{_OPS}blocks:QuantizeFeature.forward", "min=1e-3", "min=3.0", "learned"),
    Mutant("signed feature taken for unsigned", f"{_OPS}blocks:QuantizeFeature.forward", "-clip if self.signed else 0.0", "0.0", "t40"),
    Mutant("border in the wrong units", f"{_OPS}blocks:Conv2d_Q.forward", "pad_value * codes.n", "pad_value", "t40"),
    Mutant("border before and after swapped", f"{_OPS}blocks:Conv2d_Q._convolved", "(left, right, top, bottom), value", "(right, left, bottom, top), value", "t40"),
    Mutant("dilation lost", f"{_OPS}blocks:Conv2d_Q._convolved", "border, self.dilation", "border, (1, 1)", "dilated"),
    Mutant("channels in reverse", f"{_OPS}blocks:Conv2d_Q._convolved", "weight, bias, self.stride", "weight.flip(0), bias, self.stride", "depthwise"),
    Mutant("border of zeros", f"{_OPS}features:pad_value", "-1.0 if", "0.0 if", "t40"),
    Mutant("odd pixel before", f"{_OPS}padding:same_pads", "total_h // 2, total_w // 2", "-(-total_h // 2), -(-total_w // 2)", "t40"),
    Mutant("activation before the norm", f"{_OPS}layer:WeightedLayer._finish", "y = norm(y)", "y = norm(y.clamp(min=0.0))", "t40"),
    Mutant("activation left out", f"{_OPS}layer:WeightedLayer._finish", "y = activation(y)", "y = y", "txx"),
    Mutant("offset left out", f"{_OPS}layer:WeightedLayer._finish", "y + self.offset", "y", "unsigned"),
    Mutant("output not rounded", f"{_OPS}layer:WeightedLayer._finish", "self.QuantizeFeature(y)", "y.clamp(0, 6) / 6", "unsigned"),
    Mutant("Hsigmoid's clip", f"{_OPS}activations:Hsigmoid.forward", "/ self.clip_max_value", "/ self.offset_value", "hswish"),
    Mutant("Hswish without its factor", f"{_OPS}activations:Hswish.forward", "x * self.sigmoid", "self.sigmoid", "hswish"),
    Mutant("slope on the wrong side", f"{_OPS}activations:PReLU.forward", "self.prelu(_tensor", "-self.prelu(-_tensor", "txx"),
    Mutant("norm over positions", f"{_OPS}blocks:batchNorm2d.forward", "normalise(x, bn.running_mean", "normalise(x, bn.running_var", "norm"),
    Mutant("activation left out", f"{_OPS}linear:BatchNorm.forward", "y = self.activation_fn(y)", "y = y", "norm"),
    Mutant("bias of a dense layer", f"{_OPS}blocks:Linear_Q.forward", "codes, *self.QuantizeWeight.codes(self.weight), self.bias", "codes, *self.QuantizeWeight.codes(self.weight), None", "dense"),
    Mutant("max pool's border", f"{_OPS}pooling:Maxpool2D.forward", "pad_value(feature, self.device))", "1.0)", "max pool"),
    Mutant("smallest instead of largest", f"{_OPS}pooling:Maxpool2D.forward", "F.max_pool2d(x,", "-F.max_pool2d(-x,", "max pool"),
    Mutant("mean pool's border", f"{_OPS}pooling:Avgpool2D.forward", "pad_value(feature, self.device))", "0.0)", "mean pool"),
    Mutant("largest instead of the mean", "chipfit.chips.ingenic.means:_ordered_sum", "total = total + number", "total = torch.maximum(total, number)", "dense"),
    Mutant("zeros where there is none", f"{_OPS}pooling:Unpool2D.forward", "pad_value(feature, self.device) if", "0.0 if", "zeros"),
    Mutant("patch at the wrong corner", f"{_OPS}pooling:Unpool2D.forward", ":: self.kernel[0], :: self.kernel[1]] = x", "1 :: self.kernel[0], :: self.kernel[1]] = x", "zeros"),
    Mutant("neighbours interpolated", f"{_OPS}pooling:Unpool2D.forward", 'mode="nearest"', 'mode="bilinear"', "nearest"),
    Mutant("parts of a transposed convolution", f"{_OPS}convolution_variants:ConvTranspose2D.forward", "self.Unpool2D(inputs)", "self.Unpool2D((inputs[0].flip(-1), *inputs[1:]))", "transpose"),
    Mutant("difference", f"{_Q}shortcut", "a + b, bits", "a - b, bits", "sum"),
    Mutant("clip of a sum", f"{_Q}shortcut", "min(clip_max, 2.0)", "2.0", "sum"),
    Mutant("average of rounded codes cut", f"{_Q}_AverageCodes.forward", "mul_(0.5).round_()", "mul_(0.5).trunc_()", "average"),
    Mutant("steps of an average", f"{_Q}shortcut", "2 ** (bits - 1) - 1 if negative", "2 ** (bits - 1) if negative", "average"),
    Mutant("product of magnitudes", f"{_OPS}elementwise:Mul.forward", "features[0].tensor * features[1].tensor", "features[0].tensor * features[1].tensor.abs()", "product"),
    Mutant("product unsigned", f"{_OPS}elementwise:Mul.forward", "bits, -1.0 if negative else 0.0, 1.0", "bits, 0.0, 1.0", "product"),
    Mutant("smaller for larger", f"{_OPS}elementwise:Max.forward", "torch.maximum(a, b)", "torch.minimum(a, b)", "larger"),
    Mutant("shuffled the other way", f"{_OPS}movement:Pixel_Shuffle.forward", "feature.tensor, self.upscale_factor", "feature.tensor.flip(1), self.upscale_factor", "moves"),
    Mutant("patch by columns", f"{_OPS}movement:focus", "x[..., 1::2, ::2], x[..., ::2, 1::2]", "x[..., ::2, 1::2], x[..., 1::2, ::2]", "moves"),
    Mutant("joined in reverse", f"{_OPS}movement:Route.forward", "for f in features], dim=1)", "for f in features[::-1]], dim=1)", "moves"),
    Mutant("factor a channel", f"{_OPS}bridges:ToTensor.forward", "x * self.scale", "x / self.scale", "bridges"),
    Mutant("border of a bridge", f"{_OPS}bridges:PadFeature.border", "0.0 if self.floating else pad_value(feature, self.device, first_layer)", "0.0", "bridges"),
    Mutant("rows cut before they are clipped", f"{_OPS}embedding:Embedding.forward", "self.embedding(half)", "self.embedding(half).trunc()", "embedding"),
]
# fmt: on


class TestIngenic(Mutants):
    cases, mutants = CASES, MUTANTS

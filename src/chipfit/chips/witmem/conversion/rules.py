"""What the WTM2101 makes of torch's operations (spec/wtm2101-silicon.md, sections 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from chipfit.chips.witmem.conversion.array import (
    configure,
    conv,
    conv_transpose,
    linear,
    lstm,
    recurrent,
    take_parameters,
)
from chipfit.chips.witmem.digital import (
    WitinBatchNorm2d,
    WitinElementAdd,
    WitinElementDivide,
    WitinElementMul,
    WitinGELU,
    WitinInvSqrt,
    WitinMatMul,
    WitinPReLU,
    WitinSigmoid,
    WitinSqrt,
    WitinTanh,
    compound,
)
from chipfit.chips.witmem.digital.elementwise import DIVISION_LIMIT
from chipfit.convert.windows import weighs_equally, windows_of
from chipfit.convert.words import Mapped, Operation, Seen, on_cpu
from chipfit.hardware import Chip

_CLOSE = 5e-6
"""How far the chip's division and roots may be from torch's on the example."""
_TORCH = {
    **{"relu": "Relu", "relu6": "Relu", "hardtanh": "Relu", "clamp": "Relu", "max_pool": "MaxPool"},
    **{"dropout": "none in evaluation", "identity": "none"},
}
"""Kinds for which torch's own operation stays: on codes it is what the chip does."""
_MOVES = {
    *("flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes", "unflatten", "flip"),
    *("contiguous", "clone", "detach", "getitem", "chunk", "split", "unbind", "select", "stack", "float"),
}


def map_operation(operation: Operation, chip: Chip) -> Mapped:
    """What the chip makes of an operation.

    Args:
        operation: One operation of the user's network.
        chip: The WTM2101.

    Returns:
        The operator, the unit and the layer that takes its place.

    Example:
        >>> from chipfit.chips.witmem.wtm2101 import WTM2101
        >>> x = Seen((1, 4))
        >>> map_operation(Operation("act", "gelu", (x,), x, (False,)), WTM2101).operator
        'WitinGELU'
    """
    if operation.kind in _RULES:
        return _RULES[operation.kind](operation, chip)
    if operation.kind in _TORCH:
        return Mapped(_TORCH[operation.kind], "digital")
    if operation.kind in _MOVES:
        return Mapped("moves codes", "digital")
    return on_cpu(f"the chip has no {operation.kind}", _ADVICE.get(operation.kind, ""))


_ADVICE = {
    "softmax": "Leave softmax to the code that reads the outputs, or use a sigmoid gate.",
    "embedding": "Look rows up on the CPU core, and give the vectors to the network.",
    "LayerNorm": "Use BatchNorm, which folds into the layer before it.",
    "MultiheadAttention": "Write attention with Linear and matmul: all of it but softmax runs on the chip.",
    "TransformerEncoderLayer": "Write the block with Linear, matmul and GELU: all but softmax and LayerNorm runs.",
    "upsample": "Use nearest with a whole factor, or ConvTranspose2d.",
}


def _digital(operation: Operation, layer: Callable[[], nn.Module], operator: str) -> Mapped:
    return Mapped(operator, "digital", layer)


def _simple(kind: Any) -> Callable[[Operation, Chip], Mapped]:
    return lambda operation, chip: _digital(operation, lambda: kind(layer_config=configure()), kind.__name__)


def _add(operation: Operation, chip: Chip) -> Mapped:
    if operation.options.get("alpha", 1) != 1:
        return on_cpu("a sum with alpha", "Multiply first, then add.")
    if operation.kind == "add":
        return _digital(operation, lambda: WitinElementAdd(layer_config=configure()), "WitinElementAdd")
    reverse = operation.kind == "rsub"
    number = isinstance(operation.inputs[0 if reverse else 1], (int, float))
    kind = "WitinElementAdd" if number else "WitinElementMul, WitinElementAdd"
    return _digital(operation, lambda: compound.Difference(configure, number, reverse), kind)


def _gelu(operation: Operation, chip: Chip) -> Mapped:
    approximate = operation.options.get("approximate", "none")
    return _digital(operation, lambda: WitinGELU(approximate, configure()), "WitinGELU")


def _prelu(operation: Operation, chip: Chip) -> Mapped:
    old = operation.module

    def build() -> nn.Module:
        if isinstance(old, nn.PReLU):
            learned = WitinPReLU(old.num_parameters, layer_config=configure())
            take_parameters(learned, old)
            return learned
        fixed = WitinPReLU(1, operation.options.get("negative_slope", 0.01), layer_config=configure())
        fixed.weight.requires_grad_(False)
        return fixed

    return _digital(operation, build, "WitinPReLU")


def _batch_norm(operation: Operation, chip: Chip) -> Mapped:
    old: Any = operation.module
    if old.running_mean is None:
        return on_cpu("a batch norm without running statistics", "Set track_running_stats=True.")

    def build() -> nn.Module:
        own = (old.num_features, old.eps, old.momentum, old.affine)
        new = WitinBatchNorm2d(*own, layer_config=configure())
        take_parameters(new, old)
        return new if len(operation.shape) == 4 else compound.Norm1d(new, len(operation.shape))

    return _digital(operation, build, "WitinBatchNorm2d")


def _compound(build: Callable[[Operation], nn.Module], operator: str) -> Callable[[Operation, Chip], Mapped]:
    return lambda operation, chip: _digital(operation, lambda: build(operation), operator)


def _divide(operation: Operation, chip: Chip) -> Mapped:
    divisor, quotient = operation.inputs[1], operation.output
    if isinstance(divisor, (int, float)) and not operation.options.get("rounding_mode"):
        return Mapped("WitinElementMul", "digital", lambda: compound.Scaled(configure, 1 / divisor), reads=1)
    smallest = divisor.smallest if isinstance(divisor, Seen) else abs(divisor)
    if quotient.largest >= DIVISION_LIMIT or quotient.largest * 1e-8 > _CLOSE * smallest:
        return on_cpu(
            f"quotients beyond ±{DIVISION_LIMIT:g}, or divisors near 0, on the example", "Scale the operands."
        )
    wide = {"x_left_quant_bits": 12}
    return _digital(operation, lambda: WitinElementDivide(configure(**wide)), "WitinElementDivide")


def _root(kind: Any) -> Callable[[Operation, Chip], Mapped]:
    def rule(operation: Operation, chip: Chip) -> Mapped:
        x = operation.inputs[0]
        lowest = x.lowest if isinstance(x, Seen) else float(x)
        if lowest < 1e-5:
            return on_cpu("roots of values near or below 0 on the example", "Add a constant such as 1e-3 before it.")
        return _digital(operation, lambda: kind(layer_config=configure()), kind.__name__)

    return rule


def _mean(operation: Operation, chip: Chip) -> Mapped:
    rank, dim = len(operation.shape), operation.options.get("dim")
    dims = sorted(d % rank for d in ((dim,) if isinstance(dim, int) else dim or ()))
    if not dims or dims[0] == 0 or dims != list(range(dims[0], dims[0] + len(dims))):
        return on_cpu("a mean over the batch, or over dimensions that are not neighbours", "Average neighbours.")
    kept = len(dims) if operation.options.get("keepdim") else 0
    return _digital(operation, lambda: compound.MeanOver(configure, dims[0], len(dims), kept), "WitinMean")


def _largest(operation: Operation, chip: Chip) -> Mapped:
    dim, rank = operation.options.get("dim"), len(operation.shape)
    dims = (dim,) if isinstance(dim, int) else tuple(dim or range(rank))
    if any(d % rank == 0 for d in dims):
        return on_cpu("a maximum over the batch", "Leave the batch alone.")
    limits = ("the chip's compiler has maxima of windows of an image only",)
    return Mapped("selects codes", "digital", None, "", limits, ("Use MaxPool2d over the whole image.",))


def _greater(operation: Operation, chip: Chip) -> Mapped:
    return on_cpu("the larger of two tensors, element by element", "Write a + relu(b - a).")


def _pad(operation: Operation, chip: Chip) -> Mapped:
    value = operation.options.get("value") or 0
    if value:
        return on_cpu(f"padding with {value:g}, which may be no code", "Pad with 0.")
    advice = "The chip's compiler pads with zeros and before convolutions only: best give it to the convolution."
    return Mapped("moves codes", "digital", suggestions=(advice,))


def _average(operation: Operation, chip: Chip) -> Mapped:
    before, windows = operation.shape[2:], windows_of(operation)
    rank = len(before)
    if windows is None:
        return on_cpu("an adaptive average with unequal windows", "Choose an output size that divides the input's.")
    if not weighs_equally(operation, windows):
        return on_cpu("an average over windows of different sizes", "Use count_include_pad=True and ceil_mode=False.")
    kernel, stride, padding = windows.kernel, windows.stride, windows.padding
    count = math.prod(kernel)
    if not any(padding) and count & (count - 1) == 0:
        pool: Any = nn.AvgPool2d if rank == 2 else nn.AvgPool1d
        return _digital(operation, lambda: pool(kernel, stride), "AveragePool")
    if kernel == before and not any(padding):
        return _digital(operation, lambda: compound.MeanOver(configure, 2, rank, rank), "WitinMean")
    channels, unsigned = operation.shape[1], operation.nonnegative[0]

    def build() -> nn.Module:
        return compound.average(configure, channels, (kernel, stride, padding), unsigned)

    return Mapped(f"WitinConv{rank}d", "array", build, rows=count if unsigned else 2 * count, columns=channels)


def _adaptive_max(operation: Operation, chip: Chip) -> Mapped:
    windows = windows_of(operation)
    if windows is None:
        return on_cpu("an adaptive maximum with unequal windows", "Choose an output size that divides the input's.")
    pool: Any = nn.MaxPool2d if len(windows.kernel) == 2 else nn.MaxPool1d
    return _digital(operation, lambda: pool(windows.kernel), "MaxPool")


def _cat(operation: Operation, chip: Chip) -> Mapped:
    dim, count = operation.options.get("dim", 0), len(operation.inputs)
    if count < 2:
        return Mapped("moves codes", "digital")
    mapped = _digital(operation, lambda: compound.Joined(configure, count, dim), "WitinCat")
    if dim % len(operation.shape) == 1:
        return mapped
    limits = ("the chip's compiler joins along axis 1 only",)
    return Mapped("WitinCat", "digital", mapped.build, "", limits, ("Transpose before and after, or join channels.",))


def _upsample(operation: Operation, chip: Chip) -> Mapped:
    before, after = operation.shape[2:], operation.output.shape[2:]
    whole = len(before) == 2 and all(b % a == 0 for a, b in zip(before, after, strict=True))
    if operation.options.get("mode", "nearest") != "nearest" or not whole:
        return on_cpu("only nearest with a whole factor moves codes", _ADVICE["upsample"])
    factors = [b // a for a, b in zip(before, after, strict=True)]
    return _digital(operation, lambda: compound.NearestUpsample(*factors), "moves codes")


_RULES: dict[str, Callable[[Operation, Chip], Mapped]] = {
    "linear": linear,
    **dict.fromkeys(("conv1d", "conv2d"), conv),
    "conv_transpose2d": conv_transpose,
    **dict.fromkeys(("gru", "gru_cell"), recurrent),
    "lstm": lstm,
    "batch_norm": _batch_norm,
    "gelu": _gelu,
    **dict.fromkeys(("prelu", "leaky_relu"), _prelu),
    "sigmoid": _simple(WitinSigmoid),
    "tanh": _simple(WitinTanh),
    "silu": _compound(lambda _: compound.Silu(configure), "WitinSigmoid, WitinElementMul"),
    "hardsigmoid": _compound(lambda _: compound.HardSigmoid(configure), "WitinElementAdd, WitinElementMul"),
    "hardswish": _compound(lambda _: compound.HardSwish(configure), "WitinElementAdd, WitinElementMul"),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    "neg": _compound(lambda _: compound.Scaled(configure, -1.0), "WitinElementMul"),
    "mul": _simple(WitinElementMul),
    "div": _divide,
    "matmul": _simple(WitinMatMul),
    "sqrt": _root(WitinSqrt),
    "rsqrt": _root(WitinInvSqrt),
    "cat": _cat,
    "mean": _mean,
    **dict.fromkeys(("avg_pool", "adaptive_avg_pool"), _average),
    "adaptive_max_pool": _adaptive_max,
    **dict.fromkeys(("amax", "max"), _largest),
    "maximum": _greater,
    "pad": _pad,
    "upsample": _upsample,
    "pixel_shuffle": _compound(
        lambda operation: compound.PixelShuffle(operation.options["upscale_factor"], operation.shape), "moves codes"
    ),
}
"""Rules by kind of operation."""

"""Lowering rules for plain torch: limits, pools and sums that stay exact; `torch_moves` has what moves codes.

Each rule takes the builder, the call and the call's own arguments under torch's names. A rule exists only where codes
give exactly what the float32 network gives: averages whose number of values is a power of two are sums at a finer
scale; any other average, and sums and products of tensors, need a layer of the chip.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from chipfit.errors import UnsupportedError
from chipfit.program import ops
from chipfit.program.lowering import torch_moves as moves
from chipfit.program.lowering.builder import Builder, Call, Value, log2_of, type_for
from chipfit.program.lowering.torch_moves import axis_of, moved, rank_of, reshaped

_Size = int | tuple[int, ...]


def _sizes(value: Any, count: int) -> tuple[int, ...]:
    return (int(value),) * count if isinstance(value, int) else tuple(int(v) for v in value)


# --- limits


def relu(b: Builder, call: Call, x: Value, inplace: bool = False) -> Value:
    """`max(x, 0)`."""
    return b.add(call.name, ops.Relu(), (x,), x.type, max(x.lo, 0), max(x.hi, 0))


def clamp(b: Builder, call: Call, x: Value, min: float | None = None, max: float | None = None) -> Value:
    """Limits that are codes; `clip(x, min, max)`."""
    if x.type.real:
        raise UnsupportedError("a limit before the first chip layer has no code", hint="Limit the data instead.")
    bounds = []
    for bound, default in ((min, x.type.lo), (max, x.type.hi)):
        code = default if bound is None else bound * x.type.scale
        if not isinstance(bound, (int, float, type(None))) or code != int(code):
            raise UnsupportedError(
                "a limit that is no code of the tensor's grid", given=bound, allowed=f"multiples of 1/{x.type.scale:g}"
            )
        bounds.append(int(code))
    lo, hi = bounds
    return b.add(call.name, ops.Clamp(lo, hi), (x,), x.type, _limit(x.lo, lo, hi), _limit(x.hi, lo, hi))


def _limit(code: int, lo: int, hi: int) -> int:
    return min(max(code, lo), hi)


def relu6(b: Builder, call: Call, x: Value, inplace: bool = False) -> Value:
    """`clip(x, 0, 6)`."""
    return clamp(b, call, x, 0.0, 6.0)


def hardtanh(
    b: Builder, call: Call, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    """`clip(x, min_val, max_val)`."""
    return clamp(b, call, x, min_val, max_val)


def same(b: Builder, call: Call, x: Any, *_: Any, **__: Any) -> Any:
    """Nothing: dropout in evaluation, identity, contiguous, clone, detach."""
    return x


# --- pooling and averages


def max_pool(spatial: int) -> Callable[..., Value]:
    """Rule of 1-D or 2-D max pooling."""

    def rule(
        b: Builder,
        call: Call,
        x: Value,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        dilation: _Size = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Value:
        _check_pool(call, spatial, return_indices)
        kernel = _sizes(kernel_size, spatial)
        steps = _sizes(stride, spatial) if stride else kernel
        op = ops.MaxPool(kernel, steps, _sizes(padding, spatial), _sizes(dilation, spatial), ceil_mode)
        return moved(b, call, op, x)

    return rule


def _check_pool(call: Call, spatial: int, indices: bool) -> None:
    if indices:
        raise UnsupportedError("indices of maxima are no codes")
    if rank_of(call) != spatial + 2:
        raise UnsupportedError("an unbatched input", given=call.input_shapes[0][0], allowed="batch, channels, space")


def avg_pool(spatial: int) -> Callable[..., Value]:
    """Rule of 1-D or 2-D average pooling over a power of two of values."""

    def rule(
        b: Builder,
        call: Call,
        x: Value,
        kernel_size: _Size,
        stride: _Size | None = None,
        padding: _Size = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        _check_pool(call, spatial, False)
        if any(_sizes(padding, spatial)) or ceil_mode or divisor_override:
            raise UnsupportedError("an average over padding, partial windows or with a divisor of its own")
        kernel = _sizes(kernel_size, spatial)
        return _sum_pool(b, call, x, kernel, _sizes(stride, spatial) if stride else kernel)

    return rule


def adaptive_avg_pool(spatial: int) -> Callable[..., Value]:
    """Rule of adaptive average pooling whose windows are all alike and hold a power of two of values."""

    def rule(b: Builder, call: Call, x: Value, output_size: Any) -> Value:
        _check_pool(call, spatial, False)
        before, after = call.input_shapes[0][0][2:], call.shapes[0][2:]
        if any(size % parts for size, parts in zip(before, after, strict=True)):
            raise UnsupportedError("an adaptive average with unequal windows", given=(before, after))
        kernel = tuple(size // parts for size, parts in zip(before, after, strict=True))
        return _sum_pool(b, call, x, kernel, kernel)

    return rule


def _sum_pool(b: Builder, call: Call, x: Value, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Value:
    return _summed(b, call, x, ops.SumPool(kernel, stride), _product(kernel))


def mean(b: Builder, call: Call, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
    """Mean over a power of two of values."""
    shape = call.input_shapes[0][0]
    dims = tuple(range(len(shape))) if dim is None else tuple(axis_of(d, len(shape)) for d in _sizes(dim, 1))
    if any(call.input_shapes[0][1][d] != shape[d] for d in dims):
        raise UnsupportedError("a mean over the batch")
    return _summed(b, call, x, ops.Sum(dims, keepdim), _product([shape[d] for d in dims]))


def _product(numbers: Any) -> int:
    product = 1
    for number in numbers:
        product *= int(number)
    return product


def _summed(b: Builder, call: Call, x: Value, op: ops.Op, count: int) -> Value:
    """A sum that stands for an average: at `count` times the scale, exact in float32 while it stays below 2^24."""
    if x.type.real:
        raise UnsupportedError("an average before the first chip layer has no codes")
    try:
        log2_of(count, "the number of averaged values")
    except UnsupportedError as error:
        raise UnsupportedError(
            "an average over a number of values that is no power of two leaves every grid",
            given=count,
            allowed="2, 4, 8, …",
            hint=b.advice.get("mean"),
        ) from error
    lo, hi = x.lo * count, x.hi * count
    if max(-lo, hi) > 1 << 24:
        raise UnsupportedError(
            "the sum of an average passes 2^24, where float32 is no longer exact", given=max(-lo, hi)
        )
    return b.add(call.name, op, (x,), type_for(lo, hi, x.type.scale * count), lo, hi)


# --- modules


def _module(rule: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """Rule of a module whose attributes of these names are the arguments of a function's rule."""

    def lowered(b: Builder, call: Call, module: Any, x: Value) -> Any:
        return rule(b, call, x, *(getattr(module, name) for name in names))

    return lowered


def _border(mode: str) -> Callable[..., Any]:
    """Rule of a module that pads by a mode."""
    return lambda b, call, module, x: moves.pad(b, call, x, module.padding, mode)


_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")

MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.ReLU: _module(relu),
    nn.ReLU6: _module(relu6),
    nn.Hardtanh: _module(hardtanh, "min_val", "max_val"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout), _module(same)),
    nn.MaxPool1d: _module(max_pool(1), *_POOL),
    nn.MaxPool2d: _module(max_pool(2), *_POOL),
    nn.AvgPool1d: _module(avg_pool(1), "kernel_size", "stride", "padding", "ceil_mode"),
    nn.AvgPool2d: _module(
        avg_pool(2), "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"
    ),
    nn.AdaptiveAvgPool1d: _module(adaptive_avg_pool(1), "output_size"),
    nn.AdaptiveAvgPool2d: _module(adaptive_avg_pool(2), "output_size"),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d), _module(moves.pad, "padding")),
    **dict.fromkeys(
        (nn.ConstantPad1d, nn.ConstantPad2d), lambda b, call, m, x: moves.pad(b, call, x, m.padding, value=m.value)
    ),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d), _border("reflect")),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d), _border("replicate")),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d), _border("circular")),
    nn.Flatten: _module(reshaped),
    nn.Unflatten: _module(reshaped),
}
"""Rules by class of plain torch module."""

_SHARED: dict[str, Callable[..., Any]] = {
    "relu": relu,
    "clamp": clamp,
    "mean": mean,
    "amax": moves.amax,
    "max": moves.largest,
    **dict.fromkeys(("flatten", "reshape", "squeeze", "unsqueeze", "unflatten"), reshaped),
    "permute": moves.permute,
    "transpose": moves.transpose,
    "swapaxes": moves.transpose,
    "chunk": moves.chunk,
    "split": moves.chunk,
    "unbind": moves.unbind,
    "select": moves.select,
    "flip": moves.flip,
    "clone": same,
    "detach": same,
}
METHODS: dict[str, Callable[..., Any]] = {
    **_SHARED,
    **{"relu_": relu, "clamp_": clamp, "clip": clamp, "view": reshaped, "contiguous": same, "float": same},
    "new_zeros": moves.zeros,
}
"""Rules by name of tensor method."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, name): rule for name, rule in _SHARED.items()},
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), moves.cat),
    **dict.fromkeys((torch.zeros, torch.zeros_like), moves.zeros),
    **{torch.stack: moves.stack, operator.getitem: moves.getitem, getattr: moves.attribute, F.pad: moves.pad},
    **{F.relu: relu, torch.relu_: relu, F.relu6: relu6, F.hardtanh: hardtanh, torch.clip: clamp},
    **{F.max_pool1d: max_pool(1), F.max_pool2d: max_pool(2)},
    **{torch.max_pool1d: max_pool(1), torch.max_pool2d: max_pool(2)},
    **{F.avg_pool1d: avg_pool(1), F.avg_pool2d: avg_pool(2)},
    **{F.adaptive_avg_pool1d: adaptive_avg_pool(1), F.adaptive_avg_pool2d: adaptive_avg_pool(2)},
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, torch.dropout, F.alpha_dropout), same),
}
"""Rules by function."""

MOVING = (
    *(moves.reshaped, moves.permute, moves.transpose, moves.flip, moves.select, moves.chunk, moves.unbind),
    *(moves.getitem, moves.cat, moves.stack, same),
)
"""Rules that neither compute nor compare codes."""
MOVING_MODULES = (*(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Flatten, nn.Unflatten),)
"""Modules whose rules do not."""

ADVICE = {
    "BatchNorm2d": "Fold it into the convolution before it.",
    **dict.fromkeys(("Linear", "Conv1d", "Conv2d", "GRU"), "chipfit.convert puts plain layers on the chip."),
    **dict.fromkeys(
        ("softmax", "log_softmax", "Softmax", "LogSoftmax", "argmax", "topk"),
        "Leave it to the code that reads the outputs.",
    ),
}
"""What to do about a call that has no rule, by its name; a vendor's own advice comes before it."""

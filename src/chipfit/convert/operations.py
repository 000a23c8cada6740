"""One name and one order of arguments for what torch offers as module, function and method."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


@dataclass(frozen=True)
class Form:
    """How an operation is called.

    Args:
        tensors: Number of its tensor arguments, which come first.
        options: Names of the arguments after them, which a module has as attributes.
    """

    tensors: int = 1
    options: tuple[str, ...] = ()


_POOL = ("kernel_size", "stride", "padding")
FORMS: dict[str, Form] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "matmul", "maximum"), Form(2)),
    "rsub": Form(2),
    "gelu": Form(1, ("approximate",)),
    "leaky_relu": Form(1, ("negative_slope",)),
    "hardtanh": Form(1, ("min_val", "max_val")),
    "clamp": Form(1, ("min", "max")),
    **dict.fromkeys(("mean", "amax", "max"), Form(1, ("dim", "keepdim"))),
    "cat": Form(0, ("dim",)),
    "softmax": Form(1, ("dim",)),
    "max_pool": Form(1, (*_POOL, "dilation", "ceil_mode", "return_indices")),
    "avg_pool": Form(1, (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")),
    **dict.fromkeys(("adaptive_avg_pool", "adaptive_max_pool"), Form(1, ("output_size",))),
    "upsample": Form(1, ("size", "scale_factor", "mode", "align_corners")),
    "pixel_shuffle": Form(1, ("upscale_factor",)),
    "pad": Form(1, ("pad", "mode", "value")),
    "flatten": Form(1, ("start_dim", "end_dim")),
    "dropout": Form(1, ("p", "training")),
    "chunk": Form(1, ("chunks", "dim")),
    "split": Form(1, ("split_size_or_sections", "dim")),
    **dict.fromkeys(("gru", "gru_cell", "lstm"), Form(2)),
}
"""Forms by kind; a kind that is not here takes one tensor and has no options that matter."""

MOVES = {
    *("view", "reshape", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes", "contiguous", "clone", "detach"),
    *("getitem", "unbind", "select", "flip", "unflatten", "stack", "flatten", "chunk", "split", "expand", "t"),
    *("movedim", "channel_shuffle", "narrow", "pad", "float"),
}
"""Kinds that only move values."""
VIEWS = MOVES - {"clone", "flip", "stack", "channel_shuffle", "pad"}
"""Those that may give a window into the tensor that they read."""

WEIGHTED = {"linear", "conv1d", "conv2d", "conv_transpose2d", "batch_norm", "embedding", "gru", "gru_cell", "lstm"}
"""Kinds with weights, which only a module brings along."""

_PAD_MODES: dict[type[nn.Module], str] = {
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d), "reflect"),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d), "replicate"),
    **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d), "circular"),
}
_MODULES: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.ConvTranspose2d: "conv_transpose2d",
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), "batch_norm"),
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.PReLU: "prelu",
    nn.LeakyReLU: "leaky_relu",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.GELU: "gelu",
    **{nn.ELU: "elu", nn.SELU: "selu", nn.CELU: "celu", nn.Mish: "mish", nn.Softplus: "softplus"},
    **{nn.Softsign: "softsign", nn.LogSigmoid: "logsigmoid"},
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.SiLU: "silu",
    nn.Softmax: "softmax",
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d), "max_pool"),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d), "avg_pool"),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d), "adaptive_avg_pool"),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d), "adaptive_max_pool"),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d), "upsample"),
    nn.PixelShuffle: "pixel_shuffle",
    nn.Flatten: "flatten",
    nn.Unflatten: "unflatten",
    nn.ChannelShuffle: "channel_shuffle",
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout), "dropout"),
    nn.Identity: "identity",
    nn.Embedding: "embedding",
    nn.GRU: "gru",
    nn.GRUCell: "gru_cell",
    nn.LSTM: "lstm",
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d), "pad"),
    **dict.fromkeys(_PAD_MODES, "pad"),
}
_NAMES: dict[str, str] = {
    **{name: name for name in ("add", "sub", "mul", "div", "matmul", "mean", "clamp", "softmax", "chunk", "split")},
    **{name: name for name in ("relu", "sigmoid", "tanh", "sqrt", "rsqrt", "hardsigmoid", "hardswish", "abs")},
    **{"amax": "amax", "max": "max"},
    **{f"{name}_": name for name in ("add", "sub", "mul", "div", "clamp", "relu", "sigmoid", "tanh", "sqrt")},
    **{name: name for name in MOVES},
    **{"true_divide": "div", "subtract": "sub", "multiply": "mul", "divide": "div", "bmm": "matmul", "mm": "matmul"},
    **{"clip": "clamp", "size": "size", "dim": "size", "numel": "size"},
}
"""Kinds by name of method, and of a function of torch or torch.nn.functional of this name."""


def _functions() -> dict[Any, str]:
    found: dict[Any, str] = {getattr(torch, name): kind for name, kind in _NAMES.items() if hasattr(torch, name)}
    found |= {getattr(F, name): kind for name, kind in _NAMES.items() if hasattr(F, name)}
    more: dict[Any, str] = {
        **{operator.add: "add", operator.iadd: "add", operator.sub: "sub", operator.isub: "sub"},
        **{operator.mul: "mul", operator.imul: "mul", operator.truediv: "div", operator.itruediv: "div"},
        **{operator.neg: "neg", torch.neg: "neg", operator.matmul: "matmul", operator.getitem: "getitem"},
        **{getattr: "size", torch.rsub: "rsub"},
        **{torch.cat: "cat", torch.concat: "cat", torch.concatenate: "cat"},
        **{F.relu6: "relu6", F.hardtanh: "hardtanh", F.leaky_relu: "leaky_relu", F.gelu: "gelu", F.silu: "silu"},
        **{F.max_pool1d: "max_pool", F.max_pool2d: "max_pool", torch.max_pool2d: "max_pool"},
        **{F.avg_pool1d: "avg_pool", F.avg_pool2d: "avg_pool"},
        **{F.adaptive_avg_pool1d: "adaptive_avg_pool", F.adaptive_avg_pool2d: "adaptive_avg_pool"},
        **{F.adaptive_max_pool1d: "adaptive_max_pool", F.adaptive_max_pool2d: "adaptive_max_pool"},
        **{F.interpolate: "upsample", F.pixel_shuffle: "pixel_shuffle", F.pad: "pad"},
        **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, torch.dropout), "dropout"),
    }
    return found | more


_FUNCTIONS: dict[Callable[..., Any], str] = _functions()


def kind_of(node: fx.Node, module: nn.Module | None) -> str:
    """What a node computes; the name of the class or function where this file does not know it.

    Args:
        node: A call of the graph.
        module: The module that it calls, if it does.
    """
    if node.op == "call_module":
        return _MODULES.get(type(module), type(module).__name__) if module is not None else ""
    if node.op in ("call_method", "call_function") and _greater(node):
        return "maximum"
    if node.op == "call_method":
        return _NAMES.get(str(node.target), str(node.target))
    if node.op == "call_function":
        function: Any = node.target
        if function is getattr and node.args[1] in ("values", "indices"):
            return "getitem"  # of what torch.max gives
        return _FUNCTIONS.get(function) or str(getattr(function, "__name__", function))
    return node.op


def _greater(node: fx.Node) -> bool:
    """Whether a `max` is that of two tensors."""
    return node.target in ("max", torch.max) and any(
        isinstance(x, fx.Node) for x in (*node.args[1:], *node.kwargs.values())
    )


def arguments_of(node: fx.Node, kind: str, module: nn.Module | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's operands (nodes and numbers) and its options by name.

    Args:
        node: A call of the graph.
        kind: What it computes.
        module: The module that it calls, if it does.

    Returns:
        Operands and options; options may hold nodes.

    Example:
        >>> graph = fx.symbolic_trace(nn.Sequential(nn.LeakyReLU(0.2))).graph
        >>> node = next(node for node in graph.nodes if node.op == "call_module")
        >>> arguments_of(node, "leaky_relu", nn.LeakyReLU(0.2))[1]
        {'negative_slope': 0.2}
    """
    form = FORMS.get(kind, Form())
    args, named = list(node.args), dict(node.kwargs)
    if kind == "cat":
        parts = args[0] if args else named.get("tensors")
        rest, operands = args[1:], tuple(parts) if isinstance(parts, (tuple, list)) else (parts,)
    else:
        for name in ("input", "other", "mat2", "x1", "x2"):
            if name in named and len(args) < form.tensors:
                args.append(named.pop(name))
        rest, operands = args[form.tensors :], tuple(args[: form.tensors])
    options = {name: getattr(module, name) for name in form.options if hasattr(module, name)}
    if kind == "pad" and module is not None:
        options |= {"pad": module.padding, "mode": _PAD_MODES.get(type(module), "constant")}
    options |= dict(zip(form.options, rest, strict=False))
    options |= {"dim" if name == "axis" else name: value for name, value in named.items()}
    if (
        kind in ("mean", "permute", "amax")
        and len(rest) > 1
        and all(isinstance(v, int) and v is not True for v in rest)
    ):
        options["dim"] = tuple(rest)
    return tuple(o for o in operands if o is not None), options

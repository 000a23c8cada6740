"""Cross-layer equalisation: move size between the channels of consecutive layers, so that one grid suits all of them.

Between two layers with weights that only a positive-homogeneous activation separates, a channel may be divided by any
positive number in the first and multiplied by it in the second. The number that makes both ranges equal leaves neither
layer with channels that use a fraction of the codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from chipfit.chips import ingenic as ops
from chipfit.chips.ingenic.blocks import batchNorm2d
from chipfit.chips.ingenic.layer import WeightedLayer
from chipfit.chips.witmem.digital_activations import WitinPReLU
from chipfit.chips.witmem.layer import WitinLayer
from chipfit.errors import UnsupportedError
from chipfit.recipe.calibration_float import norm_of
from chipfit.recipe.calibration_units import make_up

_SMALLEST_GAIN = 0.01
_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTION)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE: tuple[Any, ...] = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, WitinPReLU),
    *(F.relu, torch.relu, F.leaky_relu, F.dropout, "relu", "relu_"),
)
_POOLS: tuple[Any, ...] = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    *(nn.AdaptiveMaxPool2d, ops.Maxpool2D, ops.Avgpool2D, ops.AdaptiveAvgpool2D),
    *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
)


@dataclass(frozen=True)
class Equalised:
    """One pair of layers.

    Args:
        first: Name of the layer whose outputs were divided.
        second: Name of the layer whose inputs were multiplied.
        spread: Largest over smallest channel range of the first layer before.
        spread_after: The same afterwards.
    """

    first: str
    second: str
    spread: float
    spread_after: float


@dataclass(frozen=True)
class _Pair:
    first: str
    second: str
    rows: nn.Module
    norm: nn.Module | None
    columns: nn.Module
    repeats: int


@torch.no_grad()
def equalise(model: nn.Module, *, sweeps: int = 20) -> list[Equalised]:
    """Equalise the ranges of the channels of consecutive layers; the float network computes the same.

    Linear layers and convolutions of torch, Witmem and Ingenic, with ReLU, LeakyReLU or PReLU between them, pools and
    one flattening. A batch norm after the first layer takes its side of the numbers. Left alone: an activation with a
    bound (ReLU6, and with it the default of Ingenic layers), a layer whose output several read, a Witmem layer with
    `w_clip`, and on the T40 family a signed feature, whose border is -1 whatever the channel.

    Args:
        model: The network, before `chipfit.calibrate`; weights, biases and batch norms are changed in place.
        sweeps: Passes over all pairs at most; each pair moves the ranges of its neighbours.

    Returns:
        One entry per pair.

    Raises:
        UnsupportedError: the network's forward cannot be traced.

    Source:
        Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721),
        section 4.1.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[8.0], [0.5]]))
        >>> _ = net[2].weight.data.copy_(torch.tensor([[2.0, 2.0]]))
        >>> equalise(net)[0].spread, net[0].weight.flatten().tolist(), net[2].weight.tolist()
        (16.0, [4.0, 1.0], [[4.0, 1.0]])
    """
    pairs = _pairs(model)
    before = [_spread(_row_range(pair)) for pair in pairs]
    for _ in range(sweeps):
        furthest = 0.0
        for pair in pairs:
            ratio = _balance(pair)
            furthest = max(furthest, (ratio - 1).abs().max().item())
        if furthest < 1e-3:
            break
    return [
        Equalised(pair.first, pair.second, spread, _spread(_row_range(pair)))
        for pair, spread in zip(pairs, before, strict=True)
    ]


def _balance(pair: _Pair) -> Tensor:
    """Divide the rows and multiply the columns of a pair."""
    rows, columns = _row_range(pair), _column_range(pair)
    alive = (rows > 0) & (columns > 0)
    ratio = torch.where(alive, (rows / columns.clamp(min=1e-30)).sqrt().clamp(1e-4, 1e4), torch.ones_like(rows))
    owner: Any = pair.rows
    if pair.norm is not None:
        owner = pair.norm
        if isinstance(owner, batchNorm2d):  # the chips' gain is never below 0.01
            owner = owner.batch_norm
            owner.weight.clamp_(min=_SMALLEST_GAIN)
            ratio = torch.minimum(ratio, owner.weight / _SMALLEST_GAIN)
    weight = owner.weight
    weight /= ratio.view(-1, *[1] * (weight.dim() - 1))
    if owner.bias is not None:
        owner.bias /= ratio
    make_up(pair.columns, ratio.repeat_interleave(pair.repeats), pair.second)
    return ratio


def _row_range(pair: _Pair) -> Tensor:
    """Largest weight of each output channel of the first layer, batch norm folded in."""
    rows: Any = pair.rows
    largest: Tensor = rows.weight.flatten(1).abs().amax(1)
    norm: Any = pair.norm
    if norm is None:
        return largest
    gain: Tensor = norm.weight if not isinstance(norm, batchNorm2d) else norm.aweight(norm.batch_norm.weight)
    inner: Any = norm.batch_norm if isinstance(norm, batchNorm2d) else norm
    deviation: Tensor = (inner.running_var + norm.eps).sqrt()
    return largest * gain.abs() / deviation


def _column_range(pair: _Pair) -> Tensor:
    """Largest weight that each channel of the second layer's input meets."""
    columns: Any = pair.columns
    weight: Tensor = columns.weight
    if isinstance(columns, nn.Linear):
        return weight.abs().amax(0).view(-1, pair.repeats).amax(1)
    groups = columns.groups
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1).abs().amax((1, 3)).flatten()


def _spread(ranges: Tensor) -> float:
    alive = ranges[ranges > 0]
    return (alive.max() / alive.min()).item() if len(alive) else 1.0


class _Tracer(fx.Tracer):
    """Takes chip layers whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        inside = type(m).__module__.startswith("chipfit.chips.")
        return inside or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> list[_Pair]:
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # torch.fx raises whatever the user's forward raises on a proxy
        raise UnsupportedError(
            "equalisation needs a forward that torch.fx can trace",
            given=type(model).__name__,
            hint=f"It stopped at: {error}",
        ) from error
    modules = dict(model.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or calls.count(node.target) > 1:
            continue
        pair = _pair_from(node, modules, calls)
        if pair is not None:
            found.append(pair)
    return found


def _pair_from(node: fx.Node, modules: dict[str, nn.Module], calls: list[Any]) -> _Pair | None:
    """The pair that starts at a node, if what follows is as it has to be."""
    first = modules[str(node.target)]
    rows, norm, homogeneous = _parts(first)
    if rows is None or not homogeneous or (isinstance(first, WitinLayer) and getattr(first, "w_clip", None)):
        return None
    linear, flat, at = isinstance(rows, nn.Linear), False, node
    channels = rows.weight.shape[0]
    while len(at.users) == 1:
        at = next(iter(at.users))
        kind = _kind(at, modules)
        module = modules[str(at.target)] if at.op == "call_module" else None
        if isinstance(module, _NORMS) and norm is None and module.affine and module.running_var is not None:
            if at.args[0] is not node:
                return None
            norm = module
        elif kind in _POOLS:
            if linear or flat:
                return None
            flat = isinstance(module, ops.AdaptiveAvgpool2D) and not module.keepdim
        elif _flattens(at, module):
            if linear or flat:
                return None
            flat = True
        elif kind not in _ELEMENTWISE:
            columns = _parts(module)[0] if module is not None else None
            if columns is None or calls.count(at.target) > 1 or isinstance(columns, nn.Linear) != (linear or flat):
                return None
            if getattr(module, "w_clip", None) or getattr(module, "is_focus", False):
                return None
            inputs = columns.in_features if isinstance(columns, nn.Linear) else columns.in_channels
            repeats = int(inputs) // channels
            return None if inputs % channels else _Pair(str(node.target), str(at.target), rows, norm, columns, repeats)
    return None


def _parts(module: nn.Module | None) -> tuple[Any, nn.Module | None, bool]:
    """Module with the weight, batch norm inside the layer, and whether the layer's own activation is homogeneous."""
    if isinstance(module, WeightedLayer):
        inner = getattr(module, "Conv2d", None) or getattr(module, "Linear", None)
        signed = module.clip_min_value < 0 or isinstance(module.activation_fn, (ops.LeakyReLU, ops.PReLU, ops.Linear))
        plain = module.activation_fn is None or isinstance(
            module.activation_fn, (ops.ReLU, nn.ReLU, ops.LeakyReLU, ops.PReLU, ops.Linear)
        )
        fits = plain and not module.offset and module.ceiling == float("inf")
        return inner, norm_of(module), fits and not (signed and module.device.family == "T40F")
    return (module, None, True) if isinstance(module, _WEIGHTED) else (None, None, False)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> type | Callable[..., Any] | str:
    return type(modules[str(node.target)]) if node.op == "call_module" else node.target


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node makes (N, C, H, W) to (N, C H W)."""
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    if isinstance(module, ops.Flatten):
        return len(module.shape_list) == 2
    if node.target in (torch.flatten, "flatten"):
        return [*node.args[1:], *node.kwargs.values()] == [1]
    return False

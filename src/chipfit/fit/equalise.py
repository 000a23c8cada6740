"""Cross-layer equalisation: move size between the channels of consecutive layers, so that one grid suits all of them.

Between two layers with weights that only a positive-homogeneous activation separates, a channel may be divided by any
positive number in the first and multiplied by it in the second. The number that makes both ranges equal leaves neither
layer with channels that use a fraction of the codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from chipfit.convert.tracer import ValueTracer
from chipfit.copying import copied
from chipfit.errors import UnsupportedError
from chipfit.fit.contract import Balance, Equalising
from chipfit.fit.figures import spread_of
from chipfit.vendor import Vendor, vendors

_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTION)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_ELEMENTWISE: tuple[Any, ...] = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(F.relu, torch.relu, F.leaky_relu, F.dropout, "relu", "relu_"),
)
_POOLS: tuple[Any, ...] = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
    nn.AdaptiveMaxPool2d,
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
    rows: Balance
    columns: nn.Module
    repeats: int


@torch.no_grad()
def equalise(model: nn.Module, *, sweeps: int = 20) -> list[Equalised]:
    """Equalise the ranges of the channels of consecutive layers; the float network computes the same.

    Linear layers and convolutions of torch and of the chips, with ReLU, LeakyReLU or PReLU between them, pools and one
    flattening. A batch norm after the first layer takes its side of the numbers. Left alone: an activation with a bound
    (ReLU6), a layer whose output several read, and layers that their vendor keeps out, for instance those that clip
    their weights, or whose border is not 0.

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
    before = [spread_of(_row_range(pair)) for pair in pairs]
    for _ in range(sweeps):
        furthest = 0.0
        for pair in pairs:
            ratio = _balance(pair)
            furthest = max(furthest, (ratio - 1).abs().max().item())
        if furthest < 1e-3:
            break
    return [
        Equalised(pair.first, pair.second, spread, spread_of(_row_range(pair)))
        for pair, spread in zip(pairs, before, strict=True)
    ]


def _balance(pair: _Pair) -> Tensor:
    """Divide the rows and multiply the columns of a pair."""
    rows, columns = _row_range(pair), _column_range(pair)
    alive = (rows > 0) & (columns > 0)
    ratio = torch.where(alive, (rows / columns.clamp(min=1e-30)).sqrt().clamp(1e-4, 1e4), torch.ones_like(rows))
    ratio = _divided(pair.rows.rows, ratio) if pair.rows.divide is None else pair.rows.divide(ratio)
    scale_inputs(pair.columns, ratio.repeat_interleave(pair.repeats))
    return ratio


def _divided(owner: Any, ratio: Tensor) -> Tensor:
    """Divide the output channels of a layer or of a batch norm by factors."""
    weight = owner.weight
    weight /= ratio.view(-1, *[1] * (weight.dim() - 1))
    if owner.bias is not None:
        owner.bias /= ratio
    return ratio


@torch.no_grad()
def scale_inputs(module: nn.Module, factor: Tensor) -> None:
    """Multiply what a linear layer or a convolution makes of each input channel by a factor.

    Args:
        module: The layer; its weight is changed in place.
        factor: One number, or one an input channel.

    Example:
        >>> fc = nn.Linear(2, 1)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> before = fc(x)
        >>> scale_inputs(fc, torch.tensor([4.0]))
        >>> torch.allclose(fc(x / 4), before)
        True
    """
    if bool(((factor - 1).abs() < 1e-6).all()):
        return
    weight: Any = module.weight
    if isinstance(module, nn.Linear):
        weight *= factor.to(weight)
        return
    if factor.numel() > 1:  # (O, I / groups, ...): each group of rows sees its own inputs
        groups: Any = module.groups
        factor = factor.view(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    weight *= factor.to(weight).view(*factor.shape, *[1] * (weight.dim() - factor.dim()))


def _row_range(pair: _Pair) -> Tensor:
    """Largest weight of each output channel of the first layer, batch norm folded in."""
    rows: Any = pair.rows.rows
    largest: Tensor = rows.weight.flatten(1).abs().amax(1)
    return largest if pair.rows.gain is None else largest * pair.rows.gain().abs()


def _column_range(pair: _Pair) -> Tensor:
    """Largest weight that each channel of the second layer's input meets."""
    columns: Any = pair.columns
    weight: Tensor = columns.weight
    if isinstance(columns, nn.Linear):
        return weight.abs().amax(0).view(-1, pair.repeats).amax(1)
    groups = columns.groups
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1).abs().amax((1, 3)).flatten()


class _Tracer(ValueTracer):
    """Takes chip layers whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        return any(vendor.owns(m) for vendor in vendors().values()) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> list[_Pair]:
    tracer = _Tracer(copied(model), (), ())
    try:
        graph = tracer.trace(model)
        modules = dict(model.named_modules())
    except UnsupportedError:
        raise
    except Exception as error:  # torch.fx raises whatever the user's forward raises on a proxy
        raise UnsupportedError(
            "equalisation needs a forward that torch.fx can trace",
            given=type(model).__name__,
            hint=f"It stopped at: {error}",
        ) from error
    finally:
        tracer.forget_built(model)
    finder = _Finder(modules, [n.target for n in graph.nodes if n.op == "call_module"])
    found = [finder.pair_from(n) for n in graph.nodes if n.op == "call_module" and finder.calls.count(n.target) == 1]
    return [pair for pair in found if pair is not None]


class _Finder:
    """Follows a traced network from one layer with weights to the next."""

    def __init__(self, modules: dict[str, nn.Module], calls: list[Any]) -> None:
        self.modules, self.calls = modules, calls
        rules = [rule for vendor in vendors().values() if (rule := _rules(vendor)) is not None]
        self.rules = rules
        self.elementwise = (*_ELEMENTWISE, *(kind for rule in rules for kind in rule.elementwise))
        self.pools = (*_POOLS, *(kind for rule in rules for kind in rule.pools))

    def pair_from(self, node: fx.Node) -> _Pair | None:
        """The pair that starts at a node, if what follows is as it has to be."""
        first = self.parts(self.modules[str(node.target)])
        if first is None or not first.homogeneous:
            return None
        linear, flat, at = isinstance(first.rows, nn.Linear), False, node
        weight: Any = first.rows.weight
        while len(at.users) == 1:
            at = next(iter(at.users))
            module = self.modules[str(at.target)] if at.op == "call_module" else None
            kind: Any = at.target if module is None else type(module)
            norm: Any = module
            if isinstance(module, _NORMS) and first.gain is None and norm.affine and norm.running_var is not None:
                if at.args[0] is not node:
                    return None
                first = replace(first, gain=partial(_norm_gain, norm), divide=partial(_divided, norm))
            elif kind in self.pools:
                if linear or flat:
                    return None
                flat = self.flattens(module)
            elif self.reshapes(at, module):
                if linear or flat:
                    return None
                flat = True
            elif kind not in self.elementwise:
                second = None if module is None or self.calls.count(at.target) > 1 else self.parts(module)
                if second is None or isinstance(second.rows, nn.Linear) != (linear or flat) or not second.takes_factors:
                    return None
                columns: Any = second.rows
                inputs = int(columns.in_features if isinstance(columns, nn.Linear) else columns.in_channels)
                repeats, rest = divmod(inputs, weight.shape[0])
                return None if rest else _Pair(str(node.target), str(at.target), first, columns, repeats)
        return None

    def parts(self, module: nn.Module) -> Balance | None:
        """A module with a weight, as a balance; None for any other."""
        for rule in self.rules:
            found = rule.parts(module)
            if found is not None:
                return found
        return Balance(module) if isinstance(module, _WEIGHTED) else None

    def flattens(self, module: nn.Module | None) -> bool:
        """Whether a vendor's module makes (N, C, H, W) to (N, C H W)."""
        return module is not None and any(rule.flattens(module) for rule in self.rules)

    def reshapes(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a node makes (N, C, H, W) to (N, C H W)."""
        if isinstance(module, nn.Flatten):
            return module.start_dim == 1 and module.end_dim == -1
        if self.flattens(module):
            return True
        return node.target in (torch.flatten, "flatten") and [*node.args[1:], *node.kwargs.values()] == [1]


def _rules(vendor: Vendor) -> Equalising | None:
    return None if vendor.fitting is None else vendor.fitting.equalising


def _norm_gain(norm: Any) -> Tensor:
    gain: Tensor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return gain

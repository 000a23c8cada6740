"""What is taken out of a graph before it is mapped: foldable batch norms, and expansions that broadcasting does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from chipfit.convert.operations import kind_of
from chipfit.convert.trace import Traced
from chipfit.convert.words import Seen

_FOLDABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
Keep = Callable[[str, nn.Module, nn.Module], bool]


def fold_batch_norms(traced: Traced, keep: Keep | None = None) -> list[str]:
    """Fold every batch norm that follows a convolution or linear layer whose result nothing else reads.

    The layer's weight becomes `w * gamma / sqrt(var + eps)` a channel and its bias
    `(b - mean) * gamma / sqrt(var + eps) + beta`, computed in float64.

    Args:
        traced: The network; its graph and modules are changed.
        keep: Told a layer's name, the layer and the batch norm behind it, whether the norm is not to be folded. It then
            only leaves the graph, and is the caller's to keep.

    Returns:
        Names of the batch norms that were folded. Others stay: those without running statistics, after a layer that is
        called twice, or with nothing to fold into.

    Example:
        >>> from chipfit.convert.trace import trace
        >>> traced = trace(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)), torch.zeros(1, 1, 4, 4))
        >>> fold_batch_norms(traced)
        ['1']
    """
    network, gone = traced.network, []
    modules = dict(network.named_modules())
    calls = Counter(str(node.target) for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(norm) not in _NORMS or calls[str(node.target)] > 1:
            continue
        before = node.args[0] if node.args else node.kwargs["input"]
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        layer = modules[str(before.target)]
        if not _folds(layer, norm, calls[str(before.target)], traced.seen[before]):
            continue
        if keep is None or norm is None or not keep(str(before.target), layer, norm):
            fold_into(layer, norm)
            gone.append(str(node.target))
        node.replace_all_uses_with(before)
        traced.gives[before] = node
        network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return gone


def _folds(layer: nn.Module, norm: Any, calls: int, output: Seen) -> bool:
    if type(layer) not in _FOLDABLE or calls > 1 or norm.running_mean is None:
        return False
    return not isinstance(layer, nn.Linear) or len(output.shape) == 2  # else the norm's channels are not the layer's


def norm_terms(norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Factor, mean and summand of a batch norm with running statistics, in float64: `(x - mean) * factor + summand`.

    Args:
        norm: The batch norm.
    """
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(norm.running_var) if norm.bias is None else norm.bias.detach()
    factor = gamma.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    return factor, norm.running_mean.double(), beta.double()


def fold_into(layer: Any, norm: Any) -> None:
    """Fold a batch norm with running statistics into the layer before it, in place.

    Args:
        layer: Linear, convolution or transposed convolution.
        norm: The batch norm after it.
    """
    with torch.no_grad():
        factor, mean, shift = norm_terms(norm)
        bias = torch.zeros_like(norm.running_mean) if layer.bias is None else layer.bias
        weight = layer.weight.double()
        if isinstance(layer, nn.ConvTranspose2d):  # (in, out / groups, ...): the output channels are along two axes
            grouped = weight.unflatten(0, (layer.groups, -1))
            per_group = factor.view(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
            folded = (grouped * per_group).flatten(0, 1)
        else:
            folded = weight * factor.view(-1, *(1,) * (weight.dim() - 1))
        new_bias = (bias.double() - mean) * factor + shift
        trains = layer.weight.requires_grad
        layer.weight = nn.Parameter(folded.to(layer.weight.dtype), requires_grad=trains)
        layer.bias = nn.Parameter(new_bias.to(layer.weight.dtype), requires_grad=trains)


def drop_expansions(traced: Traced) -> None:
    """Take out `expand` and `expand_as` before arithmetic that broadcasts by itself.

    Args:
        traced: The network; its graph is changed.
    """
    for node in list(traced.network.graph.nodes):
        if node.op != "call_method" or node.target not in ("expand", "expand_as") or not node.users:
            continue
        whole = all(_broadcasts(user, node, traced) for user in node.users)
        if whole and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(node.args[0])
            traced.network.graph.erase_node(node)
    traced.network.recompile()


def _broadcasts(user: fx.Node, node: fx.Node, traced: Traced) -> bool:
    """Whether a node gives the same shape without the expansion of one of its operands."""
    if user.op == "call_module" or kind_of(user, None) not in ("add", "sub", "mul", "div"):
        return False
    read: list[Any] = [node.args[0] if x is node else x for x in user.args if isinstance(x, fx.Node)]
    found = [traced.seen.get(x) for x in (*read, user)]
    if not all(isinstance(seen, Seen) for seen in found):
        return False
    *shapes, whole = (seen.shape for seen in found if seen is not None)
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True)) == tuple(whole)

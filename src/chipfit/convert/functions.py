"""Functions that read parameters, such as `F.linear(x, self.weight)`, as the modules that they are."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from chipfit.convert.trace import Traced

_LINEAR = ("input", "weight", "bias")
_CONV = (*_LINEAR, "stride", "padding", "dilation", "groups")


def _linear(weight: Any, **_: Any) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0])


def _conv(kind: Any) -> Callable[..., nn.Module]:
    def build(weight: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> nn.Module:
        outputs, inputs, *kernel = weight.shape
        layer: nn.Module = kind(inputs * groups, outputs, tuple(kernel), stride, padding, dilation, groups)
        return layer

    return build


_BUILDERS: dict[Any, tuple[tuple[str, ...], Callable[..., nn.Module]]] = {
    F.linear: (_LINEAR, _linear),
    F.conv1d: (_CONV, _conv(nn.Conv1d)),
    F.conv2d: (_CONV, _conv(nn.Conv2d)),
}


def lift_functions(traced: Traced, name_of: Callable[[fx.Node], str]) -> None:
    """Put modules in place of linear and convolution functions whose weight and bias are the network's own.

    Args:
        traced: The network; its graph is changed. The parameters move to the new modules.
        name_of: Names the module of a call.
    """
    network = traced.network
    for node in list(network.graph.nodes):
        if node.op != "call_function" or node.target not in _BUILDERS:
            continue
        names, build = _BUILDERS[node.target]
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        weight, bias = (_parameter(network, given.get(name)) for name in ("weight", "bias"))
        if weight is None or (bias is None and given.get("bias") is not None):
            continue
        rest = {name: value for name, value in given.items() if name not in _LINEAR}
        module: Any = build(weight, **rest)
        module.weight = weight
        module.bias = bias
        name = name_of(node)
        network.add_submodule(name, module)
        node.op, node.target, node.args, node.kwargs = "call_module", name, (given["input"],), {}
    network.graph.eliminate_dead_code()
    network.recompile()


def _parameter(network: nn.Module, node: Any) -> nn.Parameter | None:
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(network)
    return value if isinstance(value, nn.Parameter) else None

"""Copies of networks, whatever their users keep in them."""

from __future__ import annotations

import copy
import types
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, types.FunctionType, types.BuiltinFunctionType)


def inside(model: nn.Module) -> nn.Module:
    """The network inside a wrapper that spreads it over devices; any other as it is.

    Example:
        >>> net = nn.ReLU()
        >>> inside(nn.DataParallel(net)) is net, inside(net) is net
        (True, True)
    """
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return model


def copied(model: _Module) -> _Module:
    """Copy a network.

    `copy.deepcopy` fails on what user code keeps as an attribute: a Python module (`self.config = config`), an open
    file, a lock, a feature that still hangs on its gradient. Such things are shared with the copy, and so is nothing
    else; of such a feature the copy has the values.

    Args:
        model: The network; it is not changed.

    Returns:
        The copy.

    Example:
        >>> import math
        >>> net = nn.Linear(1, 1)
        >>> net.config = math
        >>> twin = copied(net)
        >>> twin.config is math, twin.weight is net.weight
        (True, False)
    """
    shared: dict[int, Any] = {}
    _find(model, shared, set())
    return copy.deepcopy(model, shared)


def _find(value: Any, shared: dict[int, Any], seen: set[int]) -> None:
    """Note what cannot be copied in a value, as `copy.deepcopy` notes what it has copied already."""
    if isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            shared[id(value)] = value.detach().clone()
    elif isinstance(value, types.ModuleType):
        shared[id(value)] = value
    elif isinstance(value, dict):
        for part in (*value.keys(), *value.values()):
            _find(part, shared, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            _find(part, shared, seen)
    elif isinstance(value, nn.Module):
        _find(vars(value), shared, seen)
    elif not _copies(value, shared):
        _find(getattr(value, "__dict__", {}), shared, seen)
        if not _copies(value, shared):
            shared[id(value)] = value


def _copies(value: Any, shared: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(shared))
    except Exception:  # whatever the user's own object raises
        return False
    return True

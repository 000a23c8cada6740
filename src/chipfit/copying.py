"""Copies of networks, whatever their users keep in them."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import Tensor, nn

from chipfit.errors import UnsupportedError

_Module = TypeVar("_Module", bound=nn.Module)
_CONTAINERS = (dict, list, tuple, set, frozenset)
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

    Raises:
        UnsupportedError: a module of the network itself refuses to be copied.

    Example:
        >>> import math
        >>> net = nn.Linear(1, 1)
        >>> net.config = math
        >>> twin = copied(net)
        >>> twin.config is math, twin.weight is net.weight
        (True, False)
    """
    shared: dict[int, Any] = {}
    strangers: list[Any] = []
    _walk(model, shared, strangers, set())
    try:
        return copy.deepcopy(model, dict(shared))
    except Exception:  # whatever the objects of user code raise
        for stranger in strangers:
            if not _copies(stranger, shared):
                shared[id(stranger)] = stranger
    try:
        return copy.deepcopy(model, shared)
    except Exception as error:
        raise UnsupportedError(
            "the network cannot be copied",
            given=(str(error) or type(error).__name__).splitlines()[0],
            where=type(model).__name__,
            hint="copy.deepcopy(model) has to work, but for modules, locks and files among its attributes.",
        ) from error


def _walk(value: Any, shared: dict[int, Any], strangers: list[Any], seen: set[int]) -> None:
    """Note what is never copied, as `copy.deepcopy` notes what it has copied, and list user's objects, inner first."""
    if isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    parts: Iterable[Any] = ()
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            shared[id(value)] = value.detach().clone()
    elif isinstance(value, types.ModuleType):
        shared[id(value)] = value
    elif isinstance(value, dict):
        parts = (*value.keys(), *value.values())
    elif isinstance(value, _CONTAINERS):
        parts = value
    elif isinstance(value, types.MethodType):
        parts = (value.__self__,)
    else:
        parts = getattr(value, "__dict__", {}).values()
    for part in parts:
        _walk(part, shared, strangers, seen)
    if not isinstance(value, (Tensor, nn.Module, types.ModuleType, types.MethodType, *_CONTAINERS)):
        strangers.append(value)


def _copies(value: Any, shared: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(shared))
    except Exception:  # as above
        return False
    return True

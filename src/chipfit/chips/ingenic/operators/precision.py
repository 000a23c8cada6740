"""Quantised operators compute in float32, outside autocast: half precision holds neither sums nor all codes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

_Forward = TypeVar("_Forward", bound=Callable[..., Any])
_HALF = (torch.float16, torch.bfloat16)


def at_full_precision(forward: _Forward) -> _Forward:
    """Have a quantised forward run outside autocast, on float32; in float it does as torch would.

    Args:
        forward: Of an `Operator`.

    Example:
        >>> from chipfit.chips.ingenic import FullConnected
        >>> fc = FullConnected(32, 4, None, quantize=True, last_layer=True, weight_bitwidth=8, target_device="T40")
        >>> x = torch.rand(2, 32)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     y = fc(x)
        >>> torch.equal(y, fc(x))
        True
    """

    @functools.wraps(forward)
    def full(operator: Any, *inputs: Any, **named: Any) -> Any:
        if operator.floating or not getattr(operator, "quantize", True):
            return forward(operator, *inputs, **named)
        tensor = _first((*inputs, *named.values()))
        kind = "cpu" if tensor is None else tensor.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # 'meta' has none
        if not autocast and (tensor is None or tensor.dtype not in _HALF):
            return forward(operator, *inputs, **named)
        with torch.autocast(kind, enabled=False):
            return forward(operator, *_widened(inputs), **{name: _widened(value) for name, value in named.items()})

    return cast(_Forward, full)


def _first(values: Any) -> Tensor | None:
    if isinstance(values, Tensor):
        return values
    parts = values if isinstance(values, (tuple, list)) else ()
    return next((found for part in parts if (found := _first(part)) is not None), None)


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    return type(value)(map(_widened, value)) if type(value) in (tuple, list) else value

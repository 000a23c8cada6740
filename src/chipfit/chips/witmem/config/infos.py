"""Two small names of the vendor's package that scripts import."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class WITIN_NN_GLOBAL_INFOS:  # the vendor's spelling
    """What the vendor's package says of itself; scripts print it.

    Attributes:
        VERSION: Version of the vendor's library whose numbers chipfit reproduces.
        DEBUG: Always False.

    Example:
        >>> WITIN_NN_GLOBAL_INFOS().VERSION
        '0.1.3'
    """

    VERSION: str = "0.1.3"
    DEBUG: bool = False


def empty_witmem_cache(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorate a function so that the accelerator's unused memory is given back after it.

    Args:
        function: Any function, typically one epoch of training.

    Returns:
        The wrapped function.

    Example:
        >>> @empty_witmem_cache
        ... def epoch():
        ...     return "done"
        >>> epoch()
        'done'
    """

    @functools.wraps(function)
    def wrapper(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    return wrapper

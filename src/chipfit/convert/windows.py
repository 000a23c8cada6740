"""The windows of a pool, whichever way torch was asked for them; both vendors' conversion rules look at them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chipfit.convert.words import Operation


@dataclass(frozen=True)
class Windows:
    """What a pool looks at; one number a spatial axis.

    Args:
        kernel: Size of a window.
        stride: Distance from one to the next.
        padding: Border before and after.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


def each(value: Any, count: int) -> tuple[int, ...]:
    """One number an axis, of one for all of them or of one each.

    Example:
        >>> each(2, 2), each([1, 3], 2)
        ((2, 2), (1, 3))
    """
    return (value,) * count if isinstance(value, int) else tuple(value)


def windows_of(operation: Operation) -> Windows | None:
    """The windows of a maximum or an average; None for an adaptive one whose windows differ in size.

    Args:
        operation: Of kind 'max_pool', 'avg_pool', 'adaptive_max_pool' or 'adaptive_avg_pool'.

    Example:
        >>> from chipfit.convert.words import Seen
        >>> windows_of(Operation("p", "adaptive_avg_pool", (Seen((1, 4, 6, 6)),), Seen((1, 4, 2, 3)), (True,)))
        Windows(kernel=(3, 2), stride=(3, 2), padding=(0, 0))
    """
    before, after, options = operation.shape[2:], operation.output.shape[2:], operation.options
    rank = len(before)
    if operation.kind.startswith("adaptive"):
        if any(size % parts for size, parts in zip(before, after, strict=True)):
            return None
        kernel = tuple(size // parts for size, parts in zip(before, after, strict=True))
        return Windows(kernel, kernel, (0,) * rank)
    kernel = each(options["kernel_size"], rank)
    return Windows(kernel, each(options.get("stride") or kernel, rank), each(options.get("padding") or 0, rank))


def weighs_equally(operation: Operation, windows: Windows) -> bool:
    """Whether an average divides every sum by the number of values in a window.

    Args:
        operation: The average.
        windows: Its windows.
    """
    sizes = (operation.shape[2:], operation.output.shape[2:], windows.kernel, windows.stride, windows.padding)
    partial = any((parts - 1) * step + k > size + 2 * pad for size, parts, k, step, pad in zip(*sizes, strict=True))
    uneven = any(windows.padding) and operation.options.get("count_include_pad") is False
    return not (partial or uneven or operation.options.get("divisor_override"))

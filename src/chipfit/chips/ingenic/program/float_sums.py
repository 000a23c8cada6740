"""The order in which the training kit adds the values of a mean, for whatever can be added: tensors, nodes of a graph.

Source: spec/ingenic.md, section 8; how torch sums on a CPU with AVX2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

_T = TypeVar("_T")
_LANES, _ROWS, _DEPTH = 8, 16, 3


def positions_sum(count: int, x: _T, cut: Callable[[_T, int, int], _T], add: Callable[[_T, _T], _T]) -> _T:
    """Sum of the numbers along an axis.

    They are taken in vectors of 8, or one by one where there are fewer. Rows of four vectors are added first, see
    `cascade`, then the vectors that are left over to the first of the four, then the other three to it. The numbers
    left over are added up, and to them one after the other those of the vector.

    Args:
        count: Numbers along the axis, at least one.
        x: All of them.
        cut: The numbers from one position up to another, along the axis.
        add: Adds two of equal length, rounding once.

    Returns:
        The sum, of length 1.

    Example:
        >>> def pair(a, b):
        ...     return [f"({p}+{q})" for p, q in zip(a, b)]
        >>> positions_sum(6, list("abcdef"), lambda v, start, stop: v[start:stop], pair)
        ['(((((a+e)+f)+b)+c)+d)']
    """
    lanes = _LANES if count >= _LANES else 1
    vectors = count // lanes
    fours = vectors // 4
    rest = [cut(x, lanes * i, lanes * (i + 1)) for i in range(4 * fours, vectors)]
    if fours:
        row = cascade([cut(x, 4 * lanes * i, 4 * lanes * (i + 1)) for i in range(fours)], add)
        first, *others = (cut(row, lanes * k, lanes * (k + 1)) for k in range(4))
        rest = [first, *rest, *others]
    vector = reduce(add, rest)
    if lanes == 1:
        return vector
    left = [cut(x, i, i + 1) for i in range(lanes * vectors, count)]
    return reduce(add, [*left, *(cut(vector, k, k + 1) for k in range(lanes))])


def cascade(rows: Sequence[_T], add: Callable[[_T, _T], _T], depth: int = _DEPTH) -> _T:
    """Sum of rows: each full block of 16^depth rows by itself, the blocks' sums in order, and these to the rest.

    A block is summed in the same way, with one level less: 16 rows one after the other.

    Example:
        >>> cascade(["a", "b", "c"], lambda p, q: f"({p}+{q})")
        '((a+b)+c)'
    """
    if depth == 0:
        return reduce(add, rows)
    size = _ROWS**depth
    full = len(rows) // size
    blocks = [cascade(rows[size * i : size * (i + 1)], add, depth - 1) for i in range(full)]
    rest = rows[size * full :]
    parts = [cascade(rest, add, depth - 1)] if rest else []
    return reduce(add, [*parts, *([reduce(add, blocks)] if blocks else [])])

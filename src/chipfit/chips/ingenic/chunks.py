"""Pieces of tensors that stay in a core's cache through all passes over them; elsewhere than on a CPU the whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Scratch = tuple[Tensor, ...]
"""Tensors of a piece's layout to work in."""


def flat_chunks(x: Tensor, y: Tensor, size: int, spare: int) -> Iterator[tuple[Tensor, Tensor, Scratch]]:
    """Matching pieces of two tensors of equal layout, and scratch space.

    Args:
        x: Any shape; (N, C, H, W) may be channels last.
        y: As `x`.
        size: Elements of a piece, on a CPU.
        spare: Tensors of scratch space.

    Example:
        >>> x = torch.arange(5)
        >>> [part.tolist() for part, _, _ in flat_chunks(x, torch.empty_like(x), 2, 1)]
        [[0, 1], [2, 3], [4]]
    """
    if x.device.type == "cpu" and x.numel() > size:
        if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            x, y = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
        if x.is_contiguous() and y.is_contiguous():
            scratch = x.new_empty(spare, size)
            for source, out in zip(torch.split(x.view(-1), size), torch.split(y.view(-1), size), strict=True):
                yield source, out, scratch[:, : out.numel()].unbind()
            return
    yield x, y, tuple(torch.empty_like(y) for _ in range(spare))


def row_chunks(
    rows: Tensor, out: Tensor, size: int, spare: int, *columns: Tensor
) -> Iterator[tuple[Tensor, Tensor, Scratch, Scratch]]:
    """Pieces of a matrix, of one of its layout, scratch space, and of columns with a value a row; as `flat_chunks`.

    Example:
        >>> rows = torch.arange(6).view(3, 2)
        >>> [(part.tolist(), column.tolist()) for part, _, _, (column,) in row_chunks(rows, rows, 4, 1, rows[:, :1])]
        [([[0, 1], [2, 3]], [[0], [2]]), ([[4, 5]], [[4]])]
    """
    count, length = rows.shape
    if rows.device.type != "cpu" or rows.numel() <= size:
        yield rows, out, tuple(torch.empty_like(out) for _ in range(spare)), columns
    elif count == 1:
        scratch = rows.new_empty(spare, 1, size)
        for source, piece in zip(torch.split(rows, size, 1), torch.split(out, size, 1), strict=True):
            yield source, piece, scratch[:, :, : piece.shape[1]].unbind(), columns
    else:
        step = max(1, size // length)
        scratch = rows.new_empty(spare, step, length)
        for source, piece, *values in zip(*(torch.split(part, step) for part in (rows, out, *columns)), strict=True):
            yield source, piece, scratch[:, : len(piece)].unbind(), tuple(values)

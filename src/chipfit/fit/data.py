"""Real handwritten digits: scikit-learn's 1,797 scans, and MNIST from IDX files."""

from __future__ import annotations

import gzip
import io
import math
import struct
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import TensorDataset

from chipfit.errors import FileFormatError
from chipfit.reading import content, reading

_IDX_TYPES = {0x08: np.uint8, 0x09: np.int8, 0x0B: np.int16, 0x0C: np.int32, 0x0D: np.float32, 0x0E: np.float64}

_LONGEST_HEADER = 4 + 4 * 255


def digits(seed: int = 0, test_share: float = 0.25) -> tuple[TensorDataset, TensorDataset]:
    """Scikit-learn's digits, split by class.

    Args:
        seed: Seed of the split.
        test_share: Share of the test set.

    Returns:
        `(train, test)`: images `(N, 1, 8, 8)` in 0 to 1, labels `(N,)` int64.

    Example:
        >>> train, test = digits()
        >>> len(train), len(test), train[0][0].shape
        (1347, 450, torch.Size([1, 8, 8]))
    """
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=test_share, random_state=seed, stratify=labels)
    x_train, x_test, y_train, y_test = (torch.as_tensor(part) for part in split)

    def dataset(x: Tensor, y: Tensor) -> TensorDataset:
        return TensorDataset((x.float() / 16).view(-1, 1, 8, 8), y.long())

    return dataset(x_train, y_train), dataset(x_test, y_test)


def mnist(root: Path | str) -> tuple[TensorDataset, TensorDataset]:
    """MNIST from its four IDX files, gzipped or not.

    Args:
        root: Folder that holds train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
            t10k-labels-idx1-ubyte, each with or without .gz.

    Returns:
        `(train, test)`: images `(N, 1, 28, 28)` in 0 to 1, labels `(N,)` int64.

    Raises:
        FileFormatError: a file is missing or is no IDX file of the expected shape.
    """
    parts = []
    for name in ("train", "t10k"):
        images = read_idx(Path(root) / f"{name}-images-idx3-ubyte")
        labels = read_idx(Path(root) / f"{name}-labels-idx1-ubyte")
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise FileFormatError(
                "images and labels do not fit together",
                given=(tuple(images.shape), tuple(labels.shape)),
                allowed="(N, height, width) and (N,)",
                where=f"{root}, {name}",
            )
        if labels.dtype.is_floating_point or not bool(((labels >= 0) & (labels <= 9)).all()):
            raise FileFormatError("labels that are no digits", allowed="0 to 9", where=f"{root}, {name}")
        if images.dtype != torch.uint8:
            raise FileFormatError("images that are no bytes", given=images.dtype, where=f"{root}, {name}")
        parts.append(TensorDataset(images.float().div(255).unsqueeze(1), labels.long()))
    return parts[0], parts[1]


def read_idx(path: Path, most: int = 1 << 27) -> Tensor:
    """Read an IDX file.

    Args:
        path: The file, with or without .gz.
        most: Bytes of values that it may hold, unpacked; the 60,000 images of MNIST are 47 million.

    Returns:
        A tensor of the file's shape and type.

    Raises:
        FileFormatError: the file is missing, cut short, no IDX file, or holds more than `most` bytes, or others than
            its header says.
    """
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and not packed.exists():
        raise FileFormatError(
            "no such file", given=str(path), where="read_idx", hint="Give the folder that holds the IDX files."
        )
    found = path if path.exists() else packed
    with reading("the IDX file", found):
        raw = content(found, most + _LONGEST_HEADER)
        # a packed file is unpacked as far as its header says, never to its end
        with io.BytesIO(raw) if found is path else gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            return _idx(file, most, str(found))


def _idx(file: io.BytesIO | gzip.GzipFile, most: int, where: str) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _IDX_TYPES:
        raise FileFormatError("not an IDX file", given=start, allowed="two zero bytes, type, rank", where=where)
    rank = start[3]
    shape = struct.unpack(f">{rank}I", file.read(4 * rank))
    kind = np.dtype(_IDX_TYPES[start[2]]).newbyteorder(">")
    size = math.prod(shape) * kind.itemsize
    if size > most:
        raise FileFormatError("the file is too large", given=size, allowed=f"up to {most} bytes", where=where)
    body = file.read(size)
    if len(body) < size:
        raise FileFormatError("the IDX file is cut short", given=len(body), allowed=f"{size}, {shape}", where=where)
    if file.read(1):
        raise FileFormatError("the IDX file holds more than its header says", allowed=str(shape), where=where)
    return torch.from_numpy(np.frombuffer(body, kind).reshape(shape).astype(kind.newbyteorder("=")))


def shift_by_a_pixel(images: Tensor) -> Tensor:
    """Move each image by -1, 0 or 1 pixels in both directions at random: handwriting is not centred to the pixel.

    Args:
        images: Shape `(N, C, H, W)`.

    Returns:
        Images of the same shape; what moves in is 0.

    Example:
        >>> shift_by_a_pixel(torch.ones(2, 1, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    height, width = images.shape[-2:]
    moves = torch.randint(0, 9, (len(images),), device=images.device)
    out = torch.empty_like(images)
    for move in range(9):
        dy, dx = divmod(move, 3)
        chosen = moves == move
        out[chosen] = padded[chosen, :, dy : dy + height, dx : dx + width]
    return out

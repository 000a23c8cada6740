"""Real digits, and IDX files whole and broken."""

import gzip
import struct

import pytest
import torch

from chipfit.errors import FileFormatError
from chipfit.fit.data import digits, mnist, read_idx, shift_by_a_pixel


def idx(array: torch.Tensor) -> bytes:
    shape = struct.pack(f">{array.dim()}I", *array.shape)
    return bytes([0, 0, 8, array.dim()]) + shape + array.numpy().tobytes()


def test_digits_split_is_seeded_stratified_and_disjoint():
    train, test = digits(seed=3)
    again = digits(seed=3)[1]
    assert torch.equal(test.tensors[0], again.tensors[0])
    assert not torch.equal(test.tensors[1], digits(seed=4)[1].tensors[1])
    assert (len(train), len(test)) == (1347, 450)
    assert train.tensors[0].min() >= 0 and train.tensors[0].max() == 1
    assert torch.bincount(test.tensors[1]).min() >= 43
    assert len({x.numpy().tobytes() for x in torch.cat([train.tensors[0], test.tensors[0]])}) == 1797


def test_mnist_reads_plain_and_gzipped_files(tmp_path):
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    labels = torch.arange(5, dtype=torch.uint8)
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    train, _ = mnist(tmp_path)
    assert torch.equal(train.tensors[0], images.unsqueeze(1) / 255)
    assert train.tensors[1].tolist() == [0, 1, 2, 3, 4]


def test_broken_idx_files(tmp_path):
    with pytest.raises(FileFormatError, match="no such file"):
        mnist(tmp_path)
    path = tmp_path / "broken"
    path.write_bytes(b"\x1f\x8bnot idx")
    with pytest.raises(FileFormatError, match="not an IDX file"):
        read_idx(path)
    path.write_bytes(idx(torch.zeros(4, 4, dtype=torch.uint8))[:-3])
    with pytest.raises(FileFormatError, match="cut short"):
        read_idx(path)
    images = tmp_path / "train-images-idx3-ubyte"
    images.write_bytes(idx(torch.zeros(4, 2, 2, dtype=torch.uint8)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(torch.zeros(3, dtype=torch.uint8)))
    with pytest.raises(FileFormatError, match="do not fit"):
        mnist(tmp_path)


def test_shift_moves_each_image_by_at_most_a_pixel():
    image = torch.zeros(500, 1, 5, 5)
    image[:, 0, 2, 2] = 1
    moved = shift_by_a_pixel(image)
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(500))
    assert moved[:, 0, 1:4, 1:4].sum() == 500
    assert (moved.sum(0)[0, 1:4, 1:4] > 20).all()

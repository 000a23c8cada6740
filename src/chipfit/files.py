"""Writing files so that nothing is ever half there: beside their place first, then renamed; networks as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from chipfit.errors import FileFormatError
from chipfit.folders import replace_file, staging, writing
from chipfit.reading import checked, reading

_SUM = "chipfit.sha256"
"""Entry of a file's metadata: the sum over its tensors, which is compared when they are read."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path on the same file system that takes the place of `path` when the block ends without an error.

    Args:
        path: The file to write; its folder is made.

    Yields:
        The path to write to.

    Raises:
        WritingError: it cannot be written; the file is as it was then.
    """
    with writing(path), staging(path) as room:
        yield room / path.name  # the writer makes it, with the user's umask
        replace_file(room / path.name, path)


def write_text(path: Path, content: str) -> None:
    """Write text in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def save_model(path: Path, model: nn.Module) -> None:
    """Save a network's state as safetensors: tensors only, `io_max` of every observer among them, and a sum of them."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={_SUM: _sum_of(state)})


def load_model(path: Path, model: nn.Module) -> nn.Module:
    """Load what `save_model` wrote into a network of the same structure; on an error the network is as it was.

    Raises:
        FileFormatError: no such file, not a safetensors file, one that was changed, or whose tensors do not fit the
            network or hold what is no number.
    """
    with reading("the model file", path):
        raw = checked(path)
        state: dict[str, Tensor] = load(raw)
        metadata = _metadata(raw)
        # others' files have no metadata, or say their format in them: any other entry was our sum
        if metadata and "format" not in metadata and metadata.get(_SUM) != _sum_of(state):
            raise FileFormatError("the file was changed: its tensors have another sum", where=str(path))
        for name, _ in model.named_parameters():
            if name in state and not bool(torch.isfinite(state[name].float()).all()):
                raise FileFormatError("a weight that is no number", given=name, where=str(path))
        before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        try:
            model.load_state_dict(state)
        except BaseException:
            model.load_state_dict(before)
            raise
    return model


def _metadata(raw: bytes) -> dict[str, Any]:
    """The metadata of a safetensors file that was read before."""
    length = int.from_bytes(raw[:8], "little")
    found = json.loads(raw[8 : 8 + length].decode("utf-8")).get("__metadata__")
    return found if isinstance(found, dict) else {}


def _sum_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().contiguous().cpu()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()

"""Writing files so that nothing is ever half there: to a temporary name first, then renamed."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from chipfit.errors import FileFormatError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of `path` when the block ends without an error.

    Args:
        path: The file to write; its folder is made.

    Yields:
        The path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # the writer makes it, with the user's umask
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write text in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write plain data as JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def save_model(path: Path, model: nn.Module) -> None:
    """Save a network's state as safetensors: tensors only, `io_max` of every observer among them."""
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary)


def load_model(path: Path, model: nn.Module) -> nn.Module:
    """Load what `save_model` wrote into a network of the same structure.

    Raises:
        FileFormatError: no such file, or not a safetensors file.
    """
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except Exception as error:
        raise FileFormatError("cannot read the model file", given=str(error), where=str(path)) from error
    model.load_state_dict(state)
    return model

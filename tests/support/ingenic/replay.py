"""Recorded cases of the vendor's kit, replayed: names, numbers and tolerances follow the README of the vectors."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).parents[2] / "data" / "ingenic"
CASES: dict[str, Any] = json.loads((DATA / "public" / "cases.json").read_text())
TARGETS: dict[str, Any] = json.loads((DATA / "targets.json").read_text())["ops"]


def generator(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)


def arrays(case: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(DATA / "public" / f"{case['id']}.npz") as file:
        return {key: file[key] for key in file.files}


def initial(case_id: str, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    rng = generator(f"{case_id}/{key}")
    if key.endswith("running_mean"):
        value = np.zeros(shape)
    elif key.endswith("running_var"):
        value = np.ones(shape)
    elif "batch_norm.weight" in key:
        value = 0.5 + rng.rand(*shape)
    elif key.endswith("prelu.weight"):
        value = 0.05 + 0.3 * rng.rand(*shape)
    elif key.endswith("bias"):
        value = 0.2 * rng.randn(*shape)
    else:
        scale = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.3
        value = rng.randn(*shape) * scale
    return torch.from_numpy(np.asarray(value, np.float32))


def fill(module: torch.nn.Module, case_id: str) -> None:
    state = module.state_dict()
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    module.load_state_dict({k: v if k in counters else initial(case_id, k, tuple(v.shape)) for k, v in state.items()})


def upstream(case_id: str, index: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(generator(f"{case_id}/g{index}").randn(*shape).astype(np.float32))


def assert_codes(got: torch.Tensor, want: np.ndarray, atol: Any, step: Any, share: float) -> None:
    """Equal within `atol`; a few elements, ties, may lie on the neighbouring code."""
    assert tuple(got.shape) == want.shape
    distance = np.abs(got.detach().double().numpy() - want.astype(np.float64))
    assert (distance <= step * 1.001 + atol).all(), f"more than a code off: {distance.max()}"
    off = int((distance > atol).sum())
    assert off <= (max(1, int(share * distance.size)) if share else 0), f"{off} codes off"


def assert_close(got: torch.Tensor, want: np.ndarray, rtol: float, atol: float) -> None:
    torch.testing.assert_close(got.detach(), torch.from_numpy(want), rtol=rtol, atol=atol)


def flatten(out: Any) -> list[tuple[torch.Tensor, tuple[float, float] | None]]:
    if isinstance(out, torch.Tensor):
        return [(out, None)]
    if isinstance(out, tuple) and len(out) == 3 and not isinstance(out[1], torch.Tensor):
        return [(out[0], (out[1], out[2]))]
    return [pair for part in out for pair in flatten(part)]


def decode(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return torch.from_numpy(generator(name).rand(*value["tensor"]).astype(np.float32))
        return tuple(decode(part, name) for part in value["tuple"])
    return [decode(part, name) for part in value] if isinstance(value, list) else value

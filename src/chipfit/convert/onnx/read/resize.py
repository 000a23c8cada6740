"""Resize and Upsample.

The file's operators know more ways to place and round than torch has. Each axis is a matrix: where torch's
`interpolate` has the same one it is called; otherwise places are taken by number, or the matrix is multiplied.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import UnfitError, Value

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
_ROUND: dict[str, Any] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
_TORCH: dict[str, tuple[tuple[str, bool | None], ...]] = {
    "nearest": (("nearest", None), ("nearest-exact", None)),
    "linear": (("linear", False), ("linear", True)),
    "cubic": (("cubic", False), ("cubic", True)),
}
"""What torch has, and whether corners are aligned."""
_AXES_OF = {"linear": ("", "linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "bicubic", "")}


@reads("Upsample")
def _upsample(c: Builder, x: Value, scales: Value | None = None, *, mode: str = "nearest") -> Value:
    known("mode", mode, ("nearest", "linear", "bilinear"))
    if scales is None:
        raise UnfitError("no scales")
    mode = "linear" if mode == "bilinear" else mode
    return _resized(c, x, list(range(x.rank)), scales.tensor.tolist(), None, mode, "asymmetric", "floor")


@reads("Resize")
def _resize(
    c: Builder,
    x: Value,
    given: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Value:
    known("antialias", antialias, (0,))
    known("coordinate_transformation_mode", coordinate_transformation_mode, _COORDINATES)
    known("keep_aspect_ratio_policy", keep_aspect_ratio_policy, ("stretch",))
    known("mode", mode, tuple(_TORCH))
    known("nearest_mode", nearest_mode, tuple(_ROUND))
    if c.opset < 11:
        scales, coordinate_transformation_mode, nearest_mode = given, "asymmetric", "simple"
    chosen = [x.axis(axis) for axis in axes] if axes is not None else list(range(x.rank))
    factors = scales.tensor.tolist() if scales is not None and scales.probes[0].numel() else None
    if (factors is None) == (sizes is None or not sizes.probes[0].numel()):
        raise UnfitError("either scales or sizes must be given")
    wanted = None if sizes is None or factors is not None else [p.tolist() for p in sizes.probes]
    if sizes is not None and sizes.live:
        raise UnfitError("sizes that are computed from values")
    return _resized(
        c,
        x,
        chosen,
        factors,
        wanted,
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        a=cubic_coeff_a,
        outside=not exclude_outside,
    )


def _resized(
    c: Builder,
    x: Value,
    axes: list[int],
    factors: list[float] | None,
    wanted: list[list[int]] | None,
    mode: str,
    place: str,
    rounded: str,
    **cubic: Any,
) -> Value:
    """The tensor with the axes resized, by factors or to sizes."""
    given: Any = factors if factors is not None else wanted[0] if wanted is not None else ()
    if len(given) != len(axes):
        raise UnfitError(f"{len(given)} factors or sizes for {len(axes)} axes")
    plans: dict[int, tuple[int, float, np.ndarray[Any, Any]]] = {}
    for i, axis in enumerate(axes):
        if x.sizes[axis] is None:
            free = wanted is not None and (
                c.batch is not None or [w[i] for w in wanted] == [p.shape[axis] for p in x.probes]
            )
            if not free and (factors is None or factors[i] != 1):
                raise UnfitError("the batch's axis is resized")
            continue
        before = x.size(axis)
        if factors is not None:
            factor = np.float32(factors[i])
            after = math.floor(factor * np.float32(before)) if math.isfinite(factor) else 0
        else:
            assert wanted is not None  # one of the two is given
            after, factor = wanted[0][i], np.float32(wanted[0][i]) / np.float32(before)
        if not 1 <= after <= 1 << 16 or before * after > 1 << 22:
            raise UnfitError(f"an axis of {before} resized to {after}")
        if after != before or factor != 1:
            plans[axis] = (after, float(factor), _matrix(before, after, factor, mode, place, rounded, **cubic))
    if not plans:
        return x
    return _by_torch(c, x, plans, mode) or _by_axes(c, x, plans, mode)


def _matrix(
    before: int, after: int, factor: Any, mode: str, place: str, rounded: str, a: float = -0.75, outside: bool = True
) -> np.ndarray[Any, Any]:
    """What each number of an axis takes from each one before, in float32 as other runtimes place it."""
    at = np.arange(after, dtype=np.float32)
    half = np.float32(0.5)
    if place in ("half_pixel", "pytorch_half_pixel"):
        x = (at + half) / factor - half
        x = np.zeros_like(x) if place == "pytorch_half_pixel" and after == 1 else x
    elif place == "half_pixel_symmetric":
        adjusted = np.float32(after) / (factor * np.float32(before))
        x = np.float32(before / 2) * (1 - adjusted) + (at + half) / factor - half
    elif place == "align_corners":
        x = at * np.float32(before - 1) / np.float32(max(after - 1, 1))
    else:
        x = at / factor
    made = np.zeros((after, before))
    rows = np.arange(after)
    if mode == "nearest":
        if rounded == "simple":  # of opset 10, as onnxruntime reads it
            rounded = "ceil" if factor < 1 else "floor"
        made[rows, np.clip(_ROUND[rounded](x), 0, before - 1).astype(int)] = 1
        return made
    if mode == "linear":
        x = np.clip(x, 0, before - 1)
        low = np.floor(x).astype(int)
        share = (x - low).astype(np.float64)
        np.add.at(made, (rows, low), 1 - share)
        np.add.at(made, (rows, np.minimum(low + 1, before - 1)), share)
        return made
    low = np.floor(x).astype(int)
    for tap in range(-1, 3):
        d = np.abs(x - (low + tap)).astype(np.float64)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weight = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        source = low + tap
        inside = (source >= 0) & (source < before)
        np.add.at(made, (rows, np.clip(source, 0, before - 1)), weight if outside else weight * inside)
    return made / made.sum(1, keepdims=True) if not outside else made


def _by_torch(c: Builder, x: Value, plans: dict[int, Any], mode: str) -> Value | None:
    """The call of `interpolate` that does the same; None if there is none."""
    rank = x.rank - 2
    if min(plans) < 2 or not 1 <= rank <= 3 or (mode == "cubic" and rank != 2):
        return None
    sizes = [plans[axis][0] if axis in plans else x.size(axis) for axis in range(2, x.rank)]
    factors = [plans[axis][1] if axis in plans else 1.0 for axis in range(2, x.rank)]
    whole = all(factor == int(factor) for factor in factors)
    options: dict[str, Any] = {"size": tuple(sizes)}
    if whole:
        options = {"scale_factor": factors[0] if len(set(factors)) == 1 else tuple(factors)}
    for name, aligned in _TORCH[mode]:
        if all(
            torch.allclose(
                _of_torch(x.size(axis), after, factor if whole else None, name, aligned), torch.from_numpy(m), atol=1e-6
            )
            for axis, (after, factor, m) in plans.items()
        ):
            more = {} if aligned is None else {"align_corners": aligned}
            called = _AXES_OF[name][rank] if name in _AXES_OF else name
            return c.call(F.interpolate, x, **options, mode=called, **more)
    return None


def _of_torch(before: int, after: int, factor: float | None, mode: str, aligned: bool | None) -> Tensor:
    """The matrix of `interpolate`."""
    more = {} if aligned is None else {"align_corners": aligned}
    how: dict[str, Any] = {"size": after} if factor is None else {"scale_factor": factor}
    eye = torch.eye(before, dtype=torch.float64)[None]
    if mode == "cubic":
        how = {"size": (after, 1)} if factor is None else {"scale_factor": (factor, 1.0)}
        return F.interpolate(eye[..., None], **how, mode="bicubic", **more)[0, ..., 0].T
    return F.interpolate(eye, **how, mode=mode, **more)[0].T


def _by_axes(c: Builder, x: Value, plans: dict[int, Any], mode: str) -> Value:
    for axis, (_, _, matrix) in plans.items():
        if mode == "nearest":
            x = c.call("index_select", x, axis, c.known(torch.from_numpy(matrix.argmax(1))))
            continue
        factors = c.known(torch.from_numpy(matrix.T.astype(np.float32)))
        last = axis == x.rank - 1
        y = x if last else c.call("transpose", x, axis, x.rank - 1)
        y = c.call(torch.matmul, y, factors)
        x = y if last else c.call("transpose", y, axis, x.rank - 1)
    return x

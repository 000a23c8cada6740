"""What is refused before and after lowering, since its program would be no use: it proves itself equal to nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from chipfit.errors import CalibrationError, NonFiniteError, UnsupportedError
from chipfit.program.lowering.rules import Lowering
from chipfit.program.types import Node

WIDEST = 24
"""Bits of a code that float32, in which networks compute, counts exactly whatever is added."""


def check_finite(model: nn.Module) -> None:
    """Refuse a network with parameters or buffers that are not numbers.

    Raises:
        NonFiniteError: some are; all are named.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    wrong = [name for name, x in tensors if x.is_floating_point() and not bool(torch.isfinite(x).all())]
    if wrong:
        raise NonFiniteError(
            "parameters hold NaN or infinity",
            given=", ".join(wrong),
            where="lower",
            hint="Look at the training: a step was too large, or a batch held NaN.",
        )


def check_calibrated(model: nn.Module, rules: Lowering) -> None:
    """Refuse a converted network that never got scales.

    Raises:
        CalibrationError: some of its layers have none; the first ones are named.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if "unsigned_inputs" in (getattr(module, "meta", None) or {}):
            found += [f"{name}.{layer}" if name else layer for layer in rules.uncalibrated(module)]
    if found:
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise CalibrationError(
            "the network was never calibrated, so its layers have no scales",
            given=shown,
            where="lower",
            hint="Call chipfit.calibrate(net, loader) first.",
        )


def check_widths(nodes: Sequence[Node]) -> None:
    """Refuse codes that are too wide to be proven equal.

    Raises:
        UnsupportedError: a layer gives such; all are named.
    """
    wide = [
        f"{node.name} ({node.output.bits} bits)"
        for node in nodes
        if (node.layer or node.name.endswith(".input")) and not node.output.real and (node.output.bits or 0) > WIDEST
    ]
    if wide:
        raise UnsupportedError(
            "codes are wider than float32 counts, in which the network computes",
            given=", ".join(wide),
            allowed=f"up to {WIDEST} bits",
            where="lower",
            hint="Choose narrower inputs and outputs.",
        )

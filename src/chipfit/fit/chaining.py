"""Chained scales, on chips whose layers hand their codes on as they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from chipfit.errors import UnsupportedError
from chipfit.fit.calibrate import fitting_of
from chipfit.vendor import vendor_of


def chain_scales(model: nn.Module, example: Any) -> dict[str, tuple[float, float]]:
    """Give every layer the input scale that the layer before it puts out.

    Calibration chooses each scale by itself. A compiler that knows no scales hands on what one operation puts out, code
    for code. Chain the scales after `calibrate` and before the training that is to survive it.

    Args:
        model: Calibrated network; changed in place, the chained scales frozen.
        example: Input of the network, batch first, as for `chipfit.lower`.

    Returns:
        Scale before and after, by the name of each layer that changed.

    Raises:
        UnsupportedError: the chip rescales between layers, the network cannot be lowered, or a layer reads tensors of
            different scales, or has no single input whose scale could follow.
    """
    vendor = vendor_of(model)
    chain = fitting_of(vendor).chain
    if chain is None:
        raise UnsupportedError(
            "this chip brings codes to a layer's grid by itself: nothing to chain",
            given=vendor.name,
            where="chain_scales",
        )
    return chain(model, example)

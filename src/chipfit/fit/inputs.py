"""What data give a network is compared with what its conversion assumed of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from chipfit.errors import CalibrationError

_NO_CODE = 2.0**-9
"""Share of the largest magnitude below which a negative value has no code of 8 bits."""


@contextmanager
def refusing_negatives(model: nn.Module, where: str) -> Iterator[None]:
    """Refuse data with negative values where a conversion saw none, for a while.

    Args:
        model: A network, or one that has a converted network inside.
        where: The verb, for the error.

    Raises:
        CalibrationError: an input that was converted as unsigned gets negative values.
    """

    def check(unsigned: list[int], name: str) -> Any:
        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            for position in unsigned:
                x = inputs[position] if position < len(inputs) else None
                if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
                    low, high = (end.item() for end in x.detach().float().aminmax())
                    if low < -_NO_CODE * max(high, -low):
                        raise CalibrationError(
                            "the data have negative values where the example of convert had none: they would be cut",
                            given=f"values from {low:.4g} to {high:.4g} at input {position + 1}",
                            where=f"{where}, {name}" if name else where,
                            hint="Convert with an example that has them, or with input_range=(lowest, highest).",
                        )

        return before

    handles = []
    for name, module in model.named_modules():
        unsigned = getattr(module, "meta", None) or {}
        positions = unsigned.get("unsigned_inputs") if isinstance(unsigned, dict) else None
        if positions:
            handles.append(module.register_forward_pre_hook(check(list(positions), name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Lowering of Ingenic networks by the contract: the rules of all operators, and what becomes of a network's results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from chipfit.chips.ingenic.devices import DEVICES
from chipfit.chips.ingenic.network import computes_otherwise, network_target, warn_of_strangers
from chipfit.chips.ingenic.program.lowering.edges import add
from chipfit.chips.ingenic.program.lowering.functions import Function, taken
from chipfit.chips.ingenic.program.lowering.layers import LAYERS, REFUSED
from chipfit.chips.ingenic.program.ops import Finish
from chipfit.errors import UnsupportedError
from chipfit.program.lowering.builder import Builder, Value
from chipfit.program.lowering.rules import MOVING, Lowering

KINDS = tuple(kind for kind in (*LAYERS, *REFUSED) if kind.__module__.startswith("chipfit."))
"""Classes of the operators."""


def ingenic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Ingenic operators of a network by qualified name, those inside others included.

    Example:
        >>> from chipfit.chips.ingenic import Route
        >>> list(ingenic_layers(nn.Sequential(nn.ReLU(), Route("T40"))))
        ['1']
    """
    return {name: module for name, module in model.named_modules() if isinstance(module, KINDS)}


def target_of(root: nn.Module) -> str:
    """The chip that a network is for.

    Raises:
        UnsupportedError: its operators are for several.
    """
    target = network_target(ingenic_layers(root), "lower")
    return "txx" if target is None else target.name.lower()


def remark(chip: str, calls: Sequence[tuple[str, nn.Module, Any]]) -> None:
    """Warn of operators that were left at another target than the network's, whose codes are others."""
    target = next(device for name, device in DEVICES.items() if name.lower() == chip)
    strangers = [name for name, layer, args in calls if computes_otherwise(layer, args[0] if args else None, target)]
    warn_of_strangers(strangers, target, "they are lowered as they were trained", stacklevel=4)


def result(b: Builder, found: Any) -> Value | None:
    """A leaf of what the network returns as a real output; what is told of a tensor is left out.

    Raises:
        UnsupportedError: it is a function of codes that the CPU core computes, a sum, or a parameter.
    """
    if isinstance(found, Function):
        raise UnsupportedError(
            f"the network ends with real numbers of {found.where}, which are no codes",
            hint="Lower it without that, and leave it to the code that reads the outputs.",
        )
    if isinstance(found, Tensor):
        raise UnsupportedError("a parameter or buffer of the network's own is no feature")
    if not isinstance(found, Value):
        return None
    if found.grid is None and not found.type.real:
        raise UnsupportedError("the network returns bare sums")
    return found if found.grid is None else add(b, "output", Finish(found.grid), (found,))


def _uncalibrated(network: nn.Module) -> list[str]:
    """The layers of a network whose clips were never chosen, as no calibration leaves any."""
    quantisers = {name: getattr(layer, "QuantizeFeature", None) for name, layer in network.named_modules()}
    chosen = {name: q for name, q in quantisers.items() if q is not None and q.bits < 32 and not q.gate}
    return [] if any(q.calibrated for q in chosen.values()) else list(chosen)


LOWERING = Lowering(
    LAYERS,
    REFUSED,
    MOVING,
    hint="Write it with the operators of the chip (Route, Shortcut, Mul, Max, an activation_fn), or leave it to the "
    "code behind the network.",
    between="Ingenic operators",
    chip=target_of,
    output=result,
    remark=remark,
    uncalibrated=_uncalibrated,
    take=taken,
)

"""What a vendor says about fitting its networks to data; `chipfit.vendor.Vendor.fitting` holds one record."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ScaleChoice:
    """What calibration chose for one tensor.

    Args:
        layer: Name of the layer.
        tensor: 'x', 'x1', 'x2', 'y', 'weight'; of a GRU also 'y_hidden' and 'weight_hidden', with torch's suffix.
        largest: Greatest magnitude that was seen. Where it is 0 the data say nothing, and the tensor kept what it had.
        io_max: Magnitude that the scale was made for.
        scale: Codes per unit; infinite for a weight of zeros whose code has no size.
        sqnr_db: Signal to quantisation-noise ratio of the values seen, in dB, clipping included.
        setting: Of a layer that is set otherwise than by a scale, what it was given: a clip ('y') or a window's factor
            ('weight').
        codes: How a weight comes to its codes, where the vendor has a choice: its own word for it, else None.
    """

    layer: str
    tensor: str
    largest: float
    io_max: float
    scale: float
    sqnr_db: float
    setting: float | None = None
    codes: str | None = None


@dataclass(frozen=True)
class CalibrationRequest:
    """What a user asked of `chipfit.calibrate`.

    Args:
        method: One of `chipfit.fit.methods.METHODS`.
        percentile: For the method 'percentile'.
        batches: Largest number of batches; None for all.
        freeze: Keep the scales through training.
        options: The vendor's own options, defaults filled in.
    """

    method: str
    percentile: float
    batches: int | None
    freeze: bool
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class BiasTarget:
    """Where a layer's sum appears, and the bias that moves it.

    Args:
        watched: The module whose output is the sum.
        bias: The parameter; None where the layer has none.
        dim: Axis of the channels in the output.
    """

    watched: nn.Module
    bias: Tensor | None
    dim: int


@dataclass(frozen=True)
class HeldBias:
    """What the chip makes of a layer's bias.

    Args:
        wanted: The float bias, one value a channel.
        held: What is added in its place.
        clipped: Which channels lose more than rounding does.
    """

    wanted: Tensor
    held: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class Looked:
    """One call of a layer in the chip's arithmetic, as the report on a calibration sees it.

    Args:
        values: The output, on the grid of its codes; None for a real output.
        lowest: Value of the lowest code, None where nothing is clipped there (zero after a ReLU).
        highest: Value of the highest code.
        codes: How many codes the grid has.
        dim: Axis of the channels; None for none.
        unsigned: An input that is taken as having no negative values; None where it may.
        biases: What became of its biases.
        trouble: Where the layer's noise is likely to be great, the cause and the remedy, each half a sentence.
    """

    values: Tensor | None = None
    lowest: float | None = None
    highest: float = math.inf
    codes: int = 0
    dim: int | None = 1
    unsigned: Tensor | None = None
    biases: Sequence[HeldBias] = ()
    trouble: tuple[str, str] | None = None


@dataclass(frozen=True)
class Balance:
    """A layer's weight as equalisation sees it.

    Args:
        rows: Module with `weight`, outputs first.
        homogeneous: Whether its outputs may be divided: what the layer does after its sum commutes with a positive
            factor a channel.
        takes_factors: Whether what it makes of each input channel may be multiplied.
        gain: What a norm inside the layer multiplies each channel by; None without one.
        divide: Divides the layer's output channels by factors, and returns the factors that it could take; None where
            that means dividing the weight and bias of `rows`.
    """

    rows: nn.Module
    homogeneous: bool = True
    takes_factors: bool = True
    gain: Callable[[], Tensor] | None = None
    divide: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Equalising:
    """How a vendor's layers take part in equalisation.

    Args:
        parts: A layer as a `Balance`; None for any other module.
        elementwise: Classes that take each value by itself and commute with positive factors.
        pools: Classes that pool space.
        flattens: Whether a module makes (N, C, H, W) to (N, C H W).
    """

    parts: Callable[[nn.Module], Balance | None]
    elementwise: tuple[type[nn.Module], ...] = ()
    pools: tuple[type[nn.Module], ...] = ()
    flattens: Callable[[nn.Module], bool] = lambda module: False


@dataclass(frozen=True)
class WeightWidth:
    """A layer whose weight may have several widths.

    Args:
        weight: Module with the weight; its output has the channels that the weight gives.
        bits: Width of the weight; 32 where nothing is quantised.
    """

    weight: nn.Module
    bits: int


def nothing_to_see(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> Looked | None:
    """Say nothing of a layer but how far its output is from float."""
    return None


def no_step(model: nn.Module) -> None:
    """Nothing to do after a step of training."""


@dataclass(frozen=True)
class Fitting:
    """How a vendor's networks are fitted to data.

    Args:
        calibrate: Sets all scales of a network from data.
        float_view: Lets a calibrated network compute in float, in evaluation, for a while.
        compared: The layers that quantise, whose output in the two arithmetics can be compared, by name.
        bias_targets: The layers with weights that quantise, in network order.
        look: What a call of a layer did, from the layer, its inputs and its output; None where it has nothing to say.
        restore: Gives a network built anew an earlier calibration's choices; None where a state_dict brings them.
        equalising: How layers take part in equalisation.
        widths: Layers whose weights may have several widths, by name; None on a chip of one width.
        after_step: What every step of training ends with, in every mode.
        chain: Makes the scales of consecutive layers one; None where the chip rescales between them.
        layer_reports: A record for each layer of what it does with its range; None for none.
    """

    calibrate: Callable[[nn.Module, Iterable[Any], CalibrationRequest], list[ScaleChoice]]
    float_view: Callable[[nn.Module], AbstractContextManager[None]]
    compared: Callable[[nn.Module], dict[str, nn.Module]]
    bias_targets: Callable[[nn.Module], dict[str, BiasTarget]]
    look: Callable[[nn.Module, tuple[Any, ...], Any], Looked | None] = nothing_to_see
    restore: Callable[[nn.Module, Iterable[ScaleChoice]], None] | None = None
    equalising: Equalising | None = None
    widths: Callable[[nn.Module], dict[str, WeightWidth]] | None = None
    after_step: Callable[[nn.Module], None] = no_step
    chain: Callable[[nn.Module, Any], dict[str, tuple[float, float]]] | None = None
    layer_reports: Callable[[nn.Module, Iterable[Any]], list[Any]] | None = None

"""Mixed precision for a plain network: conversion, calibration and search in one call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from chipfit.convert.replace import convert
from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.fit.calibrate import fitting_of
from chipfit.fit.collect import inputs_of
from chipfit.fit.search import SearchResult, layer_sizes, search, weight_widths
from chipfit.hardware import Chip
from chipfit.vendor import chip as chip_named
from chipfit.vendor import known_chips, vendor_of


def search_bits(
    model: nn.Module,
    chip: Chip | str,
    loader: Iterable[Any],
    budget: float = math.inf,
    metric: Callable[[nn.Module], float] | None = None,
    bits: Sequence[int] = (2, 4, 8),
    *,
    cost: str = "bytes",
    feature_bits: int = 8,
    method: str = "mse",
    batches: int | None = None,
) -> SearchResult:
    """Choose the width of each layer's weight of a plain network on a chip that has several.

    Args:
        model: Any network that `chipfit.convert` takes, trained in float; it is not changed.
        chip: The chip, or its name.
        loader: Calibration data, as for `chipfit.calibrate`; kept in memory. The first batch is the example.
        budget: Most that all layers together may cost, those included that keep their width.
        metric: Of a quantised network, higher is better; None takes the noise at the output, which needs no labels.
        bits: Widths to choose from.
        cost: 'bytes' of weights, or 'mac_bits' a run of one input.
        feature_bits: Width of the features.
        method: Calibration method.
        batches: Largest number of batches to calibrate with; None for all.

    Returns:
        The widths by the user's names of the layers, for `convert(model, chip, example, weight_bits=found.bits)`, and
        the table behind them. Depthwise layers that stand for a lone activation keep 8 bits.

    Raises:
        UnsupportedError: a chip whose widths are fixed.
        InvalidValueError: no widths, widths that the chip has not, or a budget that the smallest do not meet.
        CalibrationError: there is no batch.

    Source:
        docs/calibration.md.
    """
    chip = chip_named(chip)
    if fitting_of(vendor_of(chip)).widths is None:
        able = [name for name, one in known_chips().items() if len(one.weight_bits) > 1]
        raise UnsupportedError(
            "the widths are the chip's", given=chip.name, allowed=", ".join(able), where="search_bits"
        )
    data = list(itertools.islice(loader, batches))
    if not data:
        raise CalibrationError("the calibration data is empty", where="search_bits", hint="Give at least one batch.")
    example = inputs_of(data[0], model)
    base: Any = convert(model, chip, example)
    name_of = {
        name: owner
        for name in weight_widths(base)
        for owner in base.meta["weighted"]
        if name == owner or name.startswith(f"{owner}.")
    }

    def build(widths: Mapping[str, int]) -> nn.Module:
        own = {name_of[layer]: width for layer, width in widths.items() if layer in name_of}
        return convert(model, chip, example, bits=feature_bits, weight_bits=own)

    found = search(base, build, data, metric, budget, bits, cost=cost, method=method)
    named = {name_of[layer]: width for layer, width in found.bits.items() if layer in name_of}
    table = tuple(replace(entry, layer=name_of.get(entry.layer, entry.layer)) for entry in found.table)
    return replace(found, bits=named, table=table)


def weights_cost(model: nn.Module, chip: Chip, batch: Any, cost: str, bits: int) -> int:
    """What the weights of a plain network cost on a chip, all of one width.

    Args:
        model: The network.
        chip: The chip.
        batch: An input batch.
        cost: 'bytes' or 'mac_bits'.
        bits: The width.
    """
    sizes = layer_sizes(convert(model, chip, batch), batch).values()
    return sum(size.macs * bits if cost == "mac_bits" else -(-size.weights * bits // 8) for size in sizes)

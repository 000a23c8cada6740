"""How well each layer survives quantisation: its output in the chip's arithmetic against that in float."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from chipfit.errors import CalibrationError, UnsupportedError
from chipfit.fit.calibrate import fitting_of
from chipfit.fit.collect import first_tensor, inputs_of
from chipfit.fit.figures import chip_view
from chipfit.vendor import vendor_of


@dataclass(frozen=True)
class LayerQuality:
    """One layer's output in the chip's arithmetic against float, errors of the layers before it included.

    Args:
        layer: Its name.
        sqnr_db: Signal to quantisation-noise ratio, in dB.
        cosine: Cosine of the angle between the two outputs.
    """

    layer: str
    sqnr_db: float
    cosine: float


def layer_quality(
    model: nn.Module, loader: Iterable[Any], *, batches: int | None = None, reference: nn.Module | None = None
) -> list[LayerQuality]:
    """Compare every layer's output in the chip's arithmetic with its output in float.

    Args:
        model: A calibrated network; as before afterwards.
        loader: Batches, as for `chipfit.calibrate`.
        batches: Largest number of batches to use; None for all.
        reference: Network whose float arithmetic to compare with; None for the model itself. After `correct_bias`,
            whose shifts are no part of the float network, give a `copy.deepcopy` made before it.

    Returns:
        One entry per layer that the data reached, worst SQNR first.

    Raises:
        CalibrationError: there is no batch.
        UnsupportedError: the network has no layers that quantise.

    Example:
        >>> from chipfit.fit.calibrate import calibrate
        >>> from witin_nn import WitinLayerConfig, WitinTanh
        >>> net = nn.Sequential(WitinTanh(layer_config=WitinLayerConfig(1, use_quantization=True)))
        >>> x = torch.linspace(-2, 2, 101)
        >>> _ = calibrate(net, [x])
        >>> layer_quality(net, [x])[0].sqnr_db > 30
        True
    """
    reference = model if reference is None else reference
    watched = {*compared_layers(model).items()} | {*compared_layers(reference).items()}
    sums: dict[str, Tensor] = {}
    outputs: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda layer, inputs, output: outputs.setdefault(name, []).append(first_tensor(output).detach().double())

    handles = [layer.register_forward_hook(keep(name)) for name, layer in watched]
    try:
        with torch.no_grad():
            for batch in itertools.islice(loader, batches):
                inputs = inputs_of(batch, model)
                outputs = {}
                with float_view(reference):
                    reference(*inputs)
                clean, outputs = outputs, {}
                with chip_view(model):
                    model(*inputs)
                for name, values in outputs.items():
                    for a, b in zip(clean[name], values, strict=True):
                        parts = torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum(), (a - b).square().sum()])
                        sums[name] = sums[name] + parts if name in sums else parts
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise CalibrationError("the data is empty", where="layer_quality", hint="Give at least one batch.")
    rows = []
    for name, (clean_power, power, product, noise) in ((name, parts.tolist()) for name, parts in sums.items()):
        ratio = clean_power / noise if noise else math.inf
        cosine = product / math.sqrt(clean_power * power) if clean_power * power else float(clean_power == power)
        rows.append(LayerQuality(name, 10 * math.log10(ratio) if ratio > 0 else -math.inf, cosine))
    return sorted(rows, key=lambda row: row.sqnr_db)


def quality_table(rows: Iterable[LayerQuality], most: int | None = None) -> Table:
    """The report as a table for a terminal.

    Args:
        rows: What `layer_quality` returned.
        most: Number of rows to show; None for all.
    """
    table = Table(title="Layers against float, worst first")
    table.add_column("layer")
    table.add_column("SQNR in dB", justify="right")
    table.add_column("cosine", justify="right")
    for row in itertools.islice(rows, most):
        table.add_row(escape(row.layer), f"{row.sqnr_db:.1f}", f"{row.cosine:.5f}")
    return table


def compared_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a network that quantise, whose output can be compared, by name.

    Raises:
        UnsupportedError: there are none.
    """
    found = fitting_of(vendor_of(model)).compared(model)
    if not found:
        raise UnsupportedError("no layer of this network quantises", given=type(model).__name__)
    return found


@contextmanager
def float_view(model: nn.Module) -> Iterator[None]:
    """Let a calibrated network compute in float, in evaluation."""
    with fitting_of(vendor_of(model)).float_view(model):
        yield

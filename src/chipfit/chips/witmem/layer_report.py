"""What each array layer does with its range: io_max, scales, G, and how much saturates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from chipfit.chips.witmem.array.layers import ArrayLayer
from chipfit.modes import chip_layers, kept_modes, set_mode


@dataclass(frozen=True)
class LayerReport:
    """One array layer in the chip's arithmetic.

    Args:
        layer: Its name.
        io_max: Range of 'x', 'weight' and 'y' that the scales were made for.
        scales: Codes per unit of each.
        g: Accumulator codes per output code.
        saturation: Share of input values, weights and outputs of the test data that were clipped or lie at the end of
            their range, in percent.
    """

    layer: str
    io_max: dict[str, float]
    scales: dict[str, float]
    g: float
    saturation: dict[str, float]


def layer_reports(model: nn.Module, loader: Iterable[Any]) -> list[LayerReport]:
    """Run data through the quantised network and report on each array layer.

    Args:
        model: Network with chip layers; its modes are as before afterwards.
        loader: Batches `(input, target)`.

    Returns:
        One report per array layer, in network order.
    """
    layers = {name: layer for name, layer in chip_layers(model).items() if isinstance(layer, ArrayLayer)}
    counts: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in layers}

    def count(name: str, layer: ArrayLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        spec, x = layer.spec_in_force(), inputs[0]
        lo, hi = spec.x_range
        code = x * spec.scale_x + spec.shift_code
        below = code < (-hi if spec.negative.name == "PN" else lo)
        y_code = output * spec.scale_y
        ends = (y_code <= spec.y_range[0]) | (y_code >= spec.y_range[1])
        counts[name].append((int((below | (code > hi)).sum()), x.numel(), int(ends.sum()), output.numel()))

    handles = [
        layer.register_forward_hook(lambda module, inputs, output, name=name: count(name, module, inputs, output))
        for name, layer in layers.items()
    ]
    try:
        with kept_modes(model), torch.no_grad():
            set_mode(model.eval(), "quant")
            for x, _ in loader:
                model(x)
            return [_report(name, layer, counts[name]) for name, layer in layers.items()]
    finally:
        for handle in handles:
            handle.remove()


def _report(name: str, layer: ArrayLayer, counts: list[tuple[int, int, int, int]]) -> LayerReport:
    spec = layer.spec_in_force()
    clipped_x, all_x, end_y, all_y = (sum(column) for column in zip(*counts, strict=True))
    code = layer.weight.detach() * spec.scale_weight
    clipped_w = ((code < spec.weight_range[0]) | (code > spec.weight_range[1])).float().mean().item()
    return LayerReport(
        name,
        {tensor: observer.io_max.item() for tensor, observer in layer.observers.items()},
        {tensor: observer.scale for tensor, observer in layer.observers.items()},
        spec.g,
        {"x": 100 * clipped_x / all_x, "weight": 100 * clipped_w, "y": 100 * end_y / all_y},
    )


def layer_table(reports: list[LayerReport]) -> Table:
    """Range, scales, G and saturation of each layer."""
    table = Table(title="Layers on the array (x: input, w: weight, y: output)")
    table.add_column("layer")
    for heading in ("io_max x / w / y", "scale x / w / y", "G", "saturated % x / w / y"):
        table.add_column(heading, justify="right")
    for report in reports:
        io_max, scales, saturation = (
            [values["x"], values["weight"], values["y"]] for values in (report.io_max, report.scales, report.saturation)
        )
        table.add_row(
            escape(report.layer),
            " / ".join(f"{v:.3g}" for v in io_max),
            " / ".join(f"{v:g}" for v in scales),
            f"{report.g:g}",
            " / ".join(f"{v:.2f}" for v in saturation),
        )
    return table

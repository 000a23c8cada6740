"""What quantisation did to a network, in figures: the whole against float, and every layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.fit.collect import inputs_of, samples_in, tensors_of
from chipfit.fit.contract import Fitting, HeldBias, Looked
from chipfit.modes import kept_modes, set_mode


@dataclass(frozen=True)
class LayerFigures:
    """One layer in the chip's arithmetic, the errors of the layers before it included.

    Args:
        layer: Its name.
        sqnr_db: Signal to quantisation-noise ratio of its output against float, in dB.
        lost_db: How much less that is than at its input; negative where the layer averages noise away, 0 where its
            input is exact.
        added: Noise over signal at its output less that at its input: how much the layer adds by itself, about.
        saturated: Share of its output codes at the end of their grid.
        biases_clipped: Biases that the chip cannot hold.
        biases: How many it has.
        worst_bias: The one that loses most, as it should be and as it is held; None where none is clipped.
        dead: Channels that had one value on all the data.
        channels: How many it has; 0 where the output has none.
        unused: Share of its output codes that never occurred.
        negatives: Share of its input values that are negative though the layer takes none.
        spread: Largest over smallest channel range of its weight; 1 without.
        trouble: What the chip's vendor has to say of it: a cause and a remedy.
    """

    layer: str
    sqnr_db: float
    lost_db: float = 0.0
    added: float = 0.0
    saturated: float = 0.0
    biases_clipped: int = 0
    biases: int = 0
    worst_bias: tuple[float, float] | None = None
    dead: int = 0
    channels: int = 0
    unused: float = 0.0
    negatives: float = 0.0
    spread: float = 1.0
    trouble: tuple[str, str] | None = None


@dataclass
class _Noise:
    """Power of a signal and of what quantisation adds to it."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, clean: Tensor, given: Tensor) -> None:
        if clean.shape == given.shape:
            self.signal += clean.double().square().sum().item()
            self.noise += (clean - given).double().square().sum().item()

    @property
    def db(self) -> float:
        """Signal to noise in dB; NaN where something is not finite."""
        if math.isnan(self.noise) or math.isnan(self.signal) or math.isinf(self.noise):
            return math.nan
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@dataclass
class _Counts:
    """What was seen of one layer."""

    output: _Noise = field(default_factory=_Noise)
    input: _Noise = field(default_factory=_Noise)
    values: int = 0
    ends: int = 0
    inputs: int = 0
    negatives: int = 0
    codes: int = 0
    used: Tensor | None = None
    least: Tensor | None = None
    most: Tensor | None = None
    biases: tuple[HeldBias, ...] = ()
    trouble: tuple[str, str] | None = None

    def look(self, looked: Looked, first: bool) -> None:
        if first:
            self.biases, self.trouble = tuple(looked.biases), looked.trouble
        if looked.unsigned is not None:
            self.inputs += looked.unsigned.numel()
            self.negatives += int((looked.unsigned < 0).sum())
        if looked.values is None or not looked.values.numel():
            return
        y = looked.values.detach()
        at_end = y >= looked.highest
        if looked.lowest is not None:
            at_end = at_end | (y <= looked.lowest)
        self.values, self.ends, self.codes = self.values + y.numel(), self.ends + int(at_end.sum()), looked.codes
        seen = torch.unique(y)
        self.used = seen if self.used is None else torch.unique(torch.cat([self.used, seen]))
        if looked.dim is None or y.dim() < 2:
            return
        rows = y.movedim(looked.dim, 0).flatten(1)
        least, most = rows.amin(1), rows.amax(1)
        if self.least is not None and self.most is not None and len(self.least) == len(least):
            least, most = torch.minimum(least, self.least), torch.maximum(most, self.most)
        self.least, self.most = least, most


Watched = dict[str, list[tuple[list[Tensor], list[Tensor]]]]
"""Inputs and outputs of each call, by layer."""


@torch.no_grad()
def measure(model: nn.Module, fitting: Fitting, batches: Iterable[Any]) -> tuple[float, list[LayerFigures], int]:
    """Run batches in float and in the chip's arithmetic, and compare.

    Args:
        model: A calibrated network; as before afterwards.
        fitting: What its vendor says.
        batches: As for `chipfit.calibrate`.

    Returns:
        SQNR of the output in dB; figures of each layer, worst first; samples that were compared.
    """
    whole, counts, samples = _Noise(), dict[str, _Counts](), 0
    with chip_view(model):
        layers = fitting.compared(model)
    for batch in batches:
        inputs = inputs_of(batch, model)
        samples += samples_in(inputs)
        with fitting.float_view(model):
            clean, before = _watched(layers, model, inputs, None)
        with chip_view(model):
            given, after = _watched(layers, model, inputs, (fitting, counts))
        for a, b in zip(clean, given, strict=True):
            whole.add(a, b)
        for name, calls in after.items():
            for (x, y), (quantised_x, quantised_y) in zip(before.get(name, []), calls, strict=False):
                count = counts.setdefault(name, _Counts())
                for noise, floats, quantised in ((count.input, x, quantised_x), (count.output, y, quantised_y)):
                    for a, b in zip(floats[:1], quantised[:1], strict=False):
                        noise.add(a, b)
    rows = [_figures(name, count, layers[name]) for name, count in counts.items()]
    return whole.db, sorted(rows, key=lambda row: -math.inf if math.isnan(row.sqnr_db) else row.sqnr_db), samples


def _watched(
    layers: dict[str, nn.Module],
    model: nn.Module,
    inputs: tuple[Any, ...],
    look: tuple[Fitting, dict[str, _Counts]] | None,
) -> tuple[list[Tensor], Watched]:
    found: Watched = {}

    def hook(name: str) -> Any:
        def after(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found.setdefault(name, []).append((tensors_of(inputs), tensors_of(output)))
            if look is not None and inputs:
                fitting, counts = look
                looked = fitting.look(layer, inputs, output)
                if looked is not None:
                    first = name not in counts
                    counts.setdefault(name, _Counts()).look(looked, first)

        return after

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(hook(name)).remove)
        return tensors_of(model(*inputs)), found


@contextmanager
def chip_view(model: nn.Module) -> Iterator[None]:
    """Let a network compute in its chip's arithmetic, without noise, in evaluation, whatever its mode."""
    with kept_modes(model):
        set_mode(model.eval(), "quant")
        yield


def _figures(name: str, count: _Counts, layer: nn.Module) -> LayerFigures:
    clipped = [(b.wanted[b.clipped], b.held[b.clipped]) for b in count.biases if bool(b.clipped.any())]
    worst = None
    if clipped:
        wanted, held = torch.cat([w for w, _ in clipped]), torch.cat([h for _, h in clipped])
        most = int((wanted - held).abs().argmax())
        worst = wanted[most].item(), held[most].item()
    dead = 0 if count.least is None or count.most is None else int((count.least == count.most).sum())
    used = 0 if count.used is None else len(count.used)
    finite = math.isfinite(count.input.db) and math.isfinite(count.output.db)
    return LayerFigures(
        name,
        count.output.db,
        count.input.db - count.output.db if finite else 0.0,
        _ratio(count.output.db) - _ratio(count.input.db),
        count.ends / count.values if count.values else 0.0,
        sum(len(wanted) for wanted, _ in clipped),
        sum(len(bias.wanted) for bias in count.biases),
        worst,
        dead,
        0 if count.least is None else len(count.least),
        1 - min(used / count.codes, 1.0) if count.codes else 0.0,
        count.negatives / count.inputs if count.inputs else 0.0,
        _spread(layer),
        count.trouble,
    )


def _ratio(db: float) -> float:
    """Noise over signal."""
    return 0.0 if math.isnan(db) else 10.0 ** (-max(db, -100.0) / 10)


def _spread(layer: nn.Module) -> float:
    inner = getattr(layer, "Conv2d", None) or getattr(layer, "Linear", None) or layer
    weight = getattr(inner, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return 1.0
    return spread_of(weight.detach().flatten(1).abs().amax(1))


def spread_of(ranges: Tensor) -> float:
    """The largest over the smallest range of channels, those without any left out; 1 where none is left.

    Example:
        >>> spread_of(torch.tensor([8.0, 0.5, 0.0]))
        16.0
    """
    alive = ranges[ranges > 0]
    return (alive.max() / alive.min()).item() if len(alive) else 1.0

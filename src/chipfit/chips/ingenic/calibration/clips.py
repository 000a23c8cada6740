"""Calibration of Ingenic layers: clips of the outputs, and what makes up for them in the weights.

A quantised layer gives its output divided by its clip, and nothing multiplies it back (spec/ingenic.md, section 1.4).
So a layer whose input is `s` times smaller than in the float network gets a weight that is `s` times greater: its sum,
its bias and its batch norm then are those of the float network. `s` is found by running both networks side by side,
value by value and channel by channel; thus it needs no graph, and follows pools, reshapes and concatenations by itself.
Zeros tell nothing about `s`, so a layer that gives nothing else keeps its clip, and ones stand for its output.

The two inputs of a `Shortcut` or `Max` have to be divided by the same number, so that layers which meet there share
one range.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.ingenic.calibration.float_view import (
    clip_of,
    float_arithmetic,
    is_gate,
    quantised_layers,
    quantiser_of,
    set_clip,
)
from chipfit.chips.ingenic.calibration.sizes import settle_sizes
from chipfit.chips.ingenic.calibration.units import channel_dim, make_up, scaled_modules, unit_of
from chipfit.chips.ingenic.devices import device
from chipfit.chips.ingenic.operators.attention import Se_Block
from chipfit.chips.ingenic.operators.elementwise import Max, Shortcut
from chipfit.chips.ingenic.operators.features import read
from chipfit.chips.ingenic.operators.recurrent import LSTM
from chipfit.chips.ingenic.quantizers import quantize_feature
from chipfit.errors import UnsupportedError
from chipfit.fit.collect import Sample, first_tensor, inputs_of, run_batches
from chipfit.fit.methods import free_range, largest_magnitude, only_zeros


@dataclass(frozen=True)
class ClipChoice:
    """Range of one layer's output.

    Args:
        layer: Its name.
        io_max: Magnitude that is clipped at, in units of the float network.
        clip: What the layer divides its output by.
        bits: Width.
        signed: Whether negative values are kept.
        target: Name of the target.
    """

    layer: str
    io_max: float
    clip: float
    bits: int
    signed: bool
    target: str

    @property
    def levels(self) -> int:
        """Codes that a magnitude may have."""
        return 1 << (self.bits - 1) if self.signed else (1 << self.bits) - 1

    def quantise(self, values: Tensor, limit: float | None = None) -> Tensor:
        """Values that the codes stand for, in units of the float network."""
        limit = self.io_max if limit is None else limit
        return quantize_feature(values, self.bits, -limit if self.signed else 0.0, limit, self.target) * limit


@dataclass
class _Trace:
    """What the float network did on the first batch, and a sample of all batches."""

    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    activated: dict[str, list[Tensor]] = field(default_factory=dict)
    meetings: list[tuple[str, set[str], bool]] = field(default_factory=list)
    sample: Sample = field(default_factory=Sample)


def free_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose clip calibration chooses: not those of gates, of squeeze and excitation, and of an LSTM."""
    return {
        name: layer
        for name, layer in quantised_layers(model).items()
        if not is_gate(layer) and not isinstance(layer, (LSTM, Se_Block))
    }


def calibrate_clips(
    model: nn.Module, loader: Iterable[Any], method: str, percentile: float, batches: int | None, from_float: bool
) -> tuple[list[ClipChoice], Sample]:
    """Choose and set the clips of a network of Ingenic layers, and change its weights to suit; see this module.

    Args:
        model: The network, changed in place; its buffers and parameters are as before if this fails.
        loader: Batches, as for `chipfit.calibrate`.
        method: One of `METHODS`.
        percentile: For 'percentile'.
        batches: Largest number of batches.
        from_float: Whether the weights are those of a float network, in which nothing was normalised.

    Returns:
        The choices, and the sample that they were made from.

    Raises:
        CalibrationError: A layer was not reached, or no layer gave anything but zeros.
        UnsupportedError: What lies between layers does not keep proportions, or ranges that must agree cannot.
    """
    layers = quantised_layers(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    clips = {name: clip_of(layer) for name, layer in layers.items()}
    if from_float:
        for layer in layers.values():
            if isinstance(layer, LSTM):  # so that the recurrence, and the T40 family's state of -1, stay as in float
                set_clip(layer, 1.0)
    try:
        old = {name: 1.0 if from_float else clips[name] for name in free_layers(model)}
        data = list(_first(loader, batches))
        trace = _trace(model, data, old, from_float)
        dead = _dead(model, trace)
        if dead:
            stood_in = _trace(model, data[:1], old, from_float, dead)
            trace = replace(trace, inputs=stood_in.inputs, activated=stood_in.activated)
        choices = _choose(model, trace, old, clips, method, percentile)
        ranges = {choice.layer: choice.io_max for choice in choices}
        chosen = _normalise(model, data[0], trace, ranges, from_float, dead)
    except BaseException:
        model.load_state_dict(state)
        for name, layer in layers.items():
            set_clip(layer, clips[name])
        raise
    if from_float:
        for name, factor in settle_sizes(model).items():
            chosen[name] *= factor
    for name, clip in chosen.items():
        set_clip(layers[name], clip)
    for layer in layers.values():
        quantiser_of(layer).calibrated = True
    return [replace(choice, clip=chosen[choice.layer]) for choice in choices], trace.sample


def _first(loader: Iterable[Any], batches: int | None) -> Iterator[Any]:
    return itertools.islice(loader, batches)


def _dead(model: nn.Module, trace: _Trace) -> frozenset[str]:
    """The layers whose output was zero all the time; not those that only pass on what others give.

    Raises:
        CalibrationError: All were.
    """
    layers = free_layers(model)
    dead = [name for name in layers if only_zeros(trace.sample.values(name)["y"])]
    if dead and len(dead) == len(layers):
        largest_magnitude(torch.zeros(1), f"{dead[0]}, y")  # raises
    return frozenset(name for name in dead if not isinstance(layers[name], (Shortcut, Max)))


def _trace(
    model: nn.Module, data: list[Any], old: dict[str, float], from_float: bool, dead: frozenset[str] = frozenset()
) -> _Trace:
    """Run the float network; each free layer's output is marked, so that what reaches a `Shortcut` can be told.

    Ones stand for what the `dead` layers give.
    """
    trace, names = _Trace(), {module: name for name, module in model.named_modules()}
    marks = {name: torch.ones((), requires_grad=True) for name in old}
    of_mark = {id(mark): name for name, mark in marks.items()}

    def divide(name: str, layer: nn.Module, value: Tensor) -> Tensor:
        if name not in old:
            value = value / clip_of(layer)
            return value if isinstance(layer, Se_Block) else value.detach()
        value = value.detach() if name not in dead else torch.ones_like(value)
        if recording:
            trace.activated.setdefault(name, []).append(value)
        trace.sample.keep(name, "y", value / old[name])
        return value / old[name] * marks[name].to(value)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not recording:
            return
        if isinstance(module, (Shortcut, Max)):
            sources = [_marks_behind(read(operand, "Shortcut").tensor, of_mark) for operand in inputs[0]]
            trace.meetings.append((names[module], set().union(*sources), not all(sources)))
        else:
            trace.inputs.setdefault(names[module], []).append(first_tensor(inputs).detach())

    watched = [*scaled_modules(model).values(), *(m for m in model.modules() if isinstance(m, (Shortcut, Max)))]
    handles = [module.register_forward_pre_hook(before) for module in watched]
    recording = True
    try:
        with float_arithmetic(model, divide, from_float):
            with torch.enable_grad():
                next(run_batches(model, data[:1], None))
            recording = False
            with torch.no_grad():
                for batch in data[1:]:
                    model(*inputs_of(batch, model))
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _marks_behind(tensor: Tensor, of_mark: dict[int, str]) -> set[str]:
    """Names of the marked layers that a tensor was computed from."""
    found, waiting, done = set(), [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in done:
            continue
        done.add(node)
        variable = getattr(node, "variable", None)
        if id(variable) in of_mark:
            found.add(of_mark[id(variable)])
        waiting.extend(function for function, _ in node.next_functions)
    return found


def _choose(
    model: nn.Module, trace: _Trace, old: dict[str, float], clips: dict[str, float], method: str, percentile: float
) -> list[ClipChoice]:
    """Choose each range, in units of the float network, so that what meets is divided by the same number.

    Where the float network already divides (`old`), what has to agree is the ratio of new to old. Where there are only
    zeros the clips stay.
    """
    layers = free_layers(model)
    group = {name: {name} for name in layers}
    for _, members, _ in trace.meetings:
        merged = set().union(*(group[name] for name in members))
        for name in merged:
            group[name] = merged
    drafts = {name: _draft(name, layer, old[name]) for name, layer in layers.items()}
    ratio, kept = dict[str, float](), set[str]()

    def settle(members: set[str], value: float) -> None:
        ratio.update(dict.fromkeys(members, value))

    for name, members in group.items():
        if name not in ratio:
            values = torch.cat([trace.sample.values(member)["y"] for member in sorted(members)])
            draft = max((drafts[member] for member in members), key=lambda d: (d.signed, d.bits))
            if only_zeros(values):
                kept |= members
                settle(members, max(clips[member] / old[member] for member in members))
                continue
            settle(members, free_range(values, draft.levels, draft.quantise, method, percentile, f"{name}, y"))
    forced: set[str] = set()
    for _ in range(len(trace.meetings) + 1):  # what one sum needs may be too little for another
        before = dict(ratio)
        for where, members, from_input in trace.meetings:
            if from_input:
                settle(set().union(*(group[name] for name in members)), 1.0)
            layer = layers.get(where)
            if not isinstance(layer, Shortcut):
                continue
            incoming = ratio[next(iter(members))] if members else 1.0
            largest = 2.0 / old[where] * incoming
            if layer.device.family == "TXX":
                if (where in forced and ratio[where] != largest) or group[where] & members:
                    raise UnsupportedError(
                        "two sums of features meet that Txx has divided by different numbers",
                        where=where,
                        hint="Put a convolution between the two Shortcuts.",
                    )
                forced |= group[where]
                settle(group[where], largest)
            elif where in kept:
                settle(group[where], clips[where] / old[where] * incoming)
            elif ratio[where] > largest:
                settle(group[where], largest)
        if ratio == before:
            break
    return [replace(draft, io_max=ratio[name] * old[name]) for name, draft in drafts.items()]


def _draft(name: str, layer: nn.Module, clip: float) -> ClipChoice:
    quantiser = quantiser_of(layer)
    bits, signed = quantiser.bits, quantiser.signed
    if isinstance(layer, Shortcut):
        bits, signed = min(layer.output_bitwidth, 8), False
    return ClipChoice(name, clip, clip, bits, signed, quantiser.target_device)


@torch.no_grad()
def _normalise(
    model: nn.Module, batch: Any, trace: _Trace, ranges: dict[str, float], from_float: bool, dead: frozenset[str]
) -> dict[str, float]:
    """Run the network again, now dividing by the ranges; where a layer's input comes out smaller, make up for it.

    Returns:
        The clip of each layer: its range, in the unit that its own sum has.
    """
    modules = scaled_modules(model)
    names = {module: name for name, module in modules.items()}
    borders = _pads_below_zero(model)
    clips: dict[str, float] = {}
    made_up: dict[str, Tensor] = {}

    def divide(name: str, layer: nn.Module, value: Tensor) -> Tensor:
        if name not in ranges:
            return value / clip_of(layer)
        value = torch.ones_like(value) if name in dead else value
        if name not in clips:
            unit = unit_of(trace.activated[name][0], value, None, name, borders).item()
            clips[name] = ranges[name] / unit
        return value / clips[name]

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        name = names[module]
        if name not in made_up:
            unit = unit_of(trace.inputs[name][0], first_tensor(inputs), channel_dim(module), name, borders)
            make_up(module, unit, name)
            made_up[name] = unit

    handles = [module.register_forward_pre_hook(before) for module in modules.values()]
    try:
        with float_arithmetic(model, divide, from_float):
            model(*inputs_of(batch, model))
    finally:
        for handle in handles:
            handle.remove()
    return clips


def _pads_below_zero(model: nn.Module) -> bool:
    """Whether some layer may fill a border with -1, which no factor of its weights can make up for."""
    # In mode 'float', in which a converted network is calibrated, borders are zero.
    quantisers = [quantiser_of(layer) for layer in quantised_layers(model).values()]
    signed = [q for q in quantisers if q.signed and not q.floating]
    return any(device(q.target_device, "calibrate").family == "T40F" for q in signed)

"""GRU, LSTM and RNN over sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.convert.onnx.builder import Builder
from chipfit.convert.onnx.read.weighted import filled, unset
from chipfit.convert.onnx.table import known, reads
from chipfit.convert.onnx.values import RefusedError, UnfitError, Value

_DIRECTIONS = ("forward", "reverse", "bidirectional")
_GATES = {nn.GRU: (1, 0, 2), nn.LSTM: (0, 2, 3, 1), nn.RNN: (0,)}
"""Where torch's gates stand in the file: reset, update, new; input, forget, cell, output."""


class ResetFirstGRU(nn.GRU):
    """A GRU whose reset gate acts on the state before the product with the weights (`linear_before_reset` 0).

    Args:
        input_size: As `torch.nn.GRU`.
        hidden_size: Likewise.
        bias: Likewise.
        batch_first: Must be true.
        bidirectional: As `torch.nn.GRU`.
    """

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # no packed ones
        """As `torch.nn.GRU`, for inputs of shape (batch, steps, features)."""
        directions = 2 if self.bidirectional else 1
        state = input.new_zeros(directions, input.shape[0], self.hidden_size) if hx is None else hx
        outputs, last = [], []
        for i in range(directions):
            parts = [getattr(self, name + "_l0" + "_reverse" * i) for name in ("weight_ih", "weight_hh")]
            shifts = [getattr(self, name + "_l0" + "_reverse" * i, None) for name in ("bias_ih", "bias_hh")]
            steps = input.flip(1) if i else input
            given, h = nn.functional.linear(steps, parts[0], shifts[0]), state[i]
            both = [2 * self.hidden_size, self.hidden_size]
            weights = torch.split(parts[1], both)
            biases = (None, None) if shifts[1] is None else torch.split(shifts[1], both)
            found = []
            for t in range(input.shape[1]):
                gates, new = torch.split(given[:, t], both, 1)
                r, z = torch.sigmoid(gates + nn.functional.linear(h, weights[0], biases[0])).chunk(2, 1)
                n = torch.tanh(new + nn.functional.linear(r * h, weights[1], biases[1]))
                h = (1 - z) * n + z * h
                found.append(h)
            y = torch.stack(found, 1)
            outputs.append(y.flip(1) if i else y)
            last.append(h)
        return torch.cat(outputs, 2), torch.stack(last)


@reads("GRU")
def _gru(
    c: Builder,
    x: Value,
    w: Value,
    r: Value,
    bias: Value | None = None,
    lengths: Value | None = None,
    state: Value | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> list[Value]:
    _plain(activations, ("Sigmoid", "Tanh"), direction, clip)
    kind: Any = nn.GRU if linear_before_reset else ResetFirstGRU
    return _run(c, kind, nn.GRU, x, (w, r, bias), lengths, [state], direction, layout)


@reads("LSTM")
def _lstm(
    c: Builder,
    x: Value,
    w: Value,
    r: Value,
    bias: Value | None = None,
    lengths: Value | None = None,
    state: Value | None = None,
    cell: Value | None = None,
    peepholes: Value | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> list[Value]:
    _plain(activations, ("Sigmoid", "Tanh", "Tanh"), direction, clip)
    known("input_forget", input_forget, (0,))
    if peepholes is not None and not _zero(peepholes):
        raise RefusedError("peephole weights are not read")
    return _run(c, nn.LSTM, nn.LSTM, x, (w, r, bias), lengths, [state, cell], direction, layout)


@reads("RNN")
def _rnn(
    c: Builder,
    x: Value,
    w: Value,
    r: Value,
    bias: Value | None = None,
    lengths: Value | None = None,
    state: Value | None = None,
    *,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    activations: list[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> list[Value]:
    functions = tuple(activations or ("Tanh",))
    _plain(None, (), direction, clip)
    known("activations", functions[0].lower(), ("tanh", "relu"))
    if len(set(functions)) > 1:
        raise RefusedError("different activations of the two directions are not read")

    def build(*args: Any, **options: Any) -> nn.Module:
        return nn.RNN(*args, nonlinearity=functions[0].lower(), **options)

    return _run(c, build, nn.RNN, x, (w, r, bias), lengths, [state], direction, layout)


def _plain(activations: list[str] | None, usual: tuple[str, ...], direction: str, clip: float | None) -> None:
    known("direction", direction, _DIRECTIONS)
    count = 2 if direction == "bidirectional" else 1
    allowed = [name.lower() for name in usual * count]
    if activations and [name.lower() for name in activations] != allowed:
        raise RefusedError(f"activations {activations} are not read; allowed: {', '.join(usual)}")
    if clip is not None:
        raise RefusedError("clip is not read")


def _zero(value: Value) -> bool:
    return not value.live and not any(bool(probe.any()) for probe in value.probes)


def _run(
    c: Builder,
    build: Any,
    kind: Any,
    x: Value,
    weights: tuple[Value, Value, Value | None],
    lengths: Value | None,
    states: list[Value | None],
    direction: str,
    layout: int,
) -> list[Value]:
    """Call a recurrent layer, batch first, and turn what it returns into the file's order."""
    known("layout", layout, (0, 1))
    w, r, bias = weights
    if x.rank != 3:
        raise UnfitError(f"a sequence with {x.rank} axes")
    x = x if layout else c.call("permute", x, (1, 0, 2))
    steps = x.size(1)
    if lengths is not None and (lengths.live or any(bool((probe != steps).any()) for probe in lengths.probes)):
        raise RefusedError("sequences of different lengths are not read")
    if direction == "reverse":
        x = c.call("flip", x, 1)
    both = direction == "bidirectional"
    layer, hidden = _layer(build, _GATES[kind], w.tensor, r.tensor, None if bias is None else bias.tensor, both)
    if x.size(2) != layer.input_size:
        raise UnfitError(f"{x.size(2)} features for a layer of {layer.input_size}")
    given = (
        [] if all(s is None or _zero(s) for s in states) else [_state(c, s, x, hidden, both, layout) for s in states]
    )
    passed: tuple[Any, ...] = () if not given else (given[0],) if len(states) == 1 else (tuple(given),)
    made = c.layer(layer, w, x, *passed, shapes=_shapes(x, hidden, both, len(states)))
    y, ends = c.pick(made, 0), c.pick(made, 1)
    last = [ends] if len(states) == 1 else [c.pick(ends, i) for i in range(len(states))]
    if direction == "reverse":
        y = c.call("flip", y, 1)
    if layout:
        y = c.call("unflatten", y, 2, (2, hidden)) if both else c.call("unsqueeze", y, 2)
        return [y, *(c.call("permute", end, (1, 0, 2)) for end in last)]
    if both:
        return [c.call("permute", c.call("unflatten", y, 2, (2, hidden)), (1, 2, 0, 3)), *last]
    return [c.call("unsqueeze", c.call("permute", y, (1, 0, 2)), 1), *last]


def _layer(
    build: Any, gates: tuple[int, ...], w: Tensor, r: Tensor, bias: Tensor | None, both: bool
) -> tuple[Any, int]:
    """The layer with the file's weights, its gates in torch's order."""
    directions, hidden = 2 if both else 1, r.shape[-1]
    if w.dim() != 3 or r.shape != (directions, len(gates) * hidden, hidden) or w.shape[:2] != r.shape[:2]:
        raise UnfitError(f"weights of shapes {tuple(w.shape)} and {tuple(r.shape)}")
    layer = unset(build, w.shape[2], hidden, bias=bias is not None, batch_first=True, bidirectional=both)

    def ordered(rows: Tensor) -> Tensor:
        return torch.cat([rows[gate * hidden : (gate + 1) * hidden] for gate in gates])

    for i in range(directions):
        end = "_l0" + "_reverse" * i
        filled(getattr(layer, "weight_ih" + end), ordered(w[i]))
        filled(getattr(layer, "weight_hh" + end), ordered(r[i]))
        if bias is not None:
            first, second = bias[i].chunk(2)
            filled(getattr(layer, "bias_ih" + end), ordered(first))
            filled(getattr(layer, "bias_hh" + end), ordered(second))
    return layer, hidden


def _state(c: Builder, state: Value | None, x: Value, hidden: int, both: bool, layout: int) -> Value:
    """An initial state as torch takes it: directions, batch, features."""
    directions = 2 if both else 1
    if state is None:
        zeros = tuple(torch.zeros(directions, probe.shape[0], hidden) for probe in x.probes)
        return c.value(*zeros)
    if layout:
        state = c.call("permute", state, (1, 0, 2))
    state = c.for_every_batch(state, x, 1, 0)
    for own, probe in zip(state.probes, x.probes, strict=True):
        if tuple(own.shape) != (directions, probe.shape[0], hidden):
            raise UnfitError(f"an initial state of shape {tuple(own.shape)}")
    return state


def _shapes(x: Value, hidden: int, both: bool, states: int) -> tuple[Any, ...]:
    directions, found = 2 if both else 1, []
    for probe in x.probes:
        batch, steps, _ = probe.shape
        y = torch.empty(batch, steps, directions * hidden, device="meta")
        end = torch.empty(directions, batch, hidden, device="meta")
        found.append((y, end) if states == 1 else (y, (end,) * states))
    return tuple(found)

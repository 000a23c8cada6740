"""GRU layers: two array operations and a digital part on integer codes.

The manual's table 1 lists WitinGruCell (`torch._VF.gru_cell(...) / g_value`), but no build of the vendor's library has
it. These are new: the array operations are those of a WitinLinear, the rest is in `rule.py`, laid out for the
compiler's `Gru2Array` node. In mode 'float' they are `torch.nn.GRUCell` and `torch.nn.GRU`.

Weights of the torch layers load with `load_state_dict(state, strict=False)`: parameter names are torch's, and only the
observers' `io_max` are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.digital.base import at_full_precision
from chipfit.chips.witmem.gru.base import GruLayer
from chipfit.errors import ShapeError, UnsupportedError


class WitinGruCell(GruLayer, nn.GRUCell):
    """One GRU step: `torch.nn.GRUCell`, then what the chip makes of it.

    Each call counts as one step of auto-scale; in a loop over time the warm-up is over after the first
    `auto_scale_updata_step` time steps. `WitinGru` counts whole sequences.

    Args:
        input_size: Features of the input.
        hidden_size: Features of the state.
        bias: Whether to learn biases.
        layer_config: Options of `W_ih x + b_ih`, as for a WitinLinear; required. `scale_y` is that of the gates' input
            half and must be a power of two.
        hidden_config: Options of `W_hh h + b_hh`; default the same. The state always has 8 bits at 128 codes per unit,
            and its sign is handled by PN. Mode, auto-scale and noise are those of `layer_config`.

    Shape:
        Input `(batch, input_size)` or `(input_size,)`, state likewise with `hidden_size`; returns the new state.

    Raises:
        InvalidValueError: `layer_config` is missing, or `scale_y` is no power of two.
        ShapeError: an input or state of the wrong shape.

    Source:
        Manual table 1; spec/wtm2101-silicon.md, section 3.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=32, scale_y=32)
        >>> config.scale_weight = 128
        >>> cell = WitinGruCell(3, 2, layer_config=config)
        >>> _ = cell.load_state_dict(torch.nn.GRUCell(3, 2).state_dict(), strict=False)
        >>> h = cell(torch.rand(4, 3))
        >>> h.shape, bool((h * 128 == (h * 128).round()).all())
        (torch.Size([4, 2]), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        layer_config: WitinLayerConfig | None = None,
        hidden_config: WitinLayerConfig | None = None,
    ) -> None:
        nn.GRUCell.__init__(self, input_size, hidden_size, bias)
        self.prepare(layer_config, hidden_config, ("",))

    @property
    def g_value(self) -> tuple[float, float]:
        """Accumulator codes per output code of the input's and the hidden operation, with the scales in force."""
        numbers = self.numbers_in_force()
        return numbers.input.g, numbers.hidden.g

    @at_full_precision
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Compute one step in the layer's current mode; without `hx` the state is zero."""
        if self.mode == "float":
            self.clip_weights()
            return nn.GRUCell.forward(self, input, hx)
        x, h = self._arranged(input, hx)
        seen: dict[str, Tensor | None] = {}
        out = self.run_cell(x, h, "", seen)[0]
        if self.observing:
            self.observe(**seen)
        return out.reshape(*input.shape[:-1], self.hidden_size)

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """Both halves of the gates before any activation, computed from the inputs."""
        input, hx = (*inputs, None)[:2]
        return self.watch_float(*self._arranged(input, hx), "")[0]

    def _arranged(self, input: Any, hx: Any) -> tuple[Tensor, Tensor]:
        """Input as a sequence of one step, shape `(1, batch, features)`, and state, shape `(batch, hidden)`."""
        x = self.check_last(input, self.input_size, (1, 2), "input")
        h = x.new_zeros(*x.shape[:-1], self.hidden_size) if hx is None else hx
        h = self.check_last(h, self.hidden_size, (x.dim(),), "hx")
        if h.shape[:-1] != x.shape[:-1]:
            raise ShapeError("input and hx differ in batch", given=(tuple(x.shape), tuple(h.shape)), where=self.where)
        return x.reshape(1, -1, self.input_size), h.reshape(-1, self.hidden_size)


class WitinGru(GruLayer, nn.GRU):
    """GRU over sequences: `torch.nn.GRU`, every layer and direction a cell as `WitinGruCell` computes it.

    A forward is one step of auto-scale, whatever the length of the sequence. Noise of single cells (NORMAL, SIMPLE) is
    drawn once a forward, and every time step meets the same cells; the columns' noise (MBS) is fresh in every step.

    Args:
        input_size: Features of the input.
        hidden_size: Features of the state.
        num_layers: Number of stacked layers.
        bias: Whether to learn biases.
        batch_first: Whether input and output are `(batch, time, features)` instead of `(time, batch, features)`.
        dropout: Dropout between layers while training, as in torch.
        bidirectional: Whether every layer also reads the sequence backwards.
        layer_config: Options of the `W_ih x + b_ih` operations, as for `WitinGruCell`; required. Layers after the
            first read states, which are signed: they take them by PN whatever `handle_neg_in` says of the input.
        hidden_config: Options of the `W_hh h + b_hh` operations; default the same.

    Shape:
        As `torch.nn.GRU`, batched or not. Returns `(output, h_n)`.

    Raises:
        InvalidValueError: `layer_config` is missing, or `scale_y` is no power of two.
        ShapeError: an input or state of the wrong shape.
        UnsupportedError: a PackedSequence in a quantised forward.

    Source:
        Spec/wtm2101-silicon.md, section 3. Not part of the vendor's library.

    Example:
        >>> config = WitinLayerConfig(1, use_quantization=True, use_auto_scale=False, scale_x=32, scale_y=32)
        >>> config.scale_weight = 128
        >>> gru = WitinGru(3, 2, num_layers=2, batch_first=True, layer_config=config)
        >>> output, h = gru(torch.rand(4, 7, 3))
        >>> output.shape, h.shape
        (torch.Size([4, 7, 2]), torch.Size([2, 4, 2]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        layer_config: WitinLayerConfig | None = None,
        hidden_config: WitinLayerConfig | None = None,
    ) -> None:
        nn.GRU.__init__(self, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        self.prepare(layer_config, hidden_config, self.suffixes)

    def check_input(self, x: Any, name: Any = "input") -> Any:
        """Check an input; in mode 'float' torch's GRU calls its own method of this name, which takes batch sizes."""
        return super().check_input(x, name) if isinstance(name, str) else nn.GRU.check_input(self, x, name)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Torch's parameter suffix of each cell, in the order of the states in `h_n`."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return tuple(f"_l{layer}{direction}" for layer in range(self.num_layers) for direction in directions)

    @at_full_precision
    def forward(self, input: Any, hx: Any = None) -> Any:
        """Compute a sequence in the layer's current mode; without `hx` the states are zero."""
        if self.mode == "float":
            for suffix in self.suffixes:
                self.clip_weights(suffix)
            return nn.GRU.forward(self, input, hx)
        x, h = self._arranged(input, hx)
        seen: dict[str, Tensor | None] = {}
        y, h_n = self._through_layers(x, h, lambda x, h, suffix: self.run_cell(x, h, suffix, seen))
        if self.observing:
            self.observe(**seen)
        if input.dim() == 2:
            return y.squeeze(1), h_n.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y, h_n

    def calibration_tensors(self, inputs: tuple[Any, ...], output: Any) -> dict[str, Tensor]:
        """Both halves of the gates of every cell before any activation, computed from the inputs."""
        input, hx = (*inputs, None)[:2]
        watched: dict[str, Tensor] = {}

        def run(x: Tensor, h: Tensor, suffix: str) -> Tensor:
            tensors, states = self.watch_float(x, h, suffix)
            watched.update(tensors)
            return states

        self._through_layers(*self._arranged(input, hx), run)
        return watched

    def _arranged(self, input: Any, hx: Any) -> tuple[Tensor, Tensor]:
        """Input, shape `(time, batch, features)`, and states, shape `(cells, batch, hidden)`."""
        if isinstance(input, PackedSequence):
            raise UnsupportedError(
                "a quantised WitinGru takes no PackedSequence",
                allowed="a padded tensor",
                where=self.where,
                hint="Unpack it with torch.nn.utils.rnn.pad_packed_sequence and mask the output.",
            )
        x = self.check_last(input, self.input_size, (2, 3), "input")
        batched = x.dim() == 3
        x = x.unsqueeze(1) if not batched else x.transpose(0, 1) if self.batch_first else x
        hidden = (len(self.suffixes), x.shape[1], self.hidden_size)
        h = x.new_zeros(hidden) if hx is None else self.check_last(hx, self.hidden_size, (2 + batched,), "hx")
        h = h if h.dim() == 3 else h.unsqueeze(1)
        if h.shape != hidden or not x.shape[0]:
            raise ShapeError("hx does not fit the input", given=(tuple(x.shape), tuple(h.shape)), where=self.where)
        return x, h

    def _through_layers(
        self, x: Tensor, h: Tensor, run: Callable[[Tensor, Tensor, str], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run every cell over its sequence: the last layer's states in order of time, and each cell's last state."""
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = torch.dropout(x, self.dropout, train=True)
            outputs = []
            for suffix in (s for s in self.suffixes if s.removesuffix("_reverse") == f"_l{layer}"):
                backward = suffix.endswith("_reverse")
                states = run(x.flip(0) if backward else x, h[len(last)], suffix)
                last.append(states[-1])
                outputs.append(states.flip(0) if backward else states)
            x = torch.cat(outputs, dim=-1)
        return x, torch.stack(last)

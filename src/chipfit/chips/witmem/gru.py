"""GRU layers: two array operations and a digital part on integer codes.

The manual's table 1 lists WitinGruCell (`torch._VF.gru_cell(...) / g_value`), but no build of the vendor's library has
it. These are new: the array operations are those of a WitinLinear, the rest is in `gru_rule.py`, laid out for the
compiler's `Gru2Array` node. In mode 'float' they are `torch.nn.GRUCell` and `torch.nn.GRU`.

Weights of the torch layers load with `load_state_dict(state, strict=False)`: parameter names are torch's, and only the
observers' `io_max` are missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from chipfit.arithmetic.fake_quant import fake_codes
from chipfit.chips.witmem.array_kernel import array_forward
from chipfit.chips.witmem.array_rule import ArraySpec, Geometry
from chipfit.chips.witmem.config import WitinLayerConfig
from chipfit.chips.witmem.digital_base import at_full_precision, rounded
from chipfit.chips.witmem.enums import HandleNegInType
from chipfit.chips.witmem.gru_rule import (
    STATE,
    GruShifts,
    activation_slopes,
    activation_tables,
    gru_shifts,
    gru_step,
)
from chipfit.chips.witmem.layer import Watched, WitinLayer
from chipfit.chips.witmem.noise import noise_in_force
from chipfit.errors import ShapeError, UnsupportedError

_LINEAR = Geometry("linear")


@dataclasses.dataclass(frozen=True)
class GruNumbers:
    """Every number of one cell in force for one forward: what lowering to `Gru2Array` needs besides the weights.

    Args:
        input: The operation W_ih x + b_ih; its `g` is the node's `scale_input`.
        hidden: The operation W_hh h + b_hh; its `g` is the node's `scale_hidden`.
        shifts: Shifts of the digital part.
    """

    input: ArraySpec
    hidden: ArraySpec
    shifts: GruShifts


class GruLayer(WitinLayer):
    """Base of the GRU layers: specifications of both array operations, and the run over a sequence.

    A layer of several cells (layers, directions) tells them apart by torch's suffix: '_l0', '_l0_reverse', …

    Attributes:
        activate_table: Activation tables, a buffer that is not saved.
        activate_slope: Their derivatives, likewise.
    """

    input_size: int
    hidden_size: int
    activate_table: Tensor
    activate_slope: Tensor

    def prepare(
        self, config: WitinLayerConfig | None, hidden_config: WitinLayerConfig | None, suffixes: tuple[str, ...]
    ) -> None:
        """Capture the options and add the observers x, y, weight, y_hidden and weight_hidden of each cell."""
        config = self.capture(config)
        hidden = config if hidden_config is None else hidden_config
        self._input_template = _linear_spec(config)
        # The state is signed and lies on STATE whatever the options say.
        self._hidden_template = dataclasses.replace(
            _linear_spec(hidden), x_bits=STATE.bits, scale_x=STATE.scale, negative=HandleNegInType.PN, splits=False
        )
        self.w_clips = (config.w_clip, hidden.w_clip)
        self.register_buffer("activate_table", activation_tables(), persistent=False)
        self.register_buffer("activate_slope", activation_slopes(), persistent=False)
        x_bits = config.x_quant_bits
        shifted = config.handle_neg_in is HandleNegInType.Shift
        for suffix in suffixes:
            self.watch(Watched(f"x{suffix}", config.scale_x, x_bits if shifted else x_bits + 1, io_max=x_bits))
            for name, own in (("", config), ("_hidden", hidden)):
                self.watch(
                    Watched(f"y{name}{suffix}", own.scale_y, own.y_quant_bits, io_max=own.y_quant_bits),
                    Watched(f"weight{name}{suffix}", own.scale_weight, own.weight_quant_bits),
                )

    def numbers_in_force(self, suffix: str = "") -> GruNumbers:
        """The numbers that the coming forward uses for one cell.

        Raises:
            InvalidValueError: a scale of the array operations' outputs is no power of two.
        """
        scales = self.scales_in_force()
        level = self.noise_level if self.mode == "nat" else 0.0

        def in_force(template: ArraySpec, name: str, scale_x: float) -> ArraySpec:
            noise, shared_offset = noise_in_force(self.noise_model, level, template.bias_rows, self.where)
            return dataclasses.replace(
                template,
                scale_x=scale_x,
                scale_weight=scales[f"weight{name}{suffix}"],
                scale_y=scales[f"y{name}{suffix}"],
                rounding=self.rounding,
                noise=noise,
                noise_level=level,
                shared_offset=shared_offset,
                where=f"{self.where}{suffix}",
            )

        of_input = in_force(self._input_template, "", scales[f"x{suffix}"])
        of_hidden = in_force(self._hidden_template, "_hidden", STATE.scale)
        bits = max(of_input.y_bits, of_hidden.y_bits)
        return GruNumbers(
            of_input, of_hidden, gru_shifts(of_input.scale_y, of_hidden.scale_y, bits, f"{self.where}{suffix}")
        )

    def run_cell(self, x: Tensor, h: Tensor, suffix: str, seen: dict[str, Tensor | None]) -> Tensor:
        """Run one cell over a sequence.

        Args:
            x: Input, shape `(time, batch, features)`, in the order in which it is to be read.
            h: State before the first step, shape `(batch, hidden)`, real values.
            suffix: The cell's suffix.
            seen: Receives what auto-scale watches.

        Returns:
            The state after each step, real values, shape `(time, batch, hidden)`.
        """
        numbers = self.numbers_in_force(suffix)
        w_ih, w_hh, b_ih, b_hh = (_like(v, x) for v in self.cell_parameters(suffix))
        bias_ih, bias_hh = (x.new_zeros(3 * self.hidden_size) if b is None else b for b in (b_ih, b_hh))
        tables, slopes = self.activate_table.to(x), self.activate_slope.to(x)
        watching = self.observing
        y, most = array_forward(x, w_ih, bias_ih, _LINEAR, numbers.input, watching)
        a = rounded(y * numbers.input.scale_y)
        code = fake_codes(h, STATE, round_first=True)
        states: list[Tensor] = []
        most_hidden = x.new_zeros(())
        for step in a.unbind():
            y, most_here = array_forward(code / STATE.scale, w_hh, bias_hh, _LINEAR, numbers.hidden, watching)
            if most_here is not None:
                most_hidden = torch.maximum(most_hidden, most_here)
            code = gru_step(step, rounded(y * numbers.hidden.scale_y), code, numbers.shifts, tables, slopes)
            states.append(code)
        if watching:
            # A zero state without bias says nothing about the hidden half's range: show auto-scale nothing then.
            known = most_hidden if most_hidden > 0 else None
            now = {"x": x, "y": most, "weight": w_ih, "y_hidden": known, "weight_hidden": w_hh}
            seen |= {f"{name}{suffix}": tensor for name, tensor in now.items()}
        return torch.stack(states) / STATE.scale

    def cell_parameters(self, suffix: str) -> tuple[Any, ...]:
        """Both weights and both biases of one cell (None where it has no bias)."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(getattr(self, name + suffix, None) for name in names)

    def clip_weights(self, suffix: str = "") -> None:
        """Clip the weights in place, as every float forward of an array layer does with `w_clip`."""
        for weight, limit in zip(self.cell_parameters(suffix)[:2], self.w_clips, strict=True):
            if limit:
                with torch.no_grad():
                    weight.data.clamp_(-limit, limit)

    def check_last(self, x: Tensor, size: int, dims: tuple[int, ...], name: str) -> Tensor:
        """Refuse a tensor whose dtype, number of dimensions or last dimension does not fit.

        Raises:
            ShapeError: it does not.
        """
        self.check_input(x, name)
        if x.dim() not in dims or x.shape[-1] != size:
            allowed = f"{' or '.join(map(str, dims))} dimensions, the last of {size}"
            raise ShapeError(f"{name} has the wrong shape", given=tuple(x.shape), allowed=allowed, where=self.where)
        return x


def _linear_spec(config: WitinLayerConfig) -> ArraySpec:
    """What a WitinLinear of this configuration computes."""
    return ArraySpec(
        scale_x=config.scale_x,
        scale_weight=config.scale_weight,
        scale_y=config.scale_y,
        x_bits=config.x_quant_bits,
        y_bits=config.y_quant_bits,
        weight_bits=config.weight_quant_bits,
        negative=config.handle_neg_in,
        splits=config.x_quant_bits > 8,
        shift_num=config.shift_num,
        shift_limit=1 << config.x_quant_bits,
        bias_rows=config.bias_row_N,
        bias_digital=config.bias_d,
        w_clip=config.w_clip,
    )


def _like(v: Tensor | None, x: Tensor) -> Any:
    return None if v is None else v.to(x.dtype)


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
        x = self.check_last(input, self.input_size, (1, 2), "input")
        h = x.new_zeros(*x.shape[:-1], self.hidden_size) if hx is None else hx
        h = self.check_last(h, self.hidden_size, (x.dim(),), "hx")
        if h.shape[:-1] != x.shape[:-1]:
            raise ShapeError("input and hx differ in batch", given=(tuple(x.shape), tuple(h.shape)), where=self.where)
        rows, state = x.reshape(-1, self.input_size), h.reshape(-1, self.hidden_size)
        seen: dict[str, Tensor | None] = {}
        out = self.run_cell(rows.unsqueeze(0), state, "", seen)[0]
        if self.observing:
            self.observe(**seen)
        return out.reshape(h.shape)


class WitinGru(GruLayer, nn.GRU):
    """GRU over sequences: `torch.nn.GRU`, every layer and direction a cell as `WitinGruCell` computes it.

    A forward is one step of auto-scale, whatever the length of the sequence. With noise, every time step draws its own.

    Args:
        input_size: Features of the input.
        hidden_size: Features of the state.
        num_layers: Number of stacked layers.
        bias: Whether to learn biases.
        batch_first: Whether input and output are `(batch, time, features)` instead of `(time, batch, features)`.
        dropout: Dropout between layers while training, as in torch.
        bidirectional: Whether every layer also reads the sequence backwards.
        layer_config: Options of the `W_ih x + b_ih` operations, as for `WitinGruCell`; required.
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

        seen: dict[str, Tensor | None] = {}
        last: list[Tensor] = []
        for layer in range(self.num_layers):
            if layer and self.dropout and self.training:
                x = torch.dropout(x, self.dropout, train=True)
            outputs = []
            for suffix in (s for s in self.suffixes if s.removesuffix("_reverse") == f"_l{layer}"):
                backward = suffix.endswith("_reverse")
                states = self.run_cell(x.flip(0) if backward else x, h[len(last)], suffix, seen)
                last.append(states[-1])
                outputs.append(states.flip(0) if backward else states)
            x = torch.cat(outputs, dim=-1)
        if self.observing:
            self.observe(**seen)
        h_n = torch.stack(last)
        if not batched:
            return x.squeeze(1), h_n.squeeze(1)
        return x.transpose(0, 1) if self.batch_first else x, h_n

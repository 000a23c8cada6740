"""What both GRU layers share: the numbers of their two array operations, and the run of a cell over a sequence."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chipfit.arithmetic.fake_quant import fake_codes
from chipfit.chips.witmem.array.kernel import array_forward
from chipfit.chips.witmem.array.numbers import ArraySpec, Geometry
from chipfit.chips.witmem.array.rule import draw_cells
from chipfit.chips.witmem.array.spec import LINEAR, input_scale_bits, spec_from_config, spec_with_scales
from chipfit.chips.witmem.config.config import WitinLayerConfig
from chipfit.chips.witmem.config.enums import HandleNegInType
from chipfit.chips.witmem.gru.rule import (
    STATE,
    GruShifts,
    activation_slopes,
    activation_tables,
    gru_shifts,
    gru_step,
)
from chipfit.chips.witmem.layer import Watched, WitinLayer
from chipfit.errors import ShapeError

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
        self._input_template = spec_from_config(config, LINEAR)
        # The state is signed and lies on STATE whatever the options say.
        self._hidden_template = dataclasses.replace(
            spec_from_config(hidden, LINEAR),
            x_bits=STATE.bits,
            scale_x=STATE.scale,
            negative=HandleNegInType.PN,
            splits=False,
        )
        self.w_clips = (config.w_clip, hidden.w_clip)
        self.register_buffer("activate_table", activation_tables(), persistent=False)
        self.register_buffer("activate_slope", activation_slopes(), persistent=False)
        # What later layers read are states, signed whatever the network's input is.
        self._later_template = dataclasses.replace(self._input_template, negative=HandleNegInType.PN)
        x_bits = config.x_quant_bits
        for suffix in suffixes:
            x_scale_bits = input_scale_bits(self.input_template(suffix))
            self.watch(Watched(f"x{suffix}", config.scale_x, x_scale_bits, io_max=x_bits))
            for name, own in (("", config), ("_hidden", hidden)):
                self.watch(
                    Watched(f"y{name}{suffix}", own.scale_y, own.y_quant_bits, io_max=own.y_quant_bits),
                    Watched(f"weight{name}{suffix}", own.scale_weight, own.weight_quant_bits),
                )

    def input_template(self, suffix: str) -> ArraySpec:
        """The operation on the input of one cell as configured; from the second layer on it takes signed states."""
        return self._input_template if suffix in ("", "_l0", "_l0_reverse") else self._later_template

    def numbers_in_force(self, suffix: str = "") -> GruNumbers:
        """The numbers that the coming forward uses for one cell.

        Raises:
            InvalidValueError: a scale of the array operations' outputs is no power of two.
        """
        scales = self.scales_in_force()

        def in_force(template: ArraySpec, name: str, scale_x: float) -> ArraySpec:
            own = (scale_x, scales[f"weight{name}{suffix}"], scales[f"y{name}{suffix}"])
            return spec_with_scales(template, self, own, suffix)

        of_input = in_force(self.input_template(suffix), "", scales[f"x{suffix}"])
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
        a = y * numbers.input.scale_y  # codes, exactly: the scale is a power of two
        code = fake_codes(h, STATE, round_first=True)
        states: list[Tensor] = []
        most_hidden = x.new_zeros(())
        cells = draw_cells(w_hh, _LINEAR, numbers.hidden)  # a chip's cells stay what they are from step to step
        for step in a.unbind():
            y, most_here = array_forward(code / STATE.scale, w_hh, bias_hh, _LINEAR, numbers.hidden, watching, cells)
            if most_here is not None:
                most_hidden = torch.maximum(most_hidden, most_here)
            code = gru_step(step, y * numbers.hidden.scale_y, code, numbers.shifts, tables, slopes)
            states.append(code)
        if watching:
            # A zero state without bias says nothing about the hidden half's range: show auto-scale nothing then.
            known = most_hidden if most_hidden > 0 else None
            now = {"x": x, "y": most, "weight": w_ih, "y_hidden": known, "weight_hidden": w_hh}
            seen |= {f"{name}{suffix}": tensor for name, tensor in now.items()}
        return torch.stack(states) / STATE.scale

    def watch_float(self, x: Tensor, h: Tensor, suffix: str) -> tuple[dict[str, Tensor], Tensor]:
        """Run one cell over a sequence in float, for calibration.

        Args:
            x: As for `run_cell`.
            h: As for `run_cell`.
            suffix: The cell's suffix.

        Returns:
            The watched tensors by short name, both halves of the gates before any activation among them, and the state
            after each step.
        """
        w_ih, w_hh, b_ih, b_hh = self.cell_parameters(suffix)
        states = [h]
        for step in x.unbind():
            states.append(torch.gru_cell(step, states[-1], w_ih, w_hh, b_ih, b_hh))
        own = {"x": x, "y": F.linear(x, w_ih, b_ih), "weight": w_ih}
        hidden = {"y_hidden": F.linear(torch.stack(states[:-1]), w_hh, b_hh), "weight_hidden": w_hh}
        return {f"{name}{suffix}": tensor for name, tensor in (own | hidden).items()}, torch.stack(states[1:])

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


def _like(v: Tensor | None, x: Tensor) -> Any:
    return None if v is None else v.to(x.dtype)

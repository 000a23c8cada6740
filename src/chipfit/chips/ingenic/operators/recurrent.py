"""LSTM."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chipfit.chips.ingenic.devices import check_int, device
from chipfit.chips.ingenic.operators.blocks import QuantizeFeature, QuantizeWeight
from chipfit.chips.ingenic.operators.features import read
from chipfit.chips.ingenic.operators.operator import Operator
from chipfit.chips.ingenic.operators.options import OperatorOptions
from chipfit.chips.ingenic.operators.precision import at_full_precision
from chipfit.chips.ingenic.quantizers import lstm_step
from chipfit.errors import InvalidTypeError, ShapeError, UnsupportedError

State = tuple[Tensor, Tensor]
"""Hidden state and cell state, (N, H) each."""


class LSTM(Operator):
    """Long short-term memory with the chips' activations `hard_sigmoid` and `rational_tanh`.

    One weight a direction multiplies input and hidden state together. When quantised, it has one scale, and the hidden
    state, which is the output, is quantised with clip ±`clip_max_value` and fed back normalised, so that input and
    hidden state are codes of one grid; the gates and the cell state stay float. (The vendor's quantised LSTM could not
    be measured; this follows spec/ingenic.md, section 3.3.)

    Args:
        input_size: Features a time step, I.
        hidden_size: Features of the hidden state, H.
        num_layers: Layers; 1 on the T40 family.
        bias: Add a bias.
        bidirectional: Run backwards too, and concatenate.
        initial_state_fw: (h, c), each (N, H) or broadcastable to it. Default: all 0, or all -1 on the T40 family, where
            that is the lowest code.
        initial_state_bw: The same for the backward direction.
        return_output_states: Return the last cell state too.
        batch_first: Only `True`.
        use_squeeze: The input is (N, I, 1, T), as a convolution leaves it.
        quantize: Quantise weight and output.
        input_bitwidth: Width of a bare tensor; otherwise the input's tuple says it.
        weight_bitwidth: 2 to 8, or 32.
        output_bitwidth: 2 to 12, or 32.
        weight_factor: Weight clip in deviations; see `quantize_weight`.
        target_device: Any target.
        clip_max_value: Clip of the hidden state when quantised. The vendor's is 6, although the state hardly exceeds 1;
            a smaller one uses the codes better.

    Inputs:
        A tensor (N, T, I), or (N, I, 1, T) with `use_squeeze`, bare or as `(tensor, bit, min)`.

    Returns:
        `((tensor, bit, -1.0), h)` and with `return_output_states` also `c`; tensor (N, T, H), bidirectional (N, T, 2H).
        h and c are the last states: (N, H), bidirectional (2, N, H); on the T40 family always (N, directions, H). With
        several layers they are those of the last one.

    Raises:
        UnsupportedError: Several layers on the T40 family, or `batch_first=False`.
        ShapeError: The input does not fit.

    Source:
        Manual section LSTM; spec/ingenic.md, section 3.3.

    Example:
        >>> (y, bit, low), h = LSTM(16, 48, use_squeeze=True)(torch.rand(1, 16, 1, 5))
        >>> y.shape, h.shape
        (torch.Size([1, 5, 48]), torch.Size([1, 48]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        bidirectional: bool = False,
        initial_state_fw: State | None = None,
        initial_state_bw: State | None = None,
        return_output_states: bool = False,
        batch_first: bool = True,
        use_squeeze: bool = False,
        quantize: bool = False,
        input_bitwidth: int = 32,
        weight_bitwidth: int = 32,
        output_bitwidth: int = 32,
        weight_factor: float = 3.0,
        target_device: str = "Txx",
        clip_max_value: float = 6.0,
    ) -> None:
        super().__init__()
        self.device = device(target_device, "LSTM")
        self.target_device = self.device.name
        for argument, value in {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}.items():
            check_int(value, "LSTM", argument)
        if num_layers > 1 and self.device.family == "T40F":
            raise UnsupportedError(
                "the target runs one layer at a time", given=num_layers, allowed="1", where="LSTM.num_layers"
            )
        if not batch_first:
            raise UnsupportedError("the batch comes first", given=batch_first, allowed="True", where="LSTM.batch_first")
        options = OperatorOptions.of("LSTM", self.device, locals())
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.bidirectional = bool(bias), bool(bidirectional)
        self.initial_states = (
            _states(initial_state_fw, "initial_state_fw"),
            _states(initial_state_bw, "initial_state_bw"),
        )
        self.return_output_states, self.use_squeeze = bool(return_output_states), bool(use_squeeze)
        self.quantize, self.output_bitwidth = bool(quantize), output_bitwidth
        self.suffixes = ("", "_reverse") if bidirectional else ("",)
        self.QuantizeWeight = QuantizeWeight(options.weight_bits, weight_factor, self.target_device)
        self.QuantizeFeature = QuantizeFeature(output_bitwidth, True, clip_max_value, self.target_device)
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else hidden_size * len(self.suffixes)
            for suffix in self.suffixes:
                weight = nn.Parameter(torch.empty(4 * hidden_size, inputs + hidden_size))
                self.register_parameter(f"weight_l{layer}{suffix}", weight)
                if self.bias:
                    self.register_parameter(f"bias_l{layer}{suffix}", nn.Parameter(torch.empty(4 * hidden_size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters uniformly from ±1/sqrt(hidden_size)."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))

    @at_full_precision
    def forward(self, inputs: Any) -> tuple[Any, ...]:
        """Run over the sequence; shapes as in the class."""
        x = read(inputs, "LSTM").tensor
        if self.use_squeeze:
            if x.dim() != 4 or x.shape[2] != 1:
                raise ShapeError(
                    "use_squeeze needs a height of 1", given=tuple(x.shape), allowed="(N, I, 1, T)", where="LSTM"
                )
            x = x.squeeze(2).transpose(1, 2)
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ShapeError(
                "the input's shape does not fit",
                given=tuple(x.shape),
                allowed=f"(N, T, {self.input_size})",
                where="LSTM",
                hint="Set use_squeeze=True after a convolution.",
            )
        for layer in range(self.num_layers):
            runs = [self._run(x, layer, direction) for direction in range(len(self.suffixes))]
            x = torch.cat([run[0] for run in runs], dim=2)
        h, c = (self._stack([run[1][k] for run in runs]) for k in range(2))
        out = (x, self.output_bitwidth, -1.0)
        return (out, h, c) if self.return_output_states else (out, h)

    def _run(self, x: Tensor, layer: int, direction: int) -> tuple[Tensor, State]:
        """One direction of one layer: outputs (N, T, H) in the input's order, and the last states."""
        suffix = self.suffixes[direction]
        weight: Tensor = self.QuantizeWeight(getattr(self, f"weight_l{layer}{suffix}"))
        bias: Tensor | None = getattr(self, f"bias_l{layer}{suffix}") if self.bias else None
        # The input's part of all steps at once; only the hidden state's part has to wait.
        inputs, recurrent = weight.tensor_split([x.shape[2]], dim=1)
        projected = F.linear(x, inputs, bias)
        h, c = self._initial(x, direction)
        outputs = [x.new_empty(0)] * x.shape[1]
        for step in reversed(range(x.shape[1])) if direction else range(x.shape[1]):
            h, c = lstm_step(torch.addmm(projected[:, step], h, recurrent.t()), c)
            if self.quantize:
                h = self.QuantizeFeature(h)
            outputs[step] = h
        return torch.stack(outputs, dim=1), (h, c)

    def _initial(self, x: Tensor, direction: int) -> State:
        given = self.initial_states[direction]
        shape = (x.shape[0], self.hidden_size)
        if given is None:
            start = x.new_full(shape, -1.0 if self.device.family == "T40F" else 0.0)
            return start, start
        return given[0].to(x).expand(shape), given[1].to(x).expand(shape)

    def _stack(self, states: list[Tensor]) -> Tensor:
        if self.device.family == "T40F":
            return torch.stack(states, dim=1)
        return torch.stack(states) if self.bidirectional else states[0]


def _states(given: State | None, argument: str) -> State | None:
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(t, Tensor) for t in given):
        raise InvalidTypeError(
            "an initial state is a pair of tensors",
            given=type(given),
            allowed="(h, c) or None",
            where=f"LSTM.{argument}",
        )
    return given[0], given[1]

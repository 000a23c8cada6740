"""LSTM from array operations and the digital unit, step by step.

The chip's compiler has an Lstm node whose arithmetic is not known; this one is made of layers whose arithmetic is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from chipfit.chips.witmem.array.layers import WitinLinear
from chipfit.chips.witmem.digital import WitinElementAdd, WitinElementMul, WitinSigmoid, WitinTanh
from chipfit.chips.witmem.digital.compound import Configure
from chipfit.errors import ShapeError


class LstmCell(nn.Module):
    """One direction of one layer: two array operations a step, and the gates on the digital unit.

    Args:
        configure: Makes a layer's configuration from options.
        weights: torch's W_ih, W_hh, b_ih, b_hh; the biases may be None. Their sum is the bias of `ih`.
        options: Options of the operation on the input.
        signed: Options of the operation on the state, which is signed.
    """

    def __init__(
        self, configure: Configure, weights: tuple[Any, ...], options: dict[str, Any], signed: dict[str, Any]
    ) -> None:
        super().__init__()
        w_ih, w_hh, b_ih, b_hh = weights
        self.ih = WitinLinear(w_ih.shape[1], w_ih.shape[0], b_ih is not None, configure(**options))
        self.hh = WitinLinear(w_hh.shape[1], w_hh.shape[0], False, configure(**signed))
        self.ih.weight, self.hh.weight = w_ih, w_hh
        if b_ih is not None:
            self.ih.bias = nn.Parameter(b_ih.detach() + b_hh.detach())
        self.gates, self.carry = WitinElementAdd(configure()), WitinElementAdd(configure())
        self.input_gate, self.forget_gate, self.output_gate = (WitinSigmoid(configure()) for _ in range(3))
        self.candidate, self.squash = WitinTanh(configure()), WitinTanh(configure())
        self.forget, self.write, self.read = (WitinElementMul(configure()) for _ in range(3))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            x: Input, `(n, features)`.
            state: Hidden and cell state, `(n, hidden)` each; None for zeros.

        Returns:
            Both new states.
        """
        a = self.ih(x) if state is None else self.gates(self.ih(x), self.hh(state[0]))
        i, f, g, o = a.chunk(4, dim=1)
        c = self.write(self.input_gate(i), self.candidate(g))
        if state is not None:
            c = self.carry(self.forget(self.forget_gate(f), state[1]), c)
        return self.read(self.output_gate(o), self.squash(c)), c


class Lstm(nn.Module):
    """`torch.nn.LSTM` over sequences of any length; a program that is lowered has the length of its example.

    Args:
        old: The torch layer, without projection.
        configure: Makes a layer's configuration from options.
        options: Options of the array operation on the first layer's input.
        signed: Options of an array operation on signed input.
    """

    def __init__(self, old: nn.LSTM, configure: Configure, options: dict[str, Any], signed: dict[str, Any]) -> None:
        super().__init__()
        self.batch_first, self.layers = old.batch_first, old.num_layers
        self.dropout = nn.Dropout(old.dropout)
        self.directions = ("", "_reverse") if old.bidirectional else ("",)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for layer in range(old.num_layers):
            for way in self.directions:
                weights = tuple(getattr(old, f"{name}_l{layer}{way}", None) for name in names)
                self.add_module(f"l{layer}{way}", LstmCell(configure, weights, signed if layer else options, signed))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over a sequence; the states start at zero. Input and results as torch's."""
        axis = 1 if self.batch_first else 0
        if x.dim() != 3 or not x.shape[axis]:
            raise ShapeError(
                "the sequence has the wrong shape",
                given=tuple(x.shape),
                allowed="batch, at least one step and features, three axes",
                where="LSTM",
            )
        steps = x.shape[axis]
        hidden: list[Tensor] = []
        cell: list[Tensor] = []
        for layer in range(self.layers):
            sides = []
            for way in self.directions:
                run, state = getattr(self, f"l{layer}{way}"), None
                outputs: dict[int, Tensor] = {}
                for t in reversed(range(steps)) if way else range(steps):
                    state = run(x.select(axis, t), state)
                    outputs[t] = state[0]
                if state is not None:
                    hidden.append(state[0])
                    cell.append(state[1])
                sides.append(torch.stack([outputs[t] for t in range(steps)], dim=axis))
            x = sides[0] if len(sides) == 1 else torch.cat(sides, dim=2)
            x = self.dropout(x) if layer + 1 < self.layers else x
        return x, (torch.stack(hidden), torch.stack(cell))
